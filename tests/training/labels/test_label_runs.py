"""Runs of labelling: stopped and gone on with, refused, empty, from the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.errors import ArtifactError, DatasetError, InputError, TrainingError
from cfpose_training.cli import main
from cfpose_training.labels.labeller import Labeller, LabellerFile
from cfpose_training.labels.rules import LabelRules
from cfpose_training.labels.run import run_labelling
from tests.training.label_cases import adopted, edit, options

BOXES = ((10.0, 20.0, 60.0, 80.0), (150.0, 20.0, 60.0, 80.0))  # xywh


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, write_movenet: Callable[..., None]) -> Path:
    """A labeller that puts every joint on the red spot."""
    folder = tmp_path_factory.mktemp("models")
    write_movenet(folder / "foreign.onnx", np.zeros((17, 2)), np.full(17, 0.9))
    adopted(folder / "foreign.onnx", folder / "tiny_thunder.onnx", "movenet")
    return folder


@pytest.fixture
def data_root(tmp_path: Path, write_spotted: Callable[..., None]) -> Path:
    """Six photos of two people each, nobody labelled: people.json and images/."""
    spots = {n: np.array([[38.0 + n, 61.0], [181.0 - n, 58.0]]) for n in range(1, 7)}
    write_spotted(tmp_path / "data", (240, 120), BOXES, spots)
    return tmp_path / "data"


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    models: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_labelling(options(data_root, models))
    whole = (data_root / "labels.json").read_bytes()
    stopped = options(data_root, models, out=data_root / "stopped.json")
    look, calls = Labeller.look, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return look(*arguments)

    monkeypatch.setattr(Labeller, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_labelling(stopped)
    assert not stopped.out.exists()
    journal = data_root / "stopped.json.journal"
    assert len(journal.read_bytes().splitlines()) == 4  # what was asked, and three photos
    with journal.open("ab") as file:
        file.write(b'{"image_id":4,"size_wh":[2' + b" " * 100_000)  # a line half written
    resumed = dataclasses.replace(stopped, resume=True)
    assert run_labelling(dataclasses.replace(resumed, max_minutes=0)) is None  # no time
    run_labelling(resumed)
    assert stopped.out.read_bytes() == whole
    assert journal.read_bytes() == (data_root / "labels.json.journal").read_bytes()
    assert len(calls) == 7  # the three that were done were not looked at again
    run_labelling(resumed)
    assert len(calls) == 7


def test_another_run_is_not_gone_on_with(models: Path, data_root: Path) -> None:
    run_labelling(options(data_root, models))
    with pytest.raises(TrainingError, match=r"6 photos; go on with --resume"):
        run_labelling(options(data_root, models))
    with pytest.raises(TrainingError, match=r"views\[2\]\.scale was not there, now 1.15"):
        run_labelling(options(data_root, models, views=3, resume=True))
    with pytest.raises(TrainingError, match=r"min_side was 32.0, now 40.0"):
        run_labelling(options(data_root, models, min_side=40.0, resume=True))
    edit(data_root, lambda record: record["annotations"].pop())
    with pytest.raises(TrainingError, match="annotations was a file with SHA-256"):
        run_labelling(options(data_root, models, resume=True))
    (data_root / "labels.json.journal").write_text("[]\n")
    with pytest.raises(TrainingError, match="is no journal"):
        run_labelling(options(data_root, models, resume=True))


def test_a_run_that_ended_before_its_first_photo_is_begun_anew(
    models: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_onnxruntime(*_: Any) -> Any:
        raise ArtifactError("needs onnxruntime")

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "look", without_onnxruntime)
        with pytest.raises(ArtifactError):
            run_labelling(options(data_root, models))
    assert (data_root / "labels.json.journal").is_file()
    assert run_labelling(options(data_root, models, min_side=40.0)) is not None  # another one


def test_nothing_to_label_gives_an_empty_file(models: Path, data_root: Path) -> None:
    edit(data_root, lambda record: record["annotations"].clear())
    for who in ("unlabelled", "fill", "measure"):
        out = data_root / f"{who}.json"
        assert run_labelling(options(data_root, models, who=who, out=out)) is not None  # type: ignore[arg-type]
    assert read_annotations(data_root / "unlabelled.json")["annotations"] == []
    assert len(json.loads((data_root / "fill.json").read_text())["images"]) == 6


def test_what_cannot_be_used_is_named(models: Path, data_root: Path) -> None:
    with pytest.raises(DatasetError, match="either annotations"):
        options(data_root, models, annotations=None)
    with pytest.raises(DatasetError, match="weight must lie"):
        options(data_root, models, weight=1.5)
    with pytest.raises(InputError, match="min_score must lie"):
        LabelRules(min_score=1.5)
    with pytest.raises(InputError, match="1 to 6, got 7"):
        run_labelling(options(data_root, models, views=7))
    missing = (LabellerFile(data_root / "no_thunder.onnx"),)
    with pytest.raises(ArtifactError, match="cannot be read"):
        run_labelling(options(data_root, models, labellers=missing))
    with pytest.raises(DatasetError, match="give a model that labels"):
        options(data_root, models, labellers=())
    with pytest.raises(DatasetError, match="is no folder"):
        run_labelling(
            options(
                data_root, models, annotations=None, images=data_root / "none",
                detector=models / "tiny_thunder.onnx",
            )
        )  # fmt: skip
    edit(data_root, lambda record: record["images"][1].update(width=300))
    with pytest.raises(DatasetError, match="its annotations say 300 x 120"):
        run_labelling(options(data_root, models, out=data_root / "other.json"))
    (data_root / "images/3.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 6 photos are missing.*3\.png"):
        run_labelling(options(data_root, models))
    edit(
        data_root,
        lambda record: record["annotations"][0].update(
            keypoints=[20, 20, 2] * 17, num_keypoints=17
        ),
    )
    with pytest.raises(DatasetError, match="nothing to fill"):
        run_labelling(options(data_root, models, who="fill", holdout_every=1))
    edit(data_root, lambda record: record["categories"][0]["keypoints"].reverse())
    with pytest.raises(DatasetError, match="the labeller knows the 17"):
        run_labelling(options(data_root, models))


def test_the_command_labels_and_measures(
    models: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["label", "--data-root", str(data_root), "--images", "images", "--threads", "1"]
    common += ["--labeller", str(models / "tiny_thunder.onnx"), "--views", "2"]
    annotated = [*common, "--annotations", "people.json", "--limit", "4"]
    assert main([*annotated, "--only-unlabelled", "--out", str(data_root / "new.json")]) == 0
    assert "68 joints of 4 people, 4 looked at" in capsys.readouterr().out
    assert main([*annotated, "--measure", "--out", str(data_root / "m.json")]) == 0
    assert "0 people in 0 photos" in capsys.readouterr().out
    late = [*annotated, "--only-unlabelled", "--max-minutes", "1e-9"]
    assert main([*late, "--out", str(data_root / "late.json")]) == 0
    assert "--resume" in capsys.readouterr().out
    for wrong in (common, [*common, "--only-unlabelled"], annotated):
        with pytest.raises(InputError):
            main([*wrong, "--out", str(data_root / "wrong.json")])
