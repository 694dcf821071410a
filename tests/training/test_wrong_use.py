"""Wrong options of cfpose-train end in a sentence, not in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cfpose_sdk.errors import CfposeError, InputError, TrainingError
from cfpose_training import cli
from cfpose_training.checkpoints.files import save_pose
from cfpose_training.config import load_recipe
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import pose_spec


@pytest.fixture
def common(tiny_recipe: Path, tiny_root: Path) -> list[str]:
    return ["--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]


@pytest.mark.parametrize(
    "wrong",
    [
        "stage1 --devices 0",
        "stage1 --threads -2",
        "stage1 --threads some",
        "stage1 --keep-last -1",
        "ablation --seeds a",
        "ablation --seeds 1,-2",
        "data speed --workers -1",
    ],
)
def test_a_wrong_number_is_named_with_what_is_expected(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    *command, option, value = wrong.split()
    out = [] if command[0] == "data" else ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, *common, *out, option, value])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {option}: got '{value.split(',')[-1]}', expected a whole number" in said


@pytest.mark.parametrize("accelerator", ["cuda", "abacus"])
def test_an_accelerator_that_is_not_there_is_refused(
    common: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = [*common, "--accelerator", accelerator]
    with pytest.raises(TrainingError, match=rf"accelerator '{accelerator}'.*give --accelerator"):
        cli.main(["stage1", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(TrainingError, match=rf"accelerator '{accelerator}'"):
        cli.main(["data", "speed", *arguments, "--batches", "1"])


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_cannot_be_made_is_named(
    common: list[str], tmp_path: Path, below: str
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    out = ["--out", str(file / below), "--accelerator", "cpu"]
    for cache in ([], ["--cache", str(tmp_path / "cache")]):
        with pytest.raises(CfposeError, match=f"{file}.*give another --"):
            cli.main(["stage1", *common, *out, *cache])
    with pytest.raises(CfposeError, match=f"{file}"):
        cli.main(["ablation", *common, *out, "--cache", str(tmp_path / "cache"), "--schemes", "1"])


def test_a_place_that_cannot_be_written_to_is_named(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    spec, student = pose_spec(recipe), tmp_path / "student.safetensors"
    save_pose(student, PoseNet(recipe.pose.backbone, spec), spec)
    for layout in ("simcc", "mmpose"):
        with pytest.raises(InputError, match=r"x\.pth cannot be written"):
            cli.main(["convert", str(student), "-o", str(student / "x.pth"), "--to", layout])
