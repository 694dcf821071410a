"""The two stages on drawn people: they learn, and what is frozen stays bit-equal."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_training.checkpoint import load_pose
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.data import DataOptions
from cfpose_training.loop import RunOptions
from cfpose_training.losses import simcc_loss
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose_training import development_set, pose_spec, train_stage1, train_stage2
from cfpose_training.stages import LabelStage, Normalise, RefinerStage


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def batch(recipe: Recipe, size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    width, height = recipe.pose.size_wh
    return {
        "crops": torch.randint(0, 256, (size, height, width, 3), generator=generator).byte(),
        "xy": torch.rand(size, 17, 2, generator=generator) * torch.tensor([width, height]),
        "weight": torch.ones(size, 17),
    }


def refined_network(recipe: Recipe) -> RefinedPoseNet:
    spec = pose_spec(recipe)
    torch.manual_seed(0)
    pose = PoseNet(recipe.pose.hrnet, spec)
    config = IGPGCNConfig(
        size_wh=spec.size_wh,
        tap_channels=pose.backbone.tap_channels,
        node_channels=8,
        joint_channels=(8, 8, 8),
        output="residual",
    )
    return RefinedPoseNet(pose, IGPGCN(config, spec.skeleton), spec)


def test_normalise_turns_bgr_bytes_into_imagenet_units() -> None:
    crops = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    crops[0, 0, 1] = torch.tensor([10, 20, 30])  # B, G, R
    images = Normalise()(crops)
    assert images.shape == (1, 3, 2, 2)
    expected = [(30 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (10 / 255 - 0.406) / 0.225]
    assert images[0, :, 0, 1].tolist() == pytest.approx(expected, abs=1e-5)


def test_label_stage_overfits_a_batch(recipe: Recipe) -> None:
    spec = pose_spec(recipe)
    torch.manual_seed(0)
    network = PoseNet(recipe.pose.hrnet, spec)
    network.head.init_as_marginals()
    stage = LabelStage(network, spec, recipe.labels).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    data = batch(recipe)
    losses = []
    for _ in range(150):
        loss = stage(data)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


def test_refiner_stage_trains_the_refiner_alone(recipe: Recipe) -> None:
    network = refined_network(recipe)
    stage = RefinerStage(network, pose_spec(recipe), (0.3, 0.5, 1.0))
    stage.train()
    before = copy.deepcopy(network.state_dict())
    optimiser = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], lr=1e-2)
    data = batch(recipe)
    losses = []
    for _ in range(80):
        loss = stage(data)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    after = network.state_dict()
    for key, value in before.items():
        if key.startswith("pose."):  # batch-norm statistics included
            assert torch.equal(value, after[key]), key
    moved = [k for k in before if k.startswith("refiner.") and not torch.equal(before[k], after[k])]
    assert any("blocks" in key for key in moved)


def test_refinement_moves_the_pose_towards_the_target(recipe: Recipe) -> None:
    network = refined_network(recipe)
    spec = pose_spec(recipe)
    stage = RefinerStage(network, spec, (0.3, 0.5, 1.0)).train()
    data = batch(recipe)
    optimiser = torch.optim.Adam(network.refiner.parameters(), lr=1e-2)
    for _ in range(60):
        loss = stage(data)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # batch statistics, as in training: the running ones have not settled after 60 steps
    with torch.no_grad():
        refined, coarse, _ = network(stage.normalise(data["crops"]))
    error = [(pose - data["xy"]).abs().mean().item() for pose in (coarse, refined)]
    assert error[1] < 0.7 * error[0]


def test_both_stages_run_from_a_recipe_to_a_checkpoint(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    student = train_stage1(recipe, data, RunOptions(tmp_path / "s1", accelerator="cpu"))
    assert student is not None
    pose = dataclasses.replace(recipe.pose, deploy_box_scale=1.1)
    recipe = dataclasses.replace(recipe, pose=pose)
    refined = train_stage2(recipe, student, data, RunOptions(tmp_path / "s2", accelerator="cpu"))
    assert refined is not None
    network, spec = load_pose(refined)
    assert spec.box_scale == 1.1
    assert isinstance(network, RefinedPoseNet)
    assert spec.metrics["dev_people"] == 2  # photos 5 and 10
    as_trained = dataclasses.replace(
        spec, calibration=(1.0, 0.0), covariance_scale=1.0, metrics={}, box_scale=1.25
    )
    assert as_trained == pose_spec(recipe)
    first, _ = load_pose(student)
    for key, value in first.state_dict().items():
        assert torch.equal(value, network.state_dict()[f"pose.{key}"]), key
    with pytest.raises(TrainingError, match="has a refiner already"):
        train_stage2(recipe, refined, data, RunOptions(tmp_path / "s3", accelerator="cpu"))


def test_a_batch_larger_than_the_data_is_refused(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    large = dataclasses.replace(recipe, stage1=dataclasses.replace(recipe.stage1, batch_size=64))
    data = DataOptions(tiny_root, tmp_path / "cache")
    with pytest.raises(TrainingError, match="batch_size 64"):
        train_stage1(large, data, RunOptions(tmp_path / "s1", accelerator="cpu"))


def test_beta_multiplies_the_logits_in_training_and_the_saved_head(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    """What is measured and saved decodes like what was trained: softmax of beta times the head."""
    labels = dataclasses.replace(
        recipe.labels, kind="gaussian_softmax", sigma_bins=(4.9, 5.66), softmax_beta=10.0
    )
    stage1 = dataclasses.replace(recipe.stage1, ema_decay=0.0)
    recipe = dataclasses.replace(recipe, labels=labels, stage1=stage1)
    options = RunOptions(tmp_path / "run", accelerator="cpu")
    checkpoint = train_stage1(recipe, DataOptions(tiny_root, tmp_path / "cache"), options)
    assert checkpoint is not None
    saved, spec = load_pose(checkpoint)
    assert isinstance(saved, PoseNet)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["module"]
    for key, value in saved.state_dict().items():
        factor = 10.0 if "mlp_head" in key else 1.0
        assert torch.equal(value, factor * state[key]), key
    trained = PoseNet(recipe.pose.hrnet, spec)
    trained.load_state_dict(state)
    data = batch(recipe)
    loss = LabelStage(trained, spec, labels).eval()(data)["loss"].item()
    output = saved(Normalise()(data["crops"]))
    expected = simcc_loss(output[:2], data["xy"], data["weight"], 2.0, labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    # a run that starts from it begins where it ended
    again = dataclasses.replace(recipe, stage1=dataclasses.replace(stage1, epochs=1, lr=0.0))
    options = RunOptions(tmp_path / "again", accelerator="cpu")
    data_options = DataOptions(tiny_root, tmp_path / "cache")
    second = train_stage1(again, data_options, options, init=checkpoint)
    assert second is not None
    for key, value in load_pose(second)[0].state_dict().items():
        if "mlp_head" in key:
            torch.testing.assert_close(value, saved.state_dict()[key], rtol=1e-6, atol=1e-7)
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    column = log[0].split(",").index("dev_AP")
    dev = development_set(recipe, spec, data_options)
    assert dev is not None
    measured = dev.accuracy(dev.predict(saved)).AP
    assert float(log[-1].split(",")[column]) == pytest.approx(measured, abs=1e-5)
