"""What cfpose-bench refuses, and its help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cfpose_bench.cli import main
from cfpose_sdk import commands
from cfpose_sdk.errors import DatasetError, InputError
from cfpose_sdk.skeleton import CROWDPOSE_14
from tests.bench.known_answer import run


def test_a_model_that_loses_a_box_is_refused(
    dataset_folder: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stand_in.predict
    monkeypatch.setattr(
        stand_in, "predict", lambda self, image, boxes: whole(self, image, boxes)[1:]
    )
    with pytest.raises(DatasetError, match="1 poses for 2 boxes"):
        run(dataset_folder)


def test_a_model_of_another_skeleton_is_refused(dataset_folder: Path, stand_in: Any) -> None:
    stand_in.skeleton = CROWDPOSE_14
    with pytest.raises(DatasetError, match="14 keypoints"):
        run(dataset_folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "crowdpose", "--data-root", "none"], "crowdpose is not in none"),
        (["--dataset", "demo", "--min-ap", "0.1"], "--min-ap needs keypoints"),
        (["--dataset", "demo", "--max-drift", "1"], "--max-drift needs --reference"),
        (["--dataset", "demo", "--baseline", "none.json"], "--baseline none.json does not exist"),
        (["--dataset", "demo", "--threads", "-1"], "threads must be at least 1"),
        (["--dataset", "demo", "--threads", "0"], "threads must be at least 1, got 0"),
        (["--dataset", "demo", "--seed", "-1"], "seed must be at least 0, got -1"),
        (
            ["--dataset", "demo", "--preset", "paper", "--boxes", "gt", "--joint-threshold", "0.2"],
            "--preset paper counts joints above 0.01, got --joint-threshold 0.2",
        ),
        (["--dataset", "demo", "--rounds", "0"], "rounds must be at least 1"),
        (["--dataset", "demo", "--preset", "paper"], "needs the published boxes"),
        (["--dataset", "x", "--max-p99-ms", "nan"], "--max-p99-ms must be a number"),
        (["--dataset", "x", "--min-ap", "nan"], "--min-ap must be a number"),
        (["--dataset", "none.json"], "cannot be read"),
    ],
)
def test_wrong_use_is_a_plain_sentence_and_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["cfpose-bench", *arguments])
    assert commands.bench() == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_unknown_peers_and_absent_files_are_refused(dataset_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no peer is called 'openpose'"):
        main(["--dataset", str(dataset_folder), "--model", "openpose:x.onnx"])
    with pytest.raises(ValueError, match="does not exist"):
        main(["--dataset", str(dataset_folder), "--model", f"movenet:{tmp_path}/lightning.onnx"])
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_help_names_every_promised_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = ["dataset", "data-root", "images", "model", "boxes", "detector", "limit", "json"]
    flags += ["html", "csv", "min-ap", "max-drift", "max-p99-ms", "baseline", "reference"]
    flags += ["preset", "flip-test", "threads", "rounds", "repeats", "resume", "peer-python"]
    for flag in flags:
        assert f"--{flag} " in text


def test_help_lists_the_sub_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in ("boxes", "simcc", "peers", "runtimes"):
        assert f"\n    {command} " in shown
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: cfpose-bench {command} ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["simcc", "--dataset", "demo"],  # an option of the bare form
        ["--dataset", "demo", "simcc", "a.onnx", "-o", "b.onnx"],  # both forms at once
        ["--dataset", "demo", "more"],
    ],
)
def test_a_sub_command_and_a_measurement_do_not_mix(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().out == ""
