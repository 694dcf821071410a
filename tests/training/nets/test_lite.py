"""The EfficientNet pose backbone: maps, folded norms, start weights, checkpoints, recipes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cfpose_sdk.errors import ArtifactError, TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.convert import initialise
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.config import AugmentConfig, load_recipe
from cfpose_training.data.augment import colour_jitter
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.efficientnet import EfficientNetLite, LiteBackbone, LiteConfig, LiteName
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import train_stage1
from cfpose_training.run.loop import RunOptions
from tests.training.nets.test_efficientnet import published_state

TINY = LiteConfig(neck=(12, 8, 4))


@pytest.fixture
def model_spec() -> ModelSpec:
    return ModelSpec(name="lite", skeleton=COCO_17, size_wh=(36, 48))


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norms as a trained network has them, so that folding them is no identity."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                assert tensor is not None
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (layer.bias.data, layer.running_mean):
                assert tensor is not None
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return module


@pytest.mark.parametrize("size_hw", [(64, 48), (192, 144), (100, 76)])
def test_maps_are_those_of_hrnet(size_hw: tuple[int, int]) -> None:
    """Channels by tap_channels; a map's size is the crop's over its stride, rounded up."""
    backbone = LiteBackbone(TINY).eval()
    taps = backbone(torch.zeros(1, 3, *size_hw))
    for tap, channels, stride in zip(taps, backbone.tap_channels, (16, 8, 4), strict=True):
        assert tap.shape == (1, channels, *(-(-side // stride) for side in size_hw))


def test_training_and_export_compute_the_same() -> None:
    """One convolution of scaled weights, or convolution and norm: equal, and so the gradients."""
    body = shaken(EfficientNetLite()).double()
    plain = copy.deepcopy(body).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    folded, unfolded = body.train()(x), plain(x)
    for ours, theirs in zip(folded, unfolded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for maps in (folded, unfolded):
        sum(part.square().mean() for part in maps).backward()
    pairs = zip(body.named_parameters(), plain.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: name + text
        )


def test_checkpoint_round_trip(tmp_path: Path, model_spec: ModelSpec) -> None:
    network = PoseNet(TINY, model_spec)
    save_pose(tmp_path / "lite.safetensors", network, model_spec)
    loaded, _ = load_pose(tmp_path / "lite.safetensors")
    assert isinstance(loaded, PoseNet)
    assert loaded.backbone.config == TINY
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_starts_from_imagenet_and_from_itself(tmp_path: Path, model_spec: ModelSpec) -> None:
    state = published_state()
    torch.save(state, tmp_path / "classifier.pth")
    network = PoseNet(TINY, model_spec)
    found = initialise(network, tmp_path / "classifier.pth")
    assert "_fc.weight" in found.dropped
    assert found.taken == ()
    assert "neck" in found.fresh
    assert isinstance(network.backbone, LiteBackbone)
    weight = network.backbone.body.blocks[5].project_conv.weight  # type: ignore[union-attr]
    assert torch.equal(weight, state["_blocks.5._project_conv.weight"])

    save_pose(tmp_path / "lite.safetensors", network, model_spec)
    other = PoseNet(TINY, model_spec)
    again = initialise(other, tmp_path / "lite.safetensors")
    assert again.fresh == ()
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_teachers_body_goes_under_another_neck(tmp_path: Path, model_spec: ModelSpec) -> None:
    teacher = PoseNet(LiteConfig(neck=(16, 8, 8), frozen=4), model_spec)
    save_pose(tmp_path / "teacher.safetensors", teacher, model_spec)
    student = PoseNet(TINY, model_spec)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    found = initialise(student, tmp_path / "teacher.safetensors")
    assert found.fresh == ("neck", "head.final_layer")
    assert found.taken == ("head.mlp_head_x", "head.mlp_head_y")
    assert all(key.startswith("backbone.") for key in found.dropped)
    assert found.dropped
    assert not any(key.startswith("backbone.body.") for key in found.dropped)
    for key, value in student.state_dict().items():
        fresh = not key.startswith(("backbone.body.", "head.mlp_head"))
        assert torch.equal(value, before[key] if fresh else teacher.state_dict()[key]), key


@pytest.mark.parametrize("table", ["", "hrnet = { width = 4 }\nlite = { neck = [4, 4, 4] }\n"])
def test_a_recipe_names_one_backbone(tmp_path: Path, table: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"sources = []\n[pose]\nname = 'x'\n{table}[stage1]\nepochs = 1\n"
                      "[stage2.optim]\nepochs = 1\n")  # fmt: skip
    with pytest.raises(TrainingError, match="x has one backbone"):
        load_recipe(recipe)


def test_colour_jitter() -> None:
    crop = np.full((4, 5, 3), 127, np.uint8)
    crop[0] = (10, 20, 30)
    still = colour_jitter(crop, AugmentConfig(), np.random.default_rng(0))
    assert still is crop
    means = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        means.append(colour_jitter(crop, AugmentConfig(brightness=40), rng)[1:].mean(axis=(0, 1)))
    shifts = np.array(means) - 127
    assert np.abs(shifts).max() <= 40.5
    # var of U(-20, 20) is 400 / 3; a channel is the sum of two, and two channels share one of them
    covariance = np.cov(shifts.T)
    np.testing.assert_allclose(np.diag(covariance), 800 / 3, rtol=0.2)
    np.testing.assert_allclose(covariance[0, 1], 400 / 3, rtol=0.35)
    stretched = colour_jitter(crop, AugmentConfig(contrast=0.5), np.random.default_rng(1))
    around = (stretched.astype(float) - 127.5) / (crop - 127.5)
    for channel in range(3):  # one gain a channel, to rounding
        assert np.ptp(around[0, :, channel]) == 0
        assert abs(around[0, 0, channel] - 1) <= 0.5


def test_frozen_blocks_need_weights(tiny_recipe: Path, tiny_root: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    lite = dataclasses.replace(recipe.pose, hrnet=None, lite=TINY)
    with pytest.raises(TrainingError, match=r"first 3 blocks .* give --init"):
        train_stage1(
            dataclasses.replace(recipe, pose=lite),
            DataOptions(tiny_root, tmp_path / "cache"),
            RunOptions(tmp_path / "run"),
        )


@pytest.mark.parametrize("body", ["lite1", "lite2"])
def test_larger_body_survives_its_files(
    body: LiteName, model_spec: ModelSpec, tmp_path: Path
) -> None:
    """Checkpoint and start weights name the body; another one's weights are refused."""
    config = LiteConfig(neck=(12, 8, 4), frozen=4, body=body)
    network = PoseNet(config, model_spec).eval()
    path = tmp_path / "teacher.safetensors"
    save_pose(path, network, model_spec)
    again, _ = load_pose(path)
    assert isinstance(again, PoseNet)
    assert again.backbone.config == config
    other = PoseNet(dataclasses.replace(config, frozen=0), model_spec)
    initialise(other, path)
    crops = torch.randn(1, 3, 48, 36)
    torch.testing.assert_close(other.eval()(crops).x_logits, network(crops).x_logits)
    with pytest.raises(ArtifactError, match="the network to start is"):
        initialise(PoseNet(TINY, model_spec), path)
