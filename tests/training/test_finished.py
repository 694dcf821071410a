"""A student that ships without a refiner: the artifact's own spec, fitted on held-out people."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.checkpoints.convert import initialise
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.checkpoints.starts import start_file
from cfpose_training.cli import main
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.people import load_people
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.finish import FINISHED_FILE, finish_student
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.calibration import measured_spec
from cfpose_training.pose.norms import restore_norms
from cfpose_training.pose.train import deployed_spec, development_set, pose_spec


@pytest.fixture
def student(tiny_recipe: Path, tmp_path: Path) -> Path:
    recipe = load_recipe(tiny_recipe)
    torch.manual_seed(0)
    network = PoseNet(recipe.pose.backbone, pose_spec(recipe)).eval()
    path = tmp_path / "student.safetensors"
    save_pose(path, network, dataclasses.replace(pose_spec(recipe), metrics={"dev_AP": 0.1}))
    return path


def test_a_student_is_finished_by_the_command(
    tiny_recipe: Path, tiny_root: Path, student: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tight = tmp_path / "tight.toml"
    tight.write_text(
        tiny_recipe.read_text().replace("[pose]", "[pose]\ndeploy_box_scale = 1.05", 1)
    )
    recipe = load_recipe(tight)
    command = ["finish", "--recipe", str(tight), "--data-root", str(tiny_root)]
    command += ["--student", str(student), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main([*command, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    assert f"wrote {tmp_path / 'out' / FINISHED_FILE}" in capsys.readouterr().out
    network, spec = load_pose(tmp_path / "out" / FINISHED_FILE)
    assert isinstance(network, PoseNet)
    deployed = deployed_spec(recipe)
    dev = development_set(recipe, deployed, DataOptions(tiny_root, tmp_path / "cache"))
    assert spec == measured_spec(network, deployed, dev)
    assert spec.box_scale == 1.05
    assert spec.calibration != (1.0, 0.0)
    assert {"dev_AP", "dev_ECE"} <= set(spec.metrics)
    assert "dev_AP_coarse" not in spec.metrics  # it has no refiner
    for ours, theirs in zip(network.parameters(), load_pose(student)[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_cannot_be_finished_is_refused(
    tiny_recipe: Path, tiny_root: Path, student: Path, tmp_path: Path
) -> None:
    recipe, data = load_recipe(tiny_recipe), DataOptions(tiny_root, tmp_path / "cache")
    other = dataclasses.replace(recipe, pose=dataclasses.replace(recipe.pose, box_scale=1.4))
    with pytest.raises(TrainingError, match="another field of the spec differs"):
        finish_student(other, student, data, tmp_path)
    (tmp_path / FINISHED_FILE).touch()
    with pytest.raises(TrainingError, match="there already"):
        finish_student(recipe, student, data, tmp_path)


def test_weights_move_back_to_the_start(
    tiny_recipe: Path, tiny_root: Path, student: Path, tmp_path: Path
) -> None:
    """A quarter of the way from the student to a checkpoint that holds the whole start."""
    recipe, data = load_recipe(tiny_recipe), DataOptions(tiny_root, tmp_path / "cache")
    start = tmp_path / "start.safetensors"
    torch.manual_seed(1)
    began = PoseNet(recipe.pose.backbone, pose_spec(recipe)).eval()
    save_pose(start, began, pose_spec(recipe))
    finished = finish_student(recipe, student, data, tmp_path / "a", init=start, init_share=0.25)
    found, tuned = load_pose(finished)[0].state_dict(), load_pose(student)[0].state_dict()
    for key, value in began.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(found[key], 0.75 * tuned[key] + 0.25 * value)
        else:
            assert torch.equal(found[key], tuned[key])
    for wrong in ({"init": start}, {"init_share": 0.3}, {"init": start, "init_share": 1.0}):
        with pytest.raises(TrainingError, match="the start's share is"):
            finish_student(recipe, student, data, tmp_path / "b", **wrong)  # type: ignore[arg-type]


def test_a_start_from_a_graph_is_mixed_under_the_norms_that_the_run_began_with(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    """The mean of what began and what a run began with computes the same: the norms are one."""
    text = tiny_recipe.read_text()
    hrnet = next(line for line in text.splitlines() if line.startswith("hrnet"))
    lite = "lite = { neck = [96, 64, 32], frozen = 3 }"
    tiny_recipe.write_text(text.replace(hrnet, lite, 1).replace("[36, 48]", "[144, 192]", 1))
    recipe, init = load_recipe(tiny_recipe), start_file("default")
    spec, data = pose_spec(recipe), DataOptions(tiny_root, tmp_path / "cache")
    student = PoseNet(recipe.pose.backbone, spec)
    initialise(student, init, spec.skeleton.keypoints)
    people = load_people(recipe.sources, tiny_root, spec.skeleton)
    cache = cache_photos(people.photos, data.cache)
    assert restore_norms(student, people, cache, spec)
    save_pose(tmp_path / "student.safetensors", student, spec)
    finished = finish_student(
        recipe, tmp_path / "student.safetensors", data, tmp_path / "out", init=init, init_share=0.5
    )
    crops = torch.randn(1, 3, 192, 144)
    with torch.no_grad():
        ours, theirs = load_pose(finished)[0](crops), student.eval()(crops)
    torch.testing.assert_close(ours.x_logits, theirs.x_logits, atol=1e-3, rtol=1e-4)


def test_no_share_of_a_start_that_lacks_joints(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    spec, backbone = pose_spec(recipe), recipe.pose.backbone
    save_pose(tmp_path / "start.safetensors", PoseNet(backbone, spec), spec)
    joints = Skeleton(("nose", "tail"), (), (), (0.1, 0.1))
    other = dataclasses.replace(recipe, joints=joints)
    student = tmp_path / "student.safetensors"
    save_pose(student, PoseNet(backbone, pose_spec(other)), pose_spec(other))
    with pytest.raises(TrainingError, match="knows 1 of the 2 joints: there is no way back"):
        finish_student(
            other, student, DataOptions(tiny_root, tmp_path / "cache"), tmp_path / "out",
            init=tmp_path / "start.safetensors", init_share=0.5,
        )  # fmt: skip
