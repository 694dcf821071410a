"""Where images come from: arrays, photos, folders, globs, videos, cameras."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import cv2
import numpy as np

from cfpose_sdk.errors import InputError
from cfpose_sdk.image import Image, check_image, quiet_opencv, read_image

PathLike = str | os.PathLike[str]
Source = PathLike | int | Iterable[Image | PathLike]

_PHOTO_SUFFIXES = (
    ".bmp", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm")


@dataclass(frozen=True)
class Frame:
    """One checked image with its file name (None for an array) and the time its reading took."""

    image: Image
    name: str | None
    read_ms: float


def load_frame(item: Image | PathLike) -> Frame:
    """A BGR array or a photo's path → Frame. Raises ImageError."""
    start = time.perf_counter()
    if isinstance(item, str | os.PathLike):
        image, name = read_image(item), Path(item).name
    else:
        image, name = check_image(item), None
    return Frame(image, name, (time.perf_counter() - start) * 1000)


def open_frames(source: Source) -> Iterator[Frame]:
    """Frames of a photo, folder of photos, glob, video, camera index, URL, or of each item.

    The source is opened now, its frames are read one by one later. Raises InputError.
    """
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise InputError(
            f"a stream needs several images, got one array {source.shape}; use [image]"
        )
    if isinstance(source, int) or is_url(source):
        return open_video(source)
    if isinstance(source, str | os.PathLike):
        files = expand(source)
        if len(files) == 1 and is_video(files[0]):
            return open_video(files[0])
        return (frame for file in files for frame in _frames_of(file))
    if not isinstance(source, Iterable):
        raise InputError(
            f"a stream needs a path, a camera index, a URL or an iterable of images, "
            f"got {type(source).__name__}"
        )
    return (load_frame(item) for item in source)


def expand(source: PathLike) -> list[Path]:
    """The photos and videos that a path or glob names, sorted; a folder gives its photos.

    A single file is returned whatever its suffix. Raises InputError when there is nothing.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if _is_photo(file) and file.is_file())
        expected = "photos"
    elif path.exists() or not glob.has_magic(str(path)):
        return [path]  # a missing one is reported where it is read
    else:
        matches = map(Path, glob.glob(str(path), recursive=True))
        found = sorted(m for m in matches if (_is_photo(m) or is_video(m)) and m.is_file())
        expected = "photos or videos"
    if not found:
        raise InputError(f"{path} holds no {expected}; expected for instance .jpg or .png files")
    return found


def is_video(path: PathLike) -> bool:
    """Whether the suffix is a video's."""
    return Path(path).suffix.lower() in _VIDEO_SUFFIXES


def is_url(source: object) -> TypeGuard[str]:
    """Whether the source is a string like rtsp://…"""
    return isinstance(source, str) and "://" in source


def open_video(source: PathLike | int) -> Iterator[Frame]:
    """Frames of a video file, URL or camera index, named NAME-000000, NAME-000001, …

    Raises InputError when it cannot be opened or has no frame.
    """
    label = f"camera {source}" if isinstance(source, int) else os.fspath(source)
    if not isinstance(source, int) and not is_url(source) and not Path(source).is_file():
        raise InputError(f"{label} does not exist; expected a video file")
    with quiet_opencv():
        capture = cv2.VideoCapture(source if isinstance(source, int) else label)
        opened = capture.isOpened()
    if not opened:
        raise InputError(f"{label} cannot be opened as a video; check the file, address or index")
    first = _grab(capture, label, 0)
    if first is None:
        raise InputError(f"{label} was opened, but no frame can be read from it")
    return _rest(capture, label, first)


def _rest(capture: cv2.VideoCapture, label: str, first: Frame) -> Iterator[Frame]:
    try:
        count = 0
        frame: Frame | None = first
        while frame is not None:
            yield frame
            count += 1
            frame = _grab(capture, label, count)
    finally:
        capture.release()


def _grab(capture: cv2.VideoCapture, label: str, count: int) -> Frame | None:
    start = time.perf_counter()
    done, picture = capture.read()
    if not done:
        return None
    milliseconds = (time.perf_counter() - start) * 1000
    return Frame(check_image(picture), f"{Path(label).stem}-{count:06d}", milliseconds)


def _frames_of(file: Path) -> Iterator[Frame]:
    return open_video(file) if is_video(file) else iter([load_frame(file)])


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in _PHOTO_SUFFIXES
