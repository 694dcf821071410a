"""The mean of several students, and of several finders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_training import cli
from cfpose_training.average import average_finders, average_students
from cfpose_training.checkpoints.files import load_finder, load_pose, save_finder, save_pose
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.finder.train import finder_spec
from cfpose_training.nets.finder import FinderNet
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.train import pose_spec


def written(recipe: Recipe, folder: Path, seed: int) -> Path:
    """A finder of the recipe's network with weights of its own."""
    assert recipe.finder is not None
    torch.manual_seed(seed)
    network = FinderNet(recipe.finder.net)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer += torch.rand(buffer.shape)
    path = folder / f"{seed}.safetensors"
    save_finder(path, network, finder_spec(recipe.finder))
    return path


def student(recipe: Recipe, folder: Path, seed: int, *, refined: bool = False) -> Path:
    """A student of the recipe, or its whole pose model, with weights of its own."""
    torch.manual_seed(seed)
    spec = dataclasses.replace(pose_spec(recipe), name=f"run {seed}", metrics={"dev_AP": 0.5})
    network: PoseNet | RefinedPoseNet = PoseNet(recipe.pose.backbone, spec)
    if refined:
        assert isinstance(network, PoseNet)
        taps = network.backbone.tap_channels
        sizes = IGPGCNConfig(spec.size_wh, taps, node_channels=8, joint_channels=(8, 8, 8))
        network = RefinedPoseNet(network, IGPGCN(sizes, spec.skeleton), spec)
    path = folder / f"student-{seed}.safetensors"
    save_pose(path, network, spec)
    return path


def test_the_mean_of_students_goes_into_stage_2(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_recipe)
    files = [student(recipe, tmp_path, seed) for seed in (1, 2)]
    arguments = ["average", "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    arguments += ["--student", str(files[0]), "--student", str(files[1])]
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert cli.main([*arguments, "--out", str(tmp_path / "mean"), "--threads", "3"]) == 0
    assert threads == [3]
    mean, spec = load_pose(tmp_path / "mean" / "student.safetensors")
    assert dataclasses.replace(spec, metrics={}) == pose_spec(recipe)
    assert set(spec.metrics) == {"dev_AP"}
    one, other = (load_pose(path)[0].state_dict() for path in files)
    for key, value in mean.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (one[key] + other[key]) / 2)
    made = (tmp_path / "mean" / "student.safetensors").read_bytes()
    for more in ([], ["--dry-run"]):
        with pytest.raises(TrainingError, match=r"student\.safetensors is there already"):
            cli.main([*arguments, "--out", str(tmp_path / "mean"), *more])
    assert (tmp_path / "mean" / "student.safetensors").read_bytes() == made
    for unread in ("--resume", "--devices=2", "--max-minutes=1"):
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--out", str(tmp_path / "no"), unread])
    with pytest.raises(SystemExit):  # both at once have no mean
        cli.main([*arguments, "--finder", "f", "--out", str(tmp_path / "no")])


def test_students_that_have_no_mean_are_refused(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    data = DataOptions(tiny_root, tmp_path / "cache")
    good = student(recipe, tmp_path, 1)
    refined = student(recipe, tmp_path, 2, refined=True)
    tighter = dataclasses.replace(recipe, pose=dataclasses.replace(recipe.pose, box_scale=1.1))
    for files, cause in (
        ([good], "two checkpoints or more, got 1"),
        ([good, refined], "has a refiner; give checkpoints of stage 1"),
        ([good, student(tighter, tmp_path, 3)], r"is not of the network in the recipe's \[pose\]"),
    ):
        with pytest.raises(TrainingError, match=cause):
            average_students(recipe, files, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_weight_and_statistic_is_the_mean(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(tiny_recipe)
    files = [written(recipe, tmp_path, seed) for seed in (1, 2, 3)]
    arguments = ["average", "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    arguments += ["--out", str(tmp_path / "mean")]
    with pytest.raises(TrainingError, match="two checkpoints or more, got 1"):
        cli.main([*arguments, "--finder", str(files[0]), "--dry-run"])
    for path in files:
        arguments += ["--finder", str(path)]
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert f"finder: {files[2]}\n" in capsys.readouterr().out
    assert not (tmp_path / "mean").exists()

    assert cli.main(arguments) == 0
    mean, spec = load_finder(tmp_path / "mean" / "finder.safetensors")
    assert set(spec.metrics) == {"dev_recall", "dev_false", "dev_false_empty"}
    states = [load_finder(path)[0].state_dict() for path in files]
    for key, value in mean.state_dict().items():
        expected = sum(state[key].double() for state in states) / 3
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(states[0]["heat.0.0.weight"], mean.state_dict()["heat.0.0.weight"])


def test_what_has_no_mean_is_refused(tiny_recipe: Path, tiny_root: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    data = DataOptions(tiny_root, tmp_path / "cache")
    assert recipe.finder is not None
    one = written(recipe, tmp_path, 1)
    with pytest.raises(TrainingError, match="two checkpoints or more, got 1"):
        average_finders(recipe, [one], data, tmp_path / "out")
    net = dataclasses.replace(recipe.finder.net, box_grid=3)
    wider = dataclasses.replace(recipe, finder=dataclasses.replace(recipe.finder, net=net))
    with pytest.raises(TrainingError, match="is not of the network"):
        average_finders(recipe, [one, written(wider, tmp_path, 2)], data, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"no \[finder\] table"):
        average_finders(dataclasses.replace(recipe, finder=None), [one, one], data, tmp_path)
    assert not (tmp_path / "out").exists()
