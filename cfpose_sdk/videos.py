"""Video files, cameras and network streams, read through OpenCV."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import cv2

from cfpose_sdk.errors import InputError
from cfpose_sdk.frames import Footage, Frame, Item, PathLike, Unread, is_url, opencv_path
from cfpose_sdk.image import check_image, quiet_opencv

TIMEOUT_S = 10.0  # of opening a URL and of waiting for its next frame

# OpenCV answers "no frame" both at the end and at a frame that is damaged, after which it can go
# on. In a file that announced more frames it is asked this often before that is called the end.
_PATIENCE = 64


def open_video(source: PathLike | int, timeout_s: float = TIMEOUT_S) -> Footage:
    """Frames of a video file, URL or camera index, named NAME-000000, NAME-000001, …

    A damaged frame is an `Unread` in its place. A file that ends before its announced end, and a
    camera or URL that stops, give an `Unread` as the last item. Raises InputError when the source
    cannot be opened or has no frame.
    """
    label = f"camera {source}" if isinstance(source, int) else os.fspath(source)
    live = isinstance(source, int) or is_url(source)
    if not live and not Path(label).is_file():
        raise InputError(f"{label} does not exist; expected a video file")
    opened_as = source if isinstance(source, int) else opencv_path(label)
    with quiet_opencv():
        capture = _capture(opened_as, timeout_s)
        opened = capture.isOpened()
    if not opened:
        raise InputError(
            f"{label} cannot be opened as a video; check the file (it may be cut off before its "
            f"index), address or camera number"
        )
    video = _Video(capture, label, live)
    if video.first is None:
        capture.release()
        raise InputError(f"{label} was opened, but no frame can be read from it")
    items = video.items()

    def close() -> None:
        items.close()
        capture.release()  # also when the generator never started

    return Footage(items, close, video.fps, video.count, video.live)


class _Video:
    def __init__(self, capture: cv2.VideoCapture, label: str, live: bool) -> None:
        self.capture, self.label = capture, label
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
            yield from self._verdict(number - missed)
        finally:
            self.capture.release()

    def _may_go_on(self, number: int, missed: int) -> bool:
        return self.count is not None and number < self.count and missed < _PATIENCE

    def _verdict(self, read: int) -> Iterator[Unread]:
        """What is wrong with the end, if anything."""
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
        name = f"{Path(self.label).stem}-{number:06d}"
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
