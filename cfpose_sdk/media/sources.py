"""`open_source`: the frames of photos, folders, globs, videos, cameras, URLs and arrays."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from cfpose_sdk.errors import InputError
from cfpose_sdk.files import shown, what_is_at
from cfpose_sdk.media.frames import (
    Footage,
    Frame,
    Item,
    Picture,
    Source,
    Unread,
    expand,
    fetch_frame,
    is_video,
    load_frame,
    opencv_path,
)
from cfpose_sdk.media.image import check_image, quiet_opencv
from cfpose_sdk.media.names import (
    Names,
    PathLike,
    base_name,
    distinct_names,
    is_photo_url,
    is_url,
)
from cfpose_sdk.media.reconnect import reconnecting

TIMEOUT_S = 10.0  # of opening a URL and of waiting for its next frame
# OpenCV answers "no frame" both at the end and at a frame that is damaged, after which it can go
# on. A file that announced more frames is tried this often before that counts as its end.
_PATIENCE = 64


def open_video(
    source: PathLike | int, timeout_s: float = TIMEOUT_S, name: str | None = None
) -> Footage:
    """Frames of a video file, URL or camera index, named NAME-000000, NAME-000001, …; by default
    NAME is the file's, without its suffix.

    A damaged frame is an `Unread` in its place. A file that ends before its announced end, and a
    camera or URL that stops, give an `Unread` as the last item. Raises InputError when the source
    cannot be opened or has no frame.
    """
    label = f"camera {source}" if isinstance(source, int) else os.fsdecode(source)
    live = isinstance(source, int) or is_url(source)
    if not live and what_is_at(label) != "file":
        raise InputError(f"{shown(label)} does not exist, or is no file; expected a video file")
    opened_as = source if isinstance(source, int) else opencv_path(label)
    with quiet_opencv():
        capture = _capture(opened_as, timeout_s)
        opened = capture.isOpened()
    if not opened:
        raise InputError(
            f"{label} cannot be opened as a video; check the file (it may be cut off before its "
            f"index), address or camera number"
        )
    if name is None or name == base_name(label):
        name = Path(base_name(label)).stem
    video = _Video(capture, label, name, live)
    if video.first is None:
        capture.release()
        raise InputError(f"{label} was opened, but no frame can be read from it")
    items = video.items()

    def close() -> None:
        items.close()
        capture.release()  # also when the generator never started

    return Footage(items, close, video.fps, video.count, video.live)


class _Video:
    def __init__(self, capture: cv2.VideoCapture, label: str, name: str, live: bool) -> None:
        self.capture, self.label, self.name = capture, label, name
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if 0 < count < 1e9 else None
        self.live = live and self.count is None  # a file behind a URL has a length
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps < 1000 else None
        self.begun = time.monotonic()
        self.last_s, self.pause_s = 0.0, 0.0  # of the last frame; the longest between two frames
        self.first = self._grab(0)

    def items(self) -> Generator[Item, None, None]:
        try:
            number, missed = 0, 0
            frame = self.first
            self.first = None
            while frame is not None or self._may_go_on(number, missed):
                if frame is None:
                    missed += 1
                else:
                    for lost in range(number - missed, number):
                        yield Unread(InputError(f"{self.label}: frame {lost} is damaged"))
                    missed = 0
                    yield frame
                number += 1
                frame = self._grab(number)
            yield from self._early_end(number - missed)
        finally:
            self.capture.release()

    def _may_go_on(self, number: int, missed: int) -> bool:
        return self.count is not None and number < self.count and missed < _PATIENCE

    def _early_end(self, read: int) -> Iterator[Unread]:
        """An Unread when the source ended too early."""
        if self.live:
            yield Unread(
                InputError(f"{self.label} ended or was lost after {read} frames; open it again")
            )
        elif self.count is not None and self._is_short(self.count, read):
            yield Unread(
                InputError(
                    f"{self.label} is cut off: it announces {self.count} frames and ends after "
                    f"{read}; fetch it again"
                )
            )

    def _is_short(self, count: int, read: int) -> bool:
        # some containers announce one frame more than they hold, or estimate the count
        expected = count - max(1, count // 100)
        if self.fps is None or read >= expected:
            return read < expected
        # .mkv and .webm announce their duration only: at a variable rate they hold fewer frames,
        # and the last one may last as long as another did
        end_s = self.last_s + max(self.pause_s, 1 / self.fps)
        return end_s < expected / self.fps

    def _grab(self, number: int) -> Frame | None:
        start = time.perf_counter()
        done, picture = self.capture.read()
        if not done or picture is None:
            return None
        milliseconds = (time.perf_counter() - start) * 1000
        name = f"{self.name}-{number:06d}"
        time_s = self._time(number)
        if time_s is not None:
            self.pause_s = max(self.pause_s, time_s - self.last_s)
            self.last_s = time_s
        return Frame(check_image(picture), name, milliseconds, number, time_s)

    def _time(self, number: int) -> float | None:
        if self.live:
            return time.monotonic() - self.begun
        stamp = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if stamp > 0 or number == 0:
            return max(0.0, stamp)
        return None if self.fps is None else number / self.fps


def _capture(source: str | int, timeout_s: float) -> cv2.VideoCapture:
    if not is_url(source):
        return cv2.VideoCapture(source)
    # without these a camera that falls silent holds the reader for ever
    milliseconds = max(1, round(timeout_s * 1000))
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        milliseconds,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        milliseconds,
    ]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)


def open_source(
    source: Source,
    timeout_s: float = TIMEOUT_S,
    names: Names | None = None,
    reconnect_s: float = 0.0,
) -> Footage:
    """A photo, folder of photos, glob, video, camera index, URL, or an iterable of arrays and
    paths (of photos and videos), as items in order.

    The source is opened now, its items are read one by one later. A file that cannot be
    read is an `Unread` in its place. `names`: of paths in the results; None gives those of one
    folder, glob or list names that differ. `reconnect_s`: how long a camera or address that was
    lost is tried again, see `reconnecting`; 0: not at all. Raises InputError when there is nothing
    to read from, or the one path does not exist.
    """
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise InputError(
            f"a stream needs several images, got one array {source.shape}; use [image]"
        )
    if is_photo_url(source):
        return _listed([source], names, own=True)
    if isinstance(source, int) or is_url(source):
        named = None if names is None or isinstance(source, int) else names.get(source)
        return _open_live(source, timeout_s, named, reconnect_s)
    if isinstance(source, str | os.PathLike):
        files = expand(source)
        if len(files) == 1 and what_is_at(files[0]) == "nothing":
            raise InputError(
                f"{shown(source)} does not exist; expected a photo, video, folder or glob"
            )
        if len(files) == 1 and is_video(files[0]):
            return open_video(files[0], timeout_s, None if names is None else names.get(source))
        return _listed(files, names, own=True)
    if not isinstance(source, Iterable):
        raise InputError(
            f"a stream needs a path, a camera index, a URL or an iterable of images, "
            f"got {type(source).__name__}"
        )
    own = isinstance(source, list | tuple | np.ndarray)
    return _listed(source, names, own=own)


def _open_live(
    source: str | int, timeout_s: float, name: str | None, reconnect_s: float
) -> Footage:
    footage = open_video(source, timeout_s, name)
    if not (footage.live and reconnect_s > 0):
        return footage
    label = f"camera {source}" if isinstance(source, int) else source
    return reconnecting(footage, lambda: open_video(source, timeout_s, name), label, reconnect_s)


def open_frames(source: Source) -> Iterator[Frame]:
    """Frames of `open_source`; raises InputError now, or at the item that cannot be read."""
    return _frames(open_source(source))


def _listed(entries: Iterable[Picture], names: Names | None, *, own: bool) -> Footage:
    if names is None:
        listed = entries if isinstance(entries, list | tuple) else ()
        names = distinct_names(entry for entry in listed if isinstance(entry, str | os.PathLike))
    items = _items(entries, names)
    count = len(entries) if isinstance(entries, list | tuple) else None
    return Footage(items, items.close, count=count, own=own)


def _items(entries: Iterable[Picture], names: Names) -> Generator[Item, None, None]:
    for entry in entries:
        name = names.get(entry) if isinstance(entry, str | os.PathLike) else None
        try:
            if is_photo_url(entry):
                yield fetch_frame(entry, name, TIMEOUT_S)
                continue
            if isinstance(entry, str | os.PathLike) and (is_url(entry) or is_video(entry)):
                footage = open_video(entry, name=name)
            else:
                yield load_frame(entry, name)
                continue
        except InputError as error:
            if not isinstance(entry, str | os.PathLike):
                raise  # an array that is no image is the caller's mistake, not a damaged file
            yield Unread(error)
            continue
        try:
            yield from footage.items
        finally:
            footage.close()


def _frames(footage: Footage) -> Iterator[Frame]:
    try:
        for item in footage.items:
            if isinstance(item, Unread):
                raise item.error
            yield item
    finally:
        footage.close()
