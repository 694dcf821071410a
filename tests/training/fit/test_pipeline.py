"""`cfpose-train fit`: steps in order, each once; what is missing or different is named first."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk import errors
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.errors import DatasetError, ExportError, MissingDependencyError, TrainingError
from cfpose_training import cli
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import load_recipe
from cfpose_training.fit import pipeline
from cfpose_training.fit.pipeline import FitOptions, Fitted, run_fit
from cfpose_training.fit.plan import Pace, epochs_within, shortened
from cfpose_training.fit.score import Judge, Score

Children = list[list[str]]


@pytest.fixture
def recipe(tiny_recipe: Path, tiny_root: Path) -> Path:
    fit = f'[fit]\ndata_root = "{tiny_root}"\n\n[labels]'
    tiny_recipe.write_text(tiny_recipe.read_text().replace("[labels]", fit, 1))
    return tiny_recipe


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    """No child process runs: the export's leaves an empty artifact; scores are made up."""
    ran: Children = []

    def child(command: str, arguments: Sequence[str]) -> None:
        ran.append([command, *arguments])
        key = "--output" if command == "export" else "--out"
        Path(arguments[list(arguments).index(key) + 1]).write_text("{}")

    def score(
        judge: Judge, model: Path, names: Sequence[str] = (), *, threads: int | None = None
    ) -> Score:
        return Score(len(names) or 17, 0.5, 0.75)

    monkeypatch.setattr(pipeline, "_child", child)
    monkeypatch.setattr(Judge, "score", score)
    return ran


def options(folder: Path, minutes: float = float("inf")) -> FitOptions:
    return FitOptions(folder, minutes, accelerator="cpu", threads=1)


def test_a_fit_ends_with_artifact_pictures_and_table(
    recipe: Path, children: Children, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--recipe", str(recipe), "--out", str(out), "--accelerator", "cpu"]
    assert cli.main(["fit", *arguments, "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-4:] == [
        "                         joints       AP     AP50",
        "after                        17    0.500    0.750",
        "on 2 people of the development photos",
        f"wrote {out / 'tiny.onnx'}",
    ]
    assert "epoch 1 of 2: loss " in said.err
    assert "dev_AP" in said.err
    (command,) = children
    assert command[:3] == ["export", "onnx", "--checkpoint"]
    assert json.loads((out / "report.json").read_text())["whole"]["AP"] == 0.5
    assert load_pose(out / "finished.safetensors")[1].calibrated
    for name in ("batch0.jpg", "dev.jpg", "curves.png", "log.csv", "student.safetensors"):
        assert (out / "stage1" / name).stat().st_size, name
    listed = json.loads((out / "proof" / "people.json").read_text())
    assert len(listed) == 2
    assert all(Path(name).is_file() for name in listed)


def test_a_fit_goes_on_where_it_stood(
    recipe: Path, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "finish_student", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_fit(recipe, options(out))
    assert not children
    student = (out / "stage1" / "student.safetensors").read_bytes()
    monkeypatch.setattr(pipeline, "train_stage1", interrupted)
    first = run_fit(recipe, options(out))
    monkeypatch.setattr(pipeline, "finish_student", interrupted)
    assert run_fit(recipe, options(out)) == first
    assert len(children) == 1
    assert (out / "stage1" / "student.safetensors").read_bytes() == student


def test_another_recipe_in_the_same_folder_is_refused(
    recipe: Path, children: Children, tmp_path: Path
) -> None:
    run_fit(recipe, options(tmp_path / "out"))
    recipe.write_text(recipe.read_text().replace("lr = 3e-3", "lr = 1e-3"))
    with pytest.raises(TrainingError, match=r"stage1.lr was 0.003, now 0.001; give another --out"):
        run_fit(recipe, options(tmp_path / "out"))


def test_labels_are_written_first_by_the_command(
    recipe: Path, children: Children, tiny_root: Path, tmp_path: Path
) -> None:
    step = '[[fit.labels]]\nimages = "more"\ndetector = "d.onnx"\n'
    step += 'labeller = ["l.onnx", "movenet:m.onnx", "default"]\n'
    text = recipe.read_text().replace("[labels]", f'{step}out = "more.json"\n\n[labels]', 1)
    recipe.write_text(text)
    run_fit(recipe, options(tmp_path / "out"))
    label, export = children
    assert label == [
        "train", "label", "--data-root", str(tiny_root), "--images", "more", "--out",
        str(tiny_root / "more.json"), "--resume", "--labeller", str(recipe.parent / "l.onnx"),
        f"movenet:{recipe.parent / 'm.onnx'}", str(model_file("default")),
        "--detector", str(recipe.parent / "d.onnx"),
    ]  # fmt: skip
    assert export[0] == "export"


@pytest.mark.parametrize(
    ("missing", "extra"), [("onnx", "export"), ("onnxscript", "export"), ("onnxruntime", "cpu")]
)
def test_a_missing_package_is_named_before_anything_starts(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str
) -> None:
    monkeypatch.setattr(errors, "is_installed", lambda name: name != missing)
    with pytest.raises(MissingDependencyError, match=rf"{missing}.*cfpose-sdk\[{extra}\]"):
        run_fit(recipe, options(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ('init = "defualt"', "defualt is no bundled model"),
        ('init = "gone.safetensors"', r"gone.safetensors does not exist"),
        ("init_share = 1.0", "fit.init_share is 1.0, expected 0 to less than 1"),
        ("init_share = nan", "fit.init_share is nan, expected a number"),
        ('innit = "default"', "innit"),
        ("data_root = 3", "fit.data_root"),
    ],
)
def test_a_wrong_step_is_named(recipe: Path, tmp_path: Path, fit: str, message: str) -> None:
    text = recipe.read_text()
    line = next(line for line in text.splitlines() if line.startswith("data_root"))
    text = text.replace(line, fit if fit.startswith("data_root") else f"{line}\n{fit}")
    recipe.write_text(text)
    with pytest.raises(errors.CfposeError, match=message):
        run_fit(recipe, options(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_frozen_layers_without_a_start_are_named(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text()
    line = next(line for line in text.splitlines() if line.startswith("hrnet"))
    recipe.write_text(text.replace(line, "lite = { neck = [8, 8, 8], frozen = 3 }", 1))
    with pytest.raises(TrainingError, match=r'give init = "default" or a file, in \[fit\]'):
        run_fit(recipe, options(tmp_path / "out"))


def test_a_failed_child_is_named(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cfpose-export inspect .*x.onnx ended with code 2"):
        pipeline._child("export", ["inspect", str(tmp_path / "x.onnx")])


def test_the_epochs_are_planned_to_end_in_time(
    recipe: Path, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(step_s=1.0, steps=10, measure_s=2.0, device="cpu")
    assert (pace.epoch_s, pace.end_s) == (12.0, 57.0)
    # 10 epochs and the end: 177 s, with a fifth in reserve
    assert epochs_within(pace, 1.2 * 177, 40) == 10
    assert epochs_within(pace, 1.2 * 176, 40) == 9
    assert epochs_within(pace, 1.0, 40) == 1
    assert epochs_within(pace, float("inf"), 40) == 40
    monkeypatch.setattr(pipeline, "measure_pace", lambda *_: Pace(0.1, 1, 1000.0, "cpu"))
    run_fit(recipe, options(tmp_path / "out", minutes=60))
    claim = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert claim["epochs"] == 1
    assert (tmp_path / "out/stage1/log.csv").read_text().count("\n") == 2


def test_a_shortened_run_keeps_its_shape(tiny_recipe: Path) -> None:
    optim = dataclasses.replace(
        load_recipe(tiny_recipe).stage1, epochs=40, mild_epochs=10, warmup_steps=100,
        milestones=(20, 30),
    )  # fmt: skip
    short = shortened(optim, 10)
    assert (short.epochs, short.mild_epochs, short.warmup_steps) == (10, 2, 25)
    assert short.milestones == (5, 8)


def test_the_table_compares_the_joints_that_both_know() -> None:
    few, many = Score(3, 0.4, 0.6), Score(5, 0.5, 0.7)
    change = (0.05, -0.01, 0.111)
    fitted = Fitted(Path("x.onnx"), few, Score(3, 0.45, 0.65), many, True, 9, change)
    assert fitted.text.splitlines()[1:] == [
        "before                        3    0.400    0.600",
        "after, the same joints        3    0.450    0.650",
        "after                         5    0.500    0.700",
        "changed by +0.050, 95 % interval -0.010 to +0.111, paired by photo",
        "on 9 people of the development photos",
    ]
    unknown = Fitted(Path("x.onnx"), Score(0, None, None), many, many, False, 9)
    assert unknown.text.splitlines()[1:] == [
        "after                         5    0.500    0.700",
        "on 9 people of the development photos; confidence is uncalibrated",
    ]
    assert "uncalibrated" in Fitted(Path("x.onnx"), None, None, None, False, 0).text


def test_photos_of_another_size_end_a_fit_before_it_trains(
    recipe: Path, children: Children, tiny_root: Path, tmp_path: Path
) -> None:
    photo = tiny_root / "images" / "000000000003.png"
    cv2.imwrite(str(photo), np.zeros((100, 140, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"000000000003.png has 140 x 100.*data convert"):
        run_fit(recipe, options(tmp_path / "out"))
    assert not (tmp_path / "out" / "stage1").exists()


def test_a_recipe_may_be_mended_as_long_as_nothing_was_made_by_it(
    recipe: Path, children: Children, tmp_path: Path
) -> None:
    right = recipe.read_text()
    recipe.write_text(right.replace('images = "images"', 'images = "imags"'))
    with pytest.raises(DatasetError, match="imags"):
        run_fit(recipe, options(tmp_path / "out"))
    recipe.write_text(right)
    assert run_fit(recipe, options(tmp_path / "out")) is not None
