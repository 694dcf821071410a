"""What a user can hand over wrongly to the pose stages: each is an error of our tree, by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cfpose_sdk.errors import ArtifactError, DatasetError, ImageError, TrainingError
from cfpose_sdk.skeleton import CROWDPOSE_14
from cfpose_sdk.spec import FinderSpec
from cfpose_training.checkpoints.files import (
    NETWORK_KEY,
    load_finder,
    load_pose,
    load_tensors,
    save_finder,
    save_pose,
    save_tensors,
)
from cfpose_training.config import DistillConfig, Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.train import pose_spec, train_stage1, train_stage2
from cfpose_training.run.loop import RunOptions
from cfpose_training.stages.stage1 import DistillStage
from cfpose_training.stages.stage2 import RefinerStage

WIDE = HRNetConfig(width=8, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
EVERYTHING = DistillConfig(
    kd_fea=True, kd_l1=True, kd_cst=True, kd_logit=True, alpha_auto=0.3,
    teacher_flip=True, teacher_confidence=True,
)  # fmt: skip
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


@pytest.fixture
def student(recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "student.safetensors"
    spec = pose_spec(recipe)
    save_pose(path, PoseNet(recipe.pose.hrnet, spec), spec)
    return path


@pytest.fixture
def finder(tmp_path: Path) -> Path:
    path = tmp_path / "finder.safetensors"
    config = FinderNetConfig(channels=(8,) * 5, blocks=(1,) * 5, head_channels=8)
    save_finder(path, FinderNet(config), FinderSpec("f", (64, 64), 0.3, 0.5))
    return path


def options(tmp_path: Path) -> tuple[DataOptions, RunOptions]:
    data = DataOptions(tmp_path / "data", tmp_path / "cache")
    return data, RunOptions(tmp_path / "run", accelerator="cpu")


def edit(root: Path, change: Edit) -> None:
    record = json.loads((root / "people.json").read_text())
    change(record)
    (root / "people.json").write_text(json.dumps(record))


def nobody_labelled(record: dict[str, Any]) -> None:
    for person in record["annotations"]:
        person |= {"keypoints": [0] * 51, "num_keypoints": 0}


def test_a_source_without_a_labelled_joint_is_refused(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    edit(tiny_root, nobody_labelled)
    source = dataclasses.replace(recipe.sources[0], holdout_every=0)
    with pytest.raises(TrainingError, match="hold no labelled person"):
        train_stage1(dataclasses.replace(recipe, sources=(source,)), *options(tmp_path))


def test_a_holdout_of_nobody_ends_a_run_before_it_begins(
    recipe: Recipe, tiny_root: Path, tmp_path: Path, student: Path
) -> None:
    source = dataclasses.replace(recipe.sources[0], holdout_every=50)
    rare = dataclasses.replace(recipe, sources=(source,))
    with pytest.raises(TrainingError, match=r"source people holds out nobody.*holdout_every = 50"):
        train_stage1(rare, *options(tmp_path))
    with pytest.raises(TrainingError, match="holds out nobody"):
        train_stage2(rare, student, *options(tmp_path))
    assert not (tmp_path / "run").exists()


def test_missing_and_broken_photos_end_a_run_before_it_begins(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    photo = tiny_root / "images" / "000000000004.png"
    photo.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="000000000004"):
        train_stage1(recipe, *options(tmp_path))
    photo.unlink()
    with pytest.raises(DatasetError, match="1 of 10 photos are missing"):
        train_stage1(recipe, *options(tmp_path))
    assert not (tmp_path / "run" / "state.pt").exists()


def batch(recipe: Recipe) -> dict[str, Tensor]:
    """Nobody in it has a labelled joint."""
    width, height = recipe.pose.size_wh
    generator = torch.Generator().manual_seed(1)
    return {
        "crops": torch.randint(0, 256, (2, height, width, 3), generator=generator).byte(),
        "xy": torch.full((2, 17, 2), 5.0),
        "weight": torch.zeros(2, 17),
    }


def test_a_batch_without_a_labelled_joint_is_taught_by_the_teacher_alone(recipe: Recipe) -> None:
    spec = pose_spec(recipe)
    torch.manual_seed(0)
    student, teacher = PoseNet(recipe.pose.hrnet, spec), PoseNet(WIDE, spec)
    limbs = torch.ones(len(spec.skeleton.limbs))
    stage = DistillStage(student, spec, recipe.labels, EVERYTHING, teacher, spec, limbs).train()
    losses = stage(batch(recipe))
    assert losses["kl"].item() == 0
    assert all(loss.isfinite() for loss in losses.values())
    assert stage.epoch_figures(batch(recipe))["grad_kl"] == 0
    losses["loss"].backward()
    gradients = [p.grad for p in stage.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_a_batch_without_a_labelled_joint_moves_no_refiner(recipe: Recipe) -> None:
    spec = pose_spec(recipe)
    pose = PoseNet(recipe.pose.hrnet, spec)
    config = IGPGCNConfig(
        size_wh=spec.size_wh, tap_channels=pose.backbone.tap_channels, node_channels=8,
        joint_channels=(8, 8, 8),
    )  # fmt: skip
    network = RefinedPoseNet(pose, IGPGCN(config, spec.skeleton), spec)
    stage = RefinerStage(
        network, spec, (0.3, 0.5, 1.0), teacher=PoseNet(WIDE, spec), teacher_flip=True,
        teacher_confidence=True,
    ).train()  # fmt: skip
    loss = stage(batch(recipe))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in stage.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("field", "value"), [("skeleton", CROWDPOSE_14), ("size_wh", (48, 64)), ("split_ratio", 3.0)]
)
def test_stage_2_refuses_a_teacher_of_another_kind(
    recipe: Recipe, student: Path, tmp_path: Path, field: str, value: object
) -> None:
    other = dataclasses.replace(pose_spec(recipe), name="other", **{field: value})  # type: ignore[arg-type]
    teacher = tmp_path / "other.safetensors"
    save_pose(teacher, PoseNet(WIDE, other), other)
    on = dataclasses.replace(recipe, stage2=dataclasses.replace(recipe.stage2, gcn="teacher"))
    with pytest.raises(TrainingError, match=f"teacher other has {field}"):
        train_stage2(on, student, *options(tmp_path), teacher)


def test_stage_2_refuses_a_student_of_another_recipe(
    recipe: Recipe, student: Path, tmp_path: Path
) -> None:
    pose = dataclasses.replace(recipe.pose, size_wh=(48, 64))
    with pytest.raises(TrainingError, match=r"\(36, 48\), the recipe asks for tiny \(48, 64\)"):
        train_stage2(dataclasses.replace(recipe, pose=pose), student, *options(tmp_path))


def test_a_finder_is_no_student_teacher_or_start(
    recipe: Recipe, student: Path, finder: Path, tmp_path: Path
) -> None:
    distilled = dataclasses.replace(recipe, distill=EVERYTHING)
    with pytest.raises(ArtifactError, match="not a cfpose pose checkpoint"):
        train_stage1(distilled, *options(tmp_path), finder)
    with pytest.raises(ArtifactError, match="not a cfpose pose checkpoint"):
        train_stage2(recipe, finder, *options(tmp_path))
    with pytest.raises(ArtifactError):
        train_stage1(recipe, *options(tmp_path), init=finder)
    with pytest.raises(ArtifactError, match="not a cfpose finder checkpoint"):
        load_finder(student)


def test_a_start_of_another_architecture_is_refused(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    spec, wide = pose_spec(recipe), tmp_path / "wide.safetensors"
    save_pose(wide, PoseNet(WIDE, spec), spec)
    with pytest.raises(ArtifactError, match=r"is an HRNetConfig\(width=8.*width=4"):
        train_stage1(recipe, *options(tmp_path), init=wide)


SOUND = {"width": 4, "stem": 4, "bottlenecks": 1, "modules": [1, 1, 1], "blocks": 1}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("{", "JSONDecodeError"),
        ("{}", "KeyError: 'hrnet'"),
        ("[]", "TypeError"),
        (json.dumps({"hrnet": None, "refiner": None}), "AttributeError"),
        (json.dumps({"hrnet": {**SOUND, "colour": 1}, "refiner": None}), "colour"),
        (json.dumps({"hrnet": {**SOUND, "width": "4"}, "refiner": None}), "width"),
        (json.dumps({"hrnet": {**SOUND, "modules": [1, 1]}, "refiner": None}), "modules"),
        (json.dumps({"hrnet": {**SOUND, "width": -4}, "refiner": None}), "negative dimension"),
        (json.dumps({"hrnet": SOUND, "refiner": {"shape": 1}}), "shape"),
        (json.dumps({"hrnet": {**SOUND, "width": 8}, "refiner": None}), "does not fit the network"),
    ],
)
def test_a_damaged_description_of_the_network_is_named(
    student: Path, finder: Path, network: str, message: str
) -> None:
    tensors, metadata = load_tensors(student)
    save_tensors(student, tensors, {**metadata, NETWORK_KEY: network})
    with pytest.raises(ArtifactError, match=rf"student\.safetensors.*{message}"):
        load_pose(student)
    tensors, metadata = load_tensors(finder)
    save_tensors(finder, tensors, {**metadata, NETWORK_KEY: network})
    with pytest.raises(ArtifactError, match=rf"finder\.safetensors.*{NETWORK_KEY}"):
        load_finder(finder)
