"""A student that ships without a refiner: the artifact's own spec, fitted on held-out people."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.cli import main
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.finish import FINISHED_FILE, finish_student
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.calibration import measured_spec
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
        "started_from = [{ name = 'trunk', source = 'x', license = 'MIT', sha256 = '"
        + "0a" * 32
        + "' }]\n"
        + tiny_recipe.read_text().replace("[pose]", "[pose]\ndeploy_box_scale = 1.05", 1)
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
    # the student's own spec says nothing of its start, as before version 8
    deployed = dataclasses.replace(deployed_spec(recipe), started_from=recipe.started_from)
    assert [start.name for start in deployed.started_from] == ["trunk"]
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
