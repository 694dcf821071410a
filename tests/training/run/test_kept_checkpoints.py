"""The best checkpoint and those of the last epochs: which are kept, none of them half written."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from cfpose_sdk.errors import ArtifactError, TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.files import load_pose, load_spec, load_tensors, save_pose
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.train import pose_spec, train_stage1, train_stage2
from cfpose_training.run.loop import RunOptions
from cfpose_training.run.outputs import BEST_FILE, KeptCheckpoints

SPEC = ModelSpec(name="tiny", skeleton=COCO_17, size_wh=(36, 48), trained_on=("nothing",))
HRNET = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
TIMES = {"steps_per_s", "samples_per_s", "load_s_share", "memory_gb"}


def save(path: Path, module: nn.Module, metrics: Mapping[str, float]) -> None:
    assert isinstance(module, PoseNet)
    save_pose(path, module, dataclasses.replace(SPEC, metrics=metrics))


@pytest.fixture
def network() -> PoseNet:
    return PoseNet(HRNET, SPEC)


def keep(kept: KeptCheckpoints, network: PoseNet, figures: Mapping[int, float]) -> None:
    for epoch, value in figures.items():
        with torch.no_grad():
            network.head.final_layer.bias.fill_(epoch)
        kept.keep(epoch, network, {"dev_AP": value})


def epoch_of(path: Path) -> float:
    """The epoch whose weights are in a checkpoint; its spec says the same."""
    network, spec = load_pose(path)
    assert isinstance(network, PoseNet)
    epoch = network.head.final_layer.bias[0].item()
    assert spec.metrics["epoch"] == epoch
    return epoch


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_best_is_the_first_of_the_highest(network: PoseNet, tmp_path: Path) -> None:
    kept = KeptCheckpoints(tmp_path, save, keep_last=0)
    keep(kept, network, {1: math.nan})
    assert names(tmp_path) == []
    keep(kept, network, {2: 0.1, 3: 1 / 3, 4: 0.2, 5: 1 / 3, 6: math.nan})
    assert names(tmp_path) == [BEST_FILE]
    assert epoch_of(tmp_path / BEST_FILE) == 3
    assert load_spec(tmp_path / BEST_FILE).metrics["dev_AP"] == 1 / 3  # to the last digit


def test_the_last_epochs_are_kept_and_no_more(network: PoseNet, tmp_path: Path) -> None:
    (tmp_path / "epoch-notes.safetensors").write_text("the user's own")
    keep(KeptCheckpoints(tmp_path, save, keep_last=2), network, dict.fromkeys(range(8, 12), 0.0))
    assert names(tmp_path) == [
        BEST_FILE, "epoch-0010.safetensors", "epoch-0011.safetensors", "epoch-notes.safetensors",
    ]  # fmt: skip
    assert epoch_of(tmp_path / "epoch-0011.safetensors") == 11
    keep(KeptCheckpoints(tmp_path, save, keep_last=1), network, {12: 0.0})  # resumed with another k
    assert "epoch-0010.safetensors" not in names(tmp_path)
    with pytest.raises(TrainingError, match="keep_last is -1"):
        KeptCheckpoints(tmp_path, save, keep_last=-1)


def test_without_development_photos_there_is_no_best(network: PoseNet, tmp_path: Path) -> None:
    KeptCheckpoints(tmp_path, save, keep_last=1).keep(1, network, {})
    assert names(tmp_path) == ["epoch-0001.safetensors"]


def test_a_resumed_run_has_the_figure_of_its_file_to_beat(network: PoseNet, tmp_path: Path) -> None:
    keep(KeptCheckpoints(tmp_path, save, 0), network, {1: 0.1, 2: 0.5})
    for known in (0.1, None):  # killed after the file was written, before the state was
        resumed = KeptCheckpoints(tmp_path, save, 0)
        resumed.resume(known)
        keep(resumed, network, {3: 0.4})
        assert epoch_of(tmp_path / BEST_FILE) == 2
    (tmp_path / BEST_FILE).write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="cannot read"):
        KeptCheckpoints(tmp_path, save, 0).resume(0.5)
    (tmp_path / BEST_FILE).unlink()
    with pytest.raises(TrainingError, match=r"best\.safetensors is gone.*0\.5000"):
        KeptCheckpoints(tmp_path, save, 0).resume(0.5)


def test_a_full_disk_leaves_the_earlier_files(
    network: PoseNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptCheckpoints(tmp_path, save, keep_last=1)
    keep(kept, network, {1: 0.1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real_write = Path.write_bytes

    def full_disk(file: Path, data: bytes) -> None:
        real_write(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    for keep_last in (0, 1):
        kept = KeptCheckpoints(tmp_path, save, keep_last)
        kept.resume(0.1)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full_disk)
            with pytest.raises(TrainingError, match=r"No space left.*--resume"):
                keep(kept, network, {2: 0.2})
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert kept.best == 0.1


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    recipe = load_recipe(tiny_recipe)
    stage1 = dataclasses.replace(recipe.stage1, batch_size=8)
    return dataclasses.replace(recipe, stage1=stage1)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]


def test_a_stopped_run_keeps_and_logs_what_a_whole_one_does(
    recipe: Recipe, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    # tiny networks all have AP 0: let the first epoch be the best one, wherever it is measured
    monkeypatch.setattr(
        "cfpose_training.pose.run.PoseRun._figures",
        lambda run, network: {"dev_AP": float(-network.head.final_layer.bias.abs().sum())},
    )
    files = {}
    for name, minutes in (("whole", math.inf), ("parts", 0.0)):
        for _ in range(50):
            options = RunOptions(
                tmp_path / name, resume=True, max_minutes=minutes, accelerator="cpu",
                threads=1, keep_last=1,
            )  # fmt: skip
            if student := train_stage1(recipe, data, options):
                break
        files[name] = student
    assert files["whole"] is not None
    assert files["parts"] is not None
    for file in (BEST_FILE, "epoch-0002.safetensors", "student.safetensors"):
        whole, parts = (load_tensors(tmp_path / name / file) for name in files)
        assert whole[1] == parts[1], file
        assert all(torch.equal(value, parts[0][key]) for key, value in whole[0].items()), file
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert [row["epoch"] for row in rows(tmp_path / "parts")] == ["1", "2"]
    assert all(float(row["grad_norm"]) > 0 for row in rows(tmp_path / "parts"))

    metrics = load_spec(tmp_path / "whole" / BEST_FILE).metrics
    assert metrics["epoch"] == 1
    assert f"{metrics['dev_AP']:.6g}" == rows(tmp_path / "whole")[0]["dev_AP"]
    # the student is the last epoch's network, under a plain spec
    tensors = load_tensors(files["whole"])[0]
    last = load_tensors(tmp_path / "whole" / "epoch-0002.safetensors")[0]
    assert all(torch.equal(value, tensors[key]) for key, value in last.items())
    assert load_spec(files["whole"]) == pose_spec(recipe)


def test_stage_2_starts_from_a_kept_checkpoint_and_keeps_whole_networks(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    assert train_stage1(recipe, data, RunOptions(tmp_path / "s1", accelerator="cpu"))
    best = tmp_path / "s1" / BEST_FILE
    assert load_spec(best).metrics.keys() == {"dev_AP", "dev_AP50", "epoch"}
    options = RunOptions(tmp_path / "s2", accelerator="cpu", keep_last=5)
    assert train_stage2(recipe, best, data, options)
    for file in (BEST_FILE, "epoch-0001.safetensors", "epoch-0002.safetensors"):
        network, spec = load_pose(tmp_path / "s2" / file)
        assert isinstance(network, RefinedPoseNet), file
        assert dataclasses.replace(spec, metrics={}) == pose_spec(recipe)
