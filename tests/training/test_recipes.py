"""Each committed recipe trains: its own losses, optimisers and stages, on tiny networks."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from cfpose_sdk.skeleton import COCO_17
from cfpose_training.ablation.schemes import scheme
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import OptimConfig, Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.train import (
    pose_spec,
    train_stage1,
    train_stage2,
    train_teacher,
)
from cfpose_training.run.loop import RunOptions

TINY = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
TINY_TEACHER = dataclasses.replace(TINY, width=8)
STEPS = 2


def tiny(recipe: Recipe) -> Recipe:
    """The recipe with small networks and crops, and two steps a stage; all else is its own."""

    def short(optim: OptimConfig) -> OptimConfig:
        return dataclasses.replace(optim, epochs=STEPS, batch_size=4, workers=0)

    teacher = recipe.teacher
    return dataclasses.replace(
        recipe,
        pose=dataclasses.replace(recipe.pose, hrnet=TINY, lite=None, size_wh=(36, 48)),
        teacher=teacher
        and dataclasses.replace(
            teacher, hrnet=TINY_TEACHER, lite=None, optim=teacher.optim and short(teacher.optim)
        ),
        stage1=short(recipe.stage1),
        stage2=dataclasses.replace(
            recipe.stage2,
            optim=short(recipe.stage2.optim),
            node_channels=8,
            joint_channels=(8, 8, 8),
        ),
        sources=tuple(dataclasses.replace(source, repeat=1) for source in recipe.sources),
    )


def losses(folder: Path) -> list[set[str]]:
    """The logged columns, a set a row."""
    with open(folder / "log.csv", newline="") as file:
        return [set(row) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("paper-coco", {"kl", "fea", "l1", "cst"}),
        ("paper-crowdpose", {"kl", "fea", "l1", "cst"}),
        ("improved-coco", {"kl", "fea", "l1", "cst", "logit"}),
        ("cfpose-s-ablation-start", {"kl"}),
        ("cfpose-s-ablation", {"kl", "fea", "l1", "cst", "alpha"}),
    ],
)
def test_a_recipe_trains(
    name: str, terms: set[str], root: Path, tmp_path: Path, write_data: Callable[..., None]
) -> None:
    recipes = root / "training" / "recipes"
    recipe = tiny(load_recipe(recipes / f"{name}.toml"))
    if name.endswith("-ablation"):
        recipe = scheme(recipe, "6")
    skeleton = recipe.joints or COCO_17
    recipe = dataclasses.replace(recipe, joints=skeleton)
    for source in recipe.sources:
        photos = {0: 4, 1: 1, 10: 10}[source.holdout_every]  # one is held out, if any are
        write_data(
            tmp_path, photos, people_file=source.annotations, folder=source.images,
            skeleton=skeleton,
        )  # fmt: skip
    data = DataOptions(tmp_path, tmp_path / "cache")

    def options(stage: str) -> RunOptions:
        return RunOptions(tmp_path / stage, accelerator="cpu", threads=1)

    scratch = recipe.start == "imagenet"
    teacher = None
    if recipe.teacher:
        teacher = train_teacher(recipe, data, options("teacher"), from_scratch=scratch)
    student = train_stage1(recipe, data, options("stage1"), teacher, from_scratch=scratch)
    assert student is not None
    network, spec = load_pose(student)
    assert isinstance(network, PoseNet)
    assert spec == pose_spec(recipe)
    refined = train_stage2(recipe, student, data, options("stage2"), teacher)
    assert refined is not None
    whole, spec = load_pose(refined)
    assert isinstance(whole, RefinedPoseNet)
    assert spec.metrics["dev_people"] == 1
    for stage, expected in (("stage1", terms), ("stage2", {"l1"})):
        rows = losses(tmp_path / stage)
        assert len(rows) == STEPS
        assert expected <= rows[-1], rows[-1]
        assert (tmp_path / stage / "best.safetensors").is_file()
