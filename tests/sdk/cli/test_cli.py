"""The commands: exit codes, files, and what is printed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import commands
from cfpose_sdk.formats import ROW_FIELDS
from cfpose_sdk.media.image import read_image


def test_one_line_a_photo(cfpose: Any, street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cfpose.predict(street) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("000000000139.png: 2 people, ")
    assert first.endswith(" ms")
    assert second.startswith("market.jpg: 2 people, ")
    assert err == ""  # piped: no progress


def test_files(cfpose: Any, street: Path, tmp_path: Path) -> None:
    coco, full, table = tmp_path / "c.json", tmp_path / "deep" / "f.json", tmp_path / "t.csv"
    code = cfpose.predict(
        street, "--coco", coco, "--json", full, "--csv", table, "--save", tmp_path / "drawn"
    )
    assert code == 0
    results = json.loads(coco.read_text())
    assert [result["image_id"] for result in results] == [139, 139, "market.jpg", "market.jpg"]
    for result in results:
        assert result.keys() == {"image_id", "category_id", "keypoints", "score", "bbox"}
        assert result["category_id"] == 1
        assert len(result["keypoints"]) == 51
    assert results[0]["bbox"] == [8, 8, 32, 112]
    images = json.loads(full.read_text())
    assert [image["image"] for image in images] == ["000000000139.png", "market.jpg"]
    mean = np.mean(images[0]["people"][0]["confidence"])
    assert results[0]["score"] == pytest.approx(0.9 * mean, rel=1e-5)
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 17
    assert list(rows[0]) == list(ROW_FIELDS)
    assert float(rows[0]["x"]) == results[0]["keypoints"][0]
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [file.name for file in drawn] == ["000000000139.png", "market.jpg"]
    assert (read_image(drawn[0]) != read_image(street / drawn[0].name)).any()


def test_broken_photos_among_good_ones(
    cfpose: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (street / "broken.jpg").write_text("no photo")
    coco = tmp_path / "c.json"
    assert cfpose.predict(street, street / "absent.jpg", "--coco", coco) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert [line for line in err.splitlines() if "broken.jpg" in line and "not an image" in line]
    assert "absent.jpg does not exist" in err
    assert "2 of 4 sources" in err
    assert len(json.loads(coco.read_text())) == 4
    assert cfpose.predict(street / "broken.jpg") == 2


def test_folders_and_globs_without_photos_among_good_ones(
    cfpose: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, coco = tmp_path / "empty", tmp_path / "c.json"
    empty.mkdir()
    assert cfpose.predict(empty, street, tmp_path / "*.jpg", "--coco", coco) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "empty holds no photos" in err
    assert "*.jpg holds no photos or videos" in err
    assert "2 of 4 sources" in err
    before = coco.read_text()
    assert len(json.loads(before)) == 4
    assert cfpose.predict(empty, tmp_path / "absent.jpg", "--coco", coco) == 2
    assert coco.read_text() == before  # a run that read nothing replaces nothing
    assert "2 of 2 sources" in capsys.readouterr().err


def test_photos_whose_names_are_not_utf8(cfpose: Any, street: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "out", "caf\udce9.jpg"  # café of Latin-1, as Python reads it
    try:
        (street / "market.jpg").rename(street / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    code = cfpose.predict(street / name, "--save", out, "--json", out / "f.json", "--csv",
                          out / "t.csv", "--coco", out / "c.json")  # fmt: skip
    assert code == 0
    (image,) = json.loads((out / "f.json").read_text(encoding="utf-8"))
    assert image["image"] == "caf\ufffd.jpg"
    assert (out / "caf\ufffd.jpg").is_file()
    assert "caf\ufffd.jpg" in (out / "t.csv").read_text(encoding="utf-8")


def test_same_names_do_not_overwrite_each_other(cfpose: Any, street: Path, tmp_path: Path) -> None:
    shutil.copytree(street, tmp_path / "other")
    assert cfpose.predict(street, tmp_path / "other", "--save", tmp_path / "drawn") == 0
    names = sorted(file.name for file in (tmp_path / "drawn").iterdir())
    assert names == ["000000000139-2.png", "000000000139.png", "market-2.jpg", "market.jpg"]


def test_sources_are_never_overwritten(
    cfpose: Any, street: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (street / "market.jpg").read_bytes()
    assert cfpose.predict(street, "--save", street) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (street / "market.jpg").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_to_sources_are_never_overwritten(
    cfpose: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "market.jpg").symlink_to(street / "market.jpg")
    for folder in (links, street):  # the link's place and the photo's
        assert cfpose.predict(links, "--save", folder) == 2
        assert "would be overwritten" in capsys.readouterr().err
    assert (links / "market.jpg").is_symlink()


def test_an_output_that_cannot_be_opened_leaves_nothing_of_the_others(
    cfpose: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    table = street / "market.jpg" / "t.csv"
    assert cfpose.predict(street, "--json", out / "f.json", "--csv", table) == 2
    assert "t.csv cannot be written" in capsys.readouterr().err
    assert not out.exists()  # found out before any work begins


def test_unwritable_output_is_an_error(
    cfpose: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cfpose.predict(street, "--save", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_videos(cfpose: Any, tmp_path: Path) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 128))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for _ in range(2):
        writer.write(np.full((128, 64, 3), 90, np.uint8))
    writer.release()
    coco = tmp_path / "c.json"
    assert cfpose.predict(clip, "--coco", coco, "--save", tmp_path / "drawn") == 0
    ids = [result["image_id"] for result in json.loads(coco.read_text())]
    assert ids == ["clip-000000"] * 2 + ["clip-000001"] * 2
    assert [file.name for file in (tmp_path / "drawn").iterdir()] == ["clip.avi"]


def test_damaged_videos_and_photos_are_one_complaint_each(
    cfpose: Any,
    street: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = tmp_path / "good.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 128))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for n in range(12):
        writer.write(np.full((128, 64, 3), 20 * n, np.uint8))
    writer.release()
    data = clip.read_bytes()
    frames = [at for at in range(len(data)) if data[at : at + 4] == b"00dc"]
    (tmp_path / "cut.avi").write_bytes(data[: frames[8]])
    damaged = bytearray(data)
    damaged[frames[5] + 8 : frames[6] - 8] = bytes(frames[6] - frames[5] - 16)
    (tmp_path / "damaged.avi").write_bytes(damaged)
    photo = (street / "000000000139.png").read_bytes()
    (street / "flipped.png").write_bytes(photo[:2000] + b"flipped" + photo[2007:])
    (street / "short.png").write_bytes(photo[:-500])
    (street / "empty.jpg").write_bytes(b"")
    bad = ["cut.avi", "damaged.avi", "flipped.png", "short.png", "empty.jpg"]
    output = tmp_path / "f.json"
    videos = [tmp_path / "cut.avi", tmp_path / "damaged.avi", clip]
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL")
    assert cfpose.predict(street, *videos, "--json", output) == 1
    assert os.environ["OPENCV_FFMPEG_LOGLEVEL"] == "-8"
    complaints = capfd.readouterr().err.splitlines()
    for name in bad:
        assert sum(name in line for line in complaints) == 1
    assert complaints[-1].startswith("cfpose: 5 of 8 sources could not be read")
    assert len(complaints) == 6  # neither OpenCV, libpng nor FFmpeg added a line
    images = [image["image"] for image in json.loads(output.read_text())]
    assert images[:2] == ["000000000139.png", "market.jpg"]
    assert sum(name.startswith("good-") for name in images) == 12
    assert 9 <= sum(name.startswith("damaged-") for name in images) <= 11
    assert 7 <= sum(name.startswith("cut-") for name in images) <= 8
    assert cfpose.predict(street / "flipped.png", street / "empty.jpg") == 2


def test_bad_models_are_one_line_and_exit_2(
    cfpose: Any, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    for model in (tmp_path / "bad.onnx", tmp_path / "absent.onnx", "model.engine"):
        cfpose.models = ["--model", str(model)]
        assert cfpose.predict(street) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("cfpose: ")
        assert len(err.splitlines()) == 1


def test_show_without_a_display_says_what_to_do(
    cfpose: Any,
    street: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def imshow(*_: object) -> None:
        raise cv2.error("no window")

    monkeypatch.setattr(cv2, "imshow", imshow, raising=False)
    assert cfpose.predict(street, "--show") == 2
    assert "opencv-python" in capsys.readouterr().err
    shown: list[object] = []
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q"), raising=False)
    assert cfpose.predict(street, "--show") == 0
    assert len(shown) == 1  # q stops


def test_usage_errors_and_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, text in (
        ([], 2, "required"),
        (["predict"], 2, "SOURCE"),
        (["predict", "x.jpg", "--device", "tpu"], 2, "tpu"),
        (["predict", "--help"], 0, "(default: auto)"),
        (["doctor", "--help"], 0, "(default: False)"),
    ):
        monkeypatch.setattr(sys, "argv", ["cfpose", *arguments])
        with pytest.raises(SystemExit) as exit_:
            commands.cfpose()
        assert exit_.value.code == code
        assert text in "".join(capsys.readouterr())


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently there")
def test_a_closed_pipe_is_quiet(street: Path, pose_model: Path, finder_model: Path) -> None:
    program = (
        "import sys; from cfpose_sdk import commands; "
        f"sys.argv = ['cfpose', 'predict', {str(street)!r}, '--model', {str(pose_model)!r}, "
        f"'--detector', {str(finder_model)!r}]; sys.exit(commands.cfpose())"
    )
    read, write = os.pipe()
    os.close(read)
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=buffered,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert run.returncode == 0  # the code is about the work alone
    assert run.stderr == b""
