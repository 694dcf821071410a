"""Sources and outputs as people have them: never hurt, never mixed up, never the end of a run."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.cli.main import main
from cfpose_sdk.streaming.stream import StreamOptions


@pytest.mark.parametrize("option", ["--json", "--coco", "--csv"])
def test_an_output_that_is_a_source_or_another_output_is_refused(
    option: str, cfpose: Any, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, other = street / "market.jpg", street.parent / "first.jpg"
    shutil.copy(photo, other)  # what `--json *.jpg` gives to --json, and not to the sources
    before = photo.read_bytes()
    twice = street.parent / "twice"
    for output, cause in (
        ((option, photo), "one of the sources"),
        ((option, other), "a photo or video"),
        ((option, cfpose.models[1]), "one of the sources"),
        ((option, twice, "--openpose", f"{twice}/../twice/x/../o.json"), "cannot be written"),
        (("--json", twice, "--csv", street / ".." / "twice"), "give each its own"),
        ((option, street), "is a folder"),
    ):
        twice.with_suffix("").unlink(missing_ok=True)
        if cause == "cannot be written":
            twice.touch()
        assert cfpose.predict(street, *output) == 2
        assert cause in capsys.readouterr().err
    assert photo.read_bytes() == other.read_bytes() == before


def test_a_long_name_does_not_end_the_run(cfpose: Any, street: Path, tmp_path: Path) -> None:
    for letters in ("n" * 251, "ö" * 125):
        shutil.copy(street / "market.jpg", street / f"{letters}.jpg")
    code = cfpose.predict(
        street,
        "--openpose",
        tmp_path / "op",
        "--save",
        tmp_path / "drawn",
        "--json",
        tmp_path / "j",
    )
    assert code == 0
    assert len(json.loads((tmp_path / "j").read_text())) == 4
    for folder in ("op", "drawn"):
        assert len(list((tmp_path / folder).iterdir())) == 4


def test_same_names_stay_apart_in_every_output(cfpose: Any, street: Path, tmp_path: Path) -> None:
    shutil.copytree(street, tmp_path / "other")
    files = {option: tmp_path / option for option in ("json", "coco", "csv")}
    outputs = [word for option, file in files.items() for word in (f"--{option}", file)]
    assert cfpose.predict(street, tmp_path / "other", *outputs) == 0
    names = {f"{folder}/{name}" for folder in ("street", "other")
             for name in ("000000000139.png", "market.jpg")}  # fmt: skip
    assert {image["image"] for image in json.loads(files["json"].read_text())} == names
    assert {row["image_id"] for row in json.loads(files["coco"].read_text())} == names
    assert {row["image"] for row in csv.DictReader(io.StringIO(files["csv"].read_text()))} == names


@pytest.mark.parametrize("bad", ["", "n" * 300, "loop", "loop/x.jpg"])
def test_a_bad_source_never_stops_the_good_ones(
    bad: str,
    cfpose: Any,
    street: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert cfpose.predict(bad, street, "--save", "out", "--json", "o.json") == 1
    assert len(json.loads(Path("o.json").read_text())) == len(list(Path("out").iterdir())) == 2
    assert cfpose.predict(bad) == 2
    assert "Traceback" not in capsys.readouterr().err
    for option in ("--model", "--detector"):
        cfpose.models = []
        assert cfpose.predict(street, option, f"{bad or 'x' * 300}.onnx") == 2


def test_a_folder_says_what_it_passes_by(
    cfpose: Any, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cfpose.predict(street) == 0
    assert capsys.readouterr().err == ""
    (street / "x.heic").touch()
    assert cfpose.predict(street) == 0
    assert "passed by: 1 .heic" in capsys.readouterr().err


def people_of(file: Path) -> list[int]:
    return [len(image["people"]) for image in json.loads(file.read_text())]


def test_which_people_are_kept(
    cfpose: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.json"
    for options, people in (
        ((), [2, 2]),
        (("--max-people", 1), [1, 1]),
        (("--threshold", 1), [0, 0]),
        (("--nms", 0), [2, 2]),
    ):
        assert cfpose.predict(street, "--json", out, *options) == 0
        assert people_of(out) == people
    for wrong in (("--max-people", 0), ("--threshold", 1.5), ("--nms", -1), ("--line-width", 0)):
        assert cfpose.predict(street, *wrong) == 2
        assert "got" in capsys.readouterr().err


def test_only_visible_joints_are_written(cfpose: Any, street: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(street / "market.jpg"), np.full((128, 64, 3), 40, np.uint8))  # confidence 0.16
    files = {name: tmp_path / name for name in ("json", "coco", "csv", "openpose.json")}
    outputs = [w for name, f in files.items() for w in (f"--{name.removesuffix('.json')}", f)]
    assert cfpose.predict(street / "market.jpg", *outputs, "--only-visible") == 0
    ((person, _),) = (image["people"] for image in json.loads(files["json"].read_text()))
    assert person["xy"] == [None] * 17
    assert not any(person["visible"])
    assert json.loads(files["coco"].read_text())[0]["keypoints"] == [0] * 51
    assert len(files["csv"].read_text().splitlines()) == 1
    (frame,) = json.loads(files["openpose.json"].read_text())
    assert frame["people"][0]["pose_keypoints_2d"] == [0] * 75


def test_options_of_drawing(cfpose: Any, street: Path, tmp_path: Path) -> None:
    drawn = set()
    for options in ((), ("--boxes",), ("--labels",), ("--line-width", 6), ("--colours", "people")):
        assert cfpose.predict(street / "000000000139.png", "--save", tmp_path / "d", *options) == 0
        drawn.add((tmp_path / "d" / "000000000139.png").read_bytes())
    assert len(drawn) == 5


def test_a_file_on_stdout_has_it_alone(
    cfpose: Any, street: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cfpose.predict(street, "--json", "/dev/stdout") == 0
    out, err = capfd.readouterr()
    assert len(json.loads(out)) == 2
    assert "market.jpg: 2 people" in err


@pytest.mark.parametrize(
    ("options", "batch_frames"), [([], 8), (["--latency"], 1), (["--show"], 1)]
)
def test_files_are_posed_several_at_once_unless_latency_matters(
    options: list[str], batch_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[StreamOptions] = []

    def note(sources: list[str], *, streaming: StreamOptions, **_: Any) -> int:
        given.append(streaming)
        return 0

    monkeypatch.setattr(sys.modules[main.__module__], "predict", note)
    assert main(["predict", "a.jpg", *options]) == 0
    assert [streaming.batch_frames for streaming in given] == [batch_frames]


def test_latency_changes_no_answer(cfpose: Any, street: Path, tmp_path: Path) -> None:
    (street / "a-broken.jpg").write_bytes(b"no photo")
    answers = []
    for name, options in (("one.json", ["--latency"]), ("all.json", [])):
        assert cfpose.predict(street, "--json", tmp_path / name, *options) == 1
        images = json.loads((tmp_path / name).read_text())
        for image in images:
            del image["speed_ms"]
        answers.append(images)
    assert [image["image"] for image in answers[0]] == ["000000000139.png", "market.jpg"]
    assert answers[0] == answers[1]
