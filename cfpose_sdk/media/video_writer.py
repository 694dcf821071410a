"""Write a video frame by frame; the file appears whole, at the end."""

from __future__ import annotations

from pathlib import Path

import cv2

from cfpose_sdk.errors import InputError
from cfpose_sdk.files import UnfinishedFile
from cfpose_sdk.media.frames import opencv_path
from cfpose_sdk.media.image import Image, quiet_opencv

# Motion JPEG for .avi, MPEG-4 for the rest: what every build of OpenCV can write.
_CODECS = {".avi": "MJPG", ".mp4": "mp4v"}
FALLBACK_FPS = 25.0  # for a camera of unknown rate


class VideoRecording:
    """An .mp4 or .avi that grows frame by frame and is renamed to its path at the end.

    The first frame gives the size. Raises InputError when the video cannot be written.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        opencv_path(path)  # raises before there is a file
        self.path = path
        self._fps = _writable_rate(fps or FALLBACK_FPS)
        self._file = UnfinishedFile(path)
        self._writer: cv2.VideoWriter | None = None
        self._size_wh = (0, 0)
        self._added = 0

    def add(self, image: Image) -> None:
        """Append a BGR frame."""
        size_wh = (image.shape[1], image.shape[0])
        if self._writer is None:
            self._writer = self._open(size_wh)
        if size_wh != self._size_wh:
            raise InputError(
                f"{self.path}: frames of a video have one size, got {size_wh} after {self._size_wh}"
            )
        with quiet_opencv():
            self._writer.write(image)
        self._added += 1

    def finish(self) -> None:
        """Close the video and give it its name; one without a frame is not kept.

        Raises InputError when not all frames are in the file: OpenCV does not report a full disk.
        """
        if self._writer is None:
            self._file.discard()
            return
        with quiet_opencv():
            self._writer.release()
            held = _readable(opencv_path(self._file.part), self._added)
        if held < self._added:
            self._file.discard()
            raise InputError(
                f"{self.path} cannot be written: {held} of {self._added} frames can be read back; "
                f"make room on the disk"
            )
        self._file.commit()

    def abandon(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.release()
        self._file.discard()

    def _open(self, size_wh: tuple[int, int]) -> cv2.VideoWriter:
        codec = _CODECS[self.path.suffix.lower()]
        part = opencv_path(self._file.part)
        with quiet_opencv():
            writer = cv2.VideoWriter(part, cv2.VideoWriter.fourcc(*codec), self._fps, size_wh)
            opened = writer.isOpened()
        if not opened:
            self._file.discard()
            raise InputError(f"{self.path}: this OpenCV cannot write {codec} videos")
        self._size_wh = size_wh
        return writer


def _writable_rate(fps: float) -> float:
    """Frames a second with as many decimals as MPEG-4 has room for: 65535 ticks a second."""
    return next(round(fps, places) for places in (3, 2, 1, 0) if fps * 10**places < 65535)


def _readable(path: str, frames: int) -> int:
    """How many of a video's first `frames` can be read."""
    capture = cv2.VideoCapture(path)
    try:
        # the count alone does not tell: an .avi has it at its start
        capture.set(cv2.CAP_PROP_POS_FRAMES, frames - 1)
        if capture.get(cv2.CAP_PROP_FRAME_COUNT) >= frames and capture.grab():
            return frames
        capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        return next((n for n in range(frames) if not capture.grab()), frames)
    finally:
        capture.release()
