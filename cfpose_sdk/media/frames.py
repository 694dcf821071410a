"""Frame, one image with its name; Footage, an opened source; the files of a path or glob."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from cfpose_sdk.errors import ImageError, InputError
from cfpose_sdk.media.image import Image, check_image, read_image

PathLike = str | os.PathLike[str]
Source = PathLike | int | Iterable[Image | PathLike]
_PHOTO_SUFFIXES = (
    ".bmp", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # Python's stand-ins for bytes of such a file name


@dataclass(frozen=True)
class Frame:
    """One checked image: its file name (None for an array) and the time its reading took.

    Of a video also its `number` from 0, and `time_s` since the first frame (the container's time
    stamp; the clock's for a camera or URL).
    """

    image: Image
    name: str | None
    read_ms: float
    number: int | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class Unread:
    """The error in the place of a photo or frame that could not be read."""

    error: InputError


Item = Frame | Unread


@dataclass(frozen=True)
class Footage:
    """An opened source: its items in order, and its rate and length if known.

    `items` is a generator: closing it, or `close`, frees files and devices.
    """

    items: Iterator[Item]
    close: Callable[[], None]
    fps: float | None = None  # of one video; None where it is unknown
    count: int | None = None  # items, where it is known
    live: bool = False  # a camera or URL: no end is announced
    own: bool = True  # False: a caller's iterable, which should run in the caller's thread


def load_frame(item: Image | PathLike) -> Frame:
    """A BGR array or a photo's path → Frame. Raises ImageError."""
    start = time.perf_counter()
    if isinstance(item, str | os.PathLike):
        image, name = _read_photo(item), printable(Path(item).name)
    else:
        image, name = check_image(item), None
    return Frame(image, name, (time.perf_counter() - start) * 1000)


def expand(source: PathLike) -> list[Path]:
    """The photos and videos that a path or glob names, sorted; a folder gives its photos.

    A single file is returned whatever its suffix. Raises InputError when there is nothing.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _is_photo(file) and file.is_file())
        expected = "photos"
    elif path.exists() or not glob.has_magic(str(path)):
        return [path]  # a missing one is reported where it is read
    else:
        matches = map(Path, glob.glob(str(path), recursive=True))
        files = sorted(m for m in matches if (_is_photo(m) or is_video(m)) and m.is_file())
        expected = "photos or videos"
    if not files:
        known = _PHOTO_SUFFIXES + (() if expected == "photos" else _VIDEO_SUFFIXES)
        raise InputError(f"{path} holds no {expected}; they are known by {', '.join(known)}")
    return files


def is_video(path: PathLike) -> bool:
    """Whether the suffix is a video's."""
    return Path(path).suffix.lower() in _VIDEO_SUFFIXES


def is_url(source: object) -> TypeGuard[str]:
    """Whether the source is a string such as rtsp://…"""
    return isinstance(source, str) and "://" in source


def printable(name: str) -> str:
    """A file name that every file and terminal accepts: what is not UTF-8 becomes U+FFFD."""
    return _NOT_UTF8.sub("\ufffd", name)


def opencv_path(path: PathLike) -> str:
    """A video's path, or its URL, as OpenCV and its FFmpeg take it.

    Raises InputError when it is not UTF-8: OpenCV would end the process.
    """
    text = os.fspath(path)
    # of a relative name, 12:30.mp4 say, FFmpeg would take the start for a protocol
    name = text if is_url(text) else os.path.abspath(text)
    try:
        name.encode()
    except UnicodeError as error:
        raise InputError(
            f"{printable(text)}: OpenCV takes no video path that is not UTF-8; rename the file or "
            f"its folder"
        ) from error
    return name


def _read_photo(path: PathLike) -> Image:
    """`read_image`; for a name that is no photo's, the error names the suffixes that are."""
    try:
        return read_image(path)
    except ImageError as error:
        if _is_photo(Path(path)) or not Path(path).is_file():
            raise
        hint = f"videos are known by {', '.join(_VIDEO_SUFFIXES)}"
        if is_video(path):
            hint = "a video is for stream"
        raise ImageError(f"{error}; {hint}") from error


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in _PHOTO_SUFFIXES
