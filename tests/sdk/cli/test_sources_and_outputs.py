"""Sources and outputs as people have them: never hurt, never mixed up, never the end of a run."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest


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
