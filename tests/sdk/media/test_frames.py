"""Where images come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import ImageError, InputError
from cfpose_sdk.media.frames import Frame, expand, is_video, load_frame, opencv_path, printable
from cfpose_sdk.media.sources import open_frames, open_source

GREYS = [40, 120, 200]


def photo(level: int) -> np.ndarray:
    return np.full((48, 64, 3), level, np.uint8)


def levels(frames: Any) -> list[int]:
    return [round(float(frame.image.mean()), -1) for frame in frames]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.png, a.png, c.JPG, a text, a subfolder, and a clip."""
    path = tmp_path / "photos"
    (path / "sub.jpg").mkdir(parents=True)
    for name, level in zip(("a.png", "b.png", "c.JPG"), GREYS, strict=True):
        cv2.imwrite(str(path / name), photo(level))
    (path / "notes.txt").write_text("no photo")
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Three frames in an AVI."""
    path = tmp_path / "123.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for level in GREYS:
        writer.write(photo(level))
    writer.release()
    return path


def test_one_item(folder: Path) -> None:
    frame = load_frame(folder / "a.png")
    assert frame.name == "a.png"
    assert frame.read_ms > 0
    array = photo(7)
    assert load_frame(array).image is array
    assert load_frame(array).name is None


def test_folders_globs_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.png", "b.png", "c.JPG"]
    assert [file.name for file in expand(folder)] == names
    assert [file.name for file in expand(str(folder / "*"))] == names
    assert [file.name for file in expand(folder / "[ab].png")] == names[:2]
    assert [file.name for file in expand(str(folder.parent / "**" / "b.*"))] == ["b.png"]
    assert expand(folder / "notes.txt") == [folder / "notes.txt"]
    assert expand("absent.jpg") == [Path("absent.jpg")]
    cv2.imwrite(str(folder / "odd[1].png"), photo(1))
    assert expand(folder / "odd[1].png") == [folder / "odd[1].png"]  # a file, not a pattern


def test_streams_of_photos(folder: Path) -> None:
    for source in (folder, str(folder / "*.*"), sorted(folder.glob("?.*"))):
        assert levels(open_frames(source)) == GREYS
    assert levels(open_frames([photo(40), photo(120)])) == GREYS[:2]
    assert levels(open_frames(np.stack([photo(40), photo(120)]))) == GREYS[:2]
    assert levels(open_frames(folder / "b.png")) == GREYS[1:2]


def test_videos(clip: Path) -> None:
    assert is_video(clip)
    frames: list[Frame] = list(open_frames(clip))
    assert levels(frames) == GREYS
    assert [frame.name for frame in frames] == ["123-000000", "123-000001", "123-000002"]
    assert levels(open_frames(str(clip.parent / "*.avi"))) == GREYS


@pytest.mark.parametrize("suffix", [".wmv", ".flv", ".3gp", ".m2ts", ".ogv", ".asf", ".WMV"])
def test_a_video_of_any_common_suffix_is_one(clip: Path, suffix: str) -> None:
    assert levels(open_frames(clip.rename(clip.with_suffix(suffix)))) == GREYS


def test_what_is_no_photo_by_its_name_says_what_would_be(clip: Path, folder: Path) -> None:
    with pytest.raises(ImageError, match=r"123\.avi is not an image.*a video is for stream"):
        load_frame(clip)
    with pytest.raises(ImageError, match=r"notes\.txt is not an image.*\.mp4.*\.wmv"):
        load_frame(folder / "notes.txt")
    with pytest.raises(ImageError) as absent:
        load_frame(folder / "absent.txt")
    assert str(absent.value).endswith("absent.txt does not exist; expected a photo")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no colon in names")
def test_a_colon_in_a_relative_name_is_no_protocol(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip.rename(clip.with_name("12:30:00.avi"))
    monkeypatch.chdir(clip.parent)
    assert levels(open_frames("12:30:00.avi")) == GREYS


@pytest.mark.parametrize(
    "source",
    ["absent.mp4", "bad.mp4", "absent.jpg", "absent/", "absent/*.jpg", 4321, 3.5, None],
)
def test_unusable_sources_fail_at_once(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.mp4").write_bytes(b"nonsense" * 100)
    with pytest.raises(InputError):
        open_source(source)


def test_empty_folder_and_single_arrays(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no photos"):
        open_frames(tmp_path)
    for array in (photo(1), photo(1)[..., 0]):
        with pytest.raises(InputError, match=r"use \[image\]"):
            open_frames(array)


def test_a_broken_photo_is_reported_where_it_is(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"broken")
    frames = open_frames(folder)
    assert next(frames).name == "a.png"
    with pytest.raises(ImageError, match=r"b\.png"):
        next(frames)


def test_names_that_are_not_utf8(clip: Path, tmp_path: Path) -> None:
    assert printable("ünï 文.jpg") == "ünï 文.jpg"
    assert opencv_path("rtsp://camera:80/a") == "rtsp://camera:80/a"
    name = "caf\udce9"  # café of Latin-1, as Python reads it from a folder
    with pytest.raises(InputError, match=r"caf\ufffd\.mp4.*not UTF-8"):
        opencv_path(f"{name}.mp4")
    try:
        cv2.imencode(".png", photo(9))[1].tofile(tmp_path / f"{name}.png")
        moved = clip.rename(tmp_path / f"{name}.avi")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (frame,) = open_frames(tmp_path / f"{name}.png")
    assert frame.name == "caf\ufffd.png"
    with pytest.raises(InputError, match="not UTF-8"):
        open_frames(moved)
