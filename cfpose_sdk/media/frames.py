"""Frame, one image with its name; Footage, an opened source; the files of a path or glob."""

from __future__ import annotations

import glob
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.errors import ImageError, InputError
from cfpose_sdk.files import (
    PHOTO_SUFFIXES,
    VIDEO_SUFFIXES,
    Kind,
    as_path,
    printable,
    shown,
    what_is_at,
)
from cfpose_sdk.media.gpu_image import OtherImage, gpu_image
from cfpose_sdk.media.image import Image, check_image, decode_image, read_image
from cfpose_sdk.media.names import PathLike, base_name, fetch_photo, is_url

Picture = Image | OtherImage | PathLike
Source = PathLike | int | Iterable[Picture]


@dataclass(frozen=True)
class Frame:
    """One checked image: its file name (None for an array) and the time its reading took.

    Of a video also its `number` from 0, and `time_s` since the first frame (the container's time
    stamp; the clock's for a camera or URL). `take` counts how often a camera was lost before it.
    """

    image: Image | GpuImage
    name: str | None
    read_ms: float
    number: int | None = None
    time_s: float | None = None
    take: int = 0


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


def load_frame(item: Picture, name: str | None = None) -> Frame:
    """A BGR array or a photo's path → Frame, named by its file where no name is given.

    An array in a GPU's memory stays there (`gpu_image`). Raises ImageError, for a web address too.
    """
    start = time.perf_counter()
    if is_url(item):
        raise ImageError(
            f"{shown(item)} is a web address; expected a photo's path or an array: download it, or "
            f"pass it to stream()"
        )
    image: Image | GpuImage | None
    if isinstance(item, str | os.PathLike):
        image, name = _read_photo(item), printable(name or base_name(item))
    elif (image := gpu_image(item)) is None:
        image = check_image(item)
    return Frame(image, name, (time.perf_counter() - start) * 1000)


def fetch_frame(url: str, name: str | None, timeout_s: float) -> Frame:
    """The photo behind a web address → Frame. Raises ImageError."""
    start = time.perf_counter()
    image = decode_image(fetch_photo(url, timeout_s), shown(url))
    return Frame(image, name or base_name(url), (time.perf_counter() - start) * 1000)


def expand(source: PathLike) -> list[Path]:
    """The photos and videos that a path or glob names, sorted; a folder gives its photos.

    A single file is returned whatever its suffix. Raises InputError when there is nothing, or where
    the file system does not answer.
    """
    path = as_path(source)
    magic = glob.has_magic(str(path))
    kind = _kind_of_source(source, magic)
    if kind == "folder":
        files = [file for file in _entries(path) if _is_photo(file) and _may_be_file(file)]
        expected = "photos"
    elif kind != "nothing" or not magic:
        return [path]  # a missing one is reported where it is read
    else:
        files = sorted(
            match
            for match in map(Path, glob.glob(str(path), recursive=True))
            if (_is_photo(match) or is_video(match)) and _may_be_file(match)
        )
        expected = "photos or videos"
    if not files:
        known = PHOTO_SUFFIXES + (() if expected == "photos" else VIDEO_SUFFIXES)
        raise InputError(f"{shown(path)} holds no {expected}; they are known by {', '.join(known)}")
    return files


def passed_by(source: PathLike) -> dict[str, int]:
    """How many files of a folder `expand` leaves out, by suffix; {} for what is no folder.

    Raises InputError where the file system does not answer.
    """
    path = Path(os.fsdecode(source))
    if not os.fspath(source) or what_is_at(path) != "folder":
        return {}
    left = [
        file.suffix.lower() or file.name
        for file in _entries(path)
        if not _is_photo(file) and not file.name.startswith(".") and _may_be_file(file)
    ]
    return dict(Counter(left))


def _kind_of_source(source: PathLike, magic: bool) -> Kind:
    try:
        return what_is_at(source)
    except InputError:
        if magic and os.fspath(source):  # a pattern may be longer than a name
            return "nothing"
        raise


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{shown(folder)} cannot be listed: {error.strerror}") from error


def _may_be_file(path: Path) -> bool:
    """Also where the file system does not answer: whoever reads it says why."""
    try:
        return what_is_at(path) == "file"
    except InputError:
        return True


def is_video(path: PathLike) -> bool:
    """Whether the suffix is a video's."""
    return Path(base_name(path)).suffix.lower() in VIDEO_SUFFIXES


def opencv_path(path: PathLike) -> str:
    """A video's path, or its URL, as OpenCV and its FFmpeg take it.

    Raises InputError when it is not UTF-8: OpenCV would end the process.
    """
    text = os.fsdecode(path)
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
        if not os.fspath(path):
            raise
        file = as_path(path)
        if _is_photo(file) or not _may_be_file(file):
            raise
        hint = f"videos are known by {', '.join(VIDEO_SUFFIXES)}"
        if is_video(path):
            hint = "a video is for stream"
        raise ImageError(f"{error}; {hint}") from error


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES
