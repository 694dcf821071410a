"""The two stages on drawn people: they learn, and what is frozen stays bit-equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.losses import simcc_loss
from cfpose_training.nets.pose_net import Normalise, PoseNet, RefinedPoseNet
from cfpose_training.pose.train import (
    deployed_spec,
    development_set,
    pose_spec,
    train_stage1,
    train_stage2,
)
from cfpose_training.run.loop import RunOptions
from cfpose_training.stages.stage1 import LabelStage
from cfpose_training.stages.stage2 import RefinerStage
from tests.training.distill_cases import batch, losses_of


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


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
    losses = losses_of(stage, optimiser, batch(recipe), steps=150)
    assert losses[-1] < 0.35 * losses[0]


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
    as_trained = dataclasses.replace(  # without what was fitted on the held-out people
        spec, calibration=(1.0, 0.0), covariance_scale=1.0, covariance_odds_power=0.0, metrics={},
        box_scale=1.25,
    )  # fmt: skip
    assert as_trained == pose_spec(recipe)
    first, _ = load_pose(student)
    for key, value in first.state_dict().items():
        assert torch.equal(value, network.state_dict()[f"pose.{key}"]), key
    with pytest.raises(TrainingError, match="has a refiner already"):
        train_stage2(recipe, refined, data, RunOptions(tmp_path / "s3", accelerator="cpu"))


def test_the_refiner_learns_on_coarse_poses_as_they_ship(
    recipe: Recipe, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    pose = dataclasses.replace(recipe.pose, decode="subbin", oks_window=1.5)
    recipe = dataclasses.replace(recipe, pose=pose)
    student = train_stage1(recipe, data, RunOptions(tmp_path / "s1", accelerator="cpu"))
    assert student is not None
    assert load_pose(student)[1].windows == ()
    seen = []

    class Stage(RefinerStage):
        def __init__(self, network: RefinedPoseNet, spec: ModelSpec, *rest: Any, **more: Any):
            super().__init__(network, spec, *rest, **more)
            seen.extend([spec.windows, network.spec.windows])

    monkeypatch.setattr("cfpose_training.pose.train.RefinerStage", Stage)
    assert train_stage2(recipe, student, data, RunOptions(tmp_path / "s2", accelerator="cpu"))
    assert seen == [deployed_spec(recipe).windows] * 2


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
    again = dataclasses.replace(recipe, stage1=dataclasses.replace(stage1, epochs=1, lr=1e-12))
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
