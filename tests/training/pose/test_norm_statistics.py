"""Norms that were folded away: back with statistics, in training mode as in eval mode."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cfpose_training.checkpoints.files import save_pose
from cfpose_training.checkpoints.from_graph import only_adds
from cfpose_training.cli import main
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import plain_crops
from cfpose_training.data.people import load_people
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.nets.pose_net import Normalise, PoseNet
from cfpose_training.pose import run
from cfpose_training.pose.norms import restore_norms
from cfpose_training.pose.train import pose_spec


def norms(network: PoseNet) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.fixture
def folded(tiny_recipe: Path) -> PoseNet:
    """A network whose norms only add, its channels far from mean 0 and variance 1."""
    torch.manual_seed(7)
    recipe = load_recipe(tiny_recipe)
    network = PoseNet(recipe.pose.backbone, pose_spec(recipe))
    with torch.no_grad():
        for norm in norms(network):
            norm.weight.fill_((1 + norm.eps) ** 0.5)
            norm.bias.uniform_(-1, 1)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight *= 2
    assert all(map(only_adds, norms(network)))
    return network


def test_training_starts_from_what_the_graph_computed(
    folded: PoseNet, tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    spec = pose_spec(recipe)
    people = load_people(recipe.sources, tiny_root, spec.skeleton)
    cache = cache_photos(people.photos, tmp_path / "cache")
    crops = torch.from_numpy(plain_crops(people, cache, spec, range(len(people)))[0])
    images = Normalise(spec.mean_rgb, spec.std_rgb)(crops)

    def logits(network: PoseNet, *, training: bool) -> Tensor:
        with torch.no_grad():
            return copy.deepcopy(network).train(training)(images)[0]

    expected = logits(folded, training=False)
    lost = (logits(folded, training=True) - expected).abs().mean()
    assert restore_norms(folded, people, cache, spec) == len(norms(folded))
    assert not any(map(only_adds, norms(folded)))
    torch.testing.assert_close(logits(folded, training=False), expected, rtol=1e-4, atol=1e-4)
    # the same crops make the batch whose statistics the norms got
    now = (logits(folded, training=True) - expected).abs().mean()
    assert now < 0.01 * lost
    before = copy.deepcopy(folded.state_dict())
    assert restore_norms(folded, people, cache, spec) == 0
    assert all(torch.equal(value, before[key]) for key, value in folded.state_dict().items())


def test_a_run_from_folded_weights_has_norms(
    folded: PoseNet, tiny_recipe: Path, tiny_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save_pose(tmp_path / "folded.safetensors", folded, pose_spec(load_recipe(tiny_recipe)))
    seen: list[PoseNet] = []
    monkeypatch.setattr(run.PoseRun, "train", lambda _, __, network, *___: seen.append(network))
    command = ["stage1", "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    command += ["--out", str(tmp_path / "run"), "--init", str(tmp_path / "folded.safetensors")]
    assert main(command) == 0
    assert not any(map(only_adds, norms(seen[0])))
