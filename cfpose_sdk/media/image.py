"""Photo file → checked array, and array → encoded picture. An image is BGR uint8 (H, W, 3)."""

from __future__ import annotations

import math
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.errors import ImageError, InputError
from cfpose_sdk.files import as_path, shown, what_is_at, write_file
from cfpose_sdk.media.containers import count_pictures, turn_avif
from cfpose_sdk.media.gpu_image import gpu_image, host_array

Image = NDArray[np.uint8]
_JPEG_START = b"\xff\xd8"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_SILENT = 0  # OpenCV's LOG_LEVEL_SILENT
_MOST_PIXELS = 1 << 30  # what OpenCV decodes at most, by its own default


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a photo as BGR uint8 (H, W, 3), turned upright by its EXIF orientation.

    Raises ImageError when the file is missing, is a folder, is no image, or ends too early.
    """
    return decode_image(_read_bytes(path), path)


def decode_image(data: bytes, path: str | os.PathLike[str]) -> Image:
    """`read_image` for the bytes of a file; `path` is for the messages."""
    if data.startswith(_JPEG_START) and not _jpeg_is_complete(data):
        raise _truncated(path, "JPEG")
    if data.startswith(_PNG_START):
        _check_png(path, data)
    try:
        with quiet_opencv():
            image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"{path} cannot be decoded: {error.err or error}") from error
    if image is None:
        raise ImageError(
            f"{path} is not an image that OpenCV can read, or it is damaged; "
            f"expected a JPEG, PNG, WebP, BMP or TIFF file"
        )
    if (pictures := count_pictures(data)) > 1:
        warnings.warn(
            f"{shown(path)} holds more than one frame or page ({pictures}), of which only the "
            f"first is used; for all of them convert it to a video",
            RuntimeWarning,
            stacklevel=3,
        )
    return check_image(turn_avif(data, check_image(image)))


def check_image(image: object) -> Image:
    """Return `image` as BGR uint8 (H, W, 3), C-contiguous.

    Takes uint8 (H, W, 3), and grey (H, W) or (H, W, 1), which is repeated over three channels;
    views with any strides; the same as a torch tensor on any device, and by DLPack; arrays in a
    GPU's memory as `gpu_image` takes them, which are copied; and a PIL image, whose RGB is turned
    into BGR. Raises ImageError for everything else rather than guess a conversion.
    """
    image = _as_array(image)
    if isinstance(image, np.ndarray):
        image = np.asarray(image)  # a subclass may index in its own way, as numpy.matrix does
    else:
        raise ImageError(
            f"an image must be a BGR uint8 numpy array (H, W, 3), got {type(image).__name__}"
            + ("; use predict_batch for several images" if isinstance(image, list | tuple) else "")
        )
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"an image must have shape (H, W, 3), got {image.shape}, channels first; convert it "
            f"with numpy.transpose(image, (1, 2, 0)), and RGB to BGR with [:, :, ::-1]"
        )
    if image.ndim == 3 and image.shape[2] == 4:
        raise ImageError(
            f"an image must have 3 channels (BGR), got 4 in shape {image.shape}; drop alpha with "
            f"cv2.cvtColor(image, cv2.COLOR_BGRA2BGR), or COLOR_RGBA2BGR for RGBA"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ImageError(f"an image must have shape (H, W, 3) or (H, W), got {image.shape}")
    if image.dtype != np.uint8:
        raise ImageError(
            f"an image must be uint8 in 0..255, got {image.dtype}; convert it, for values in "
            f"[0, 1] with (image * 255).round().astype(numpy.uint8)"
        )
    pixels = math.prod(image.shape[:2])
    if not 0 < pixels <= _MOST_PIXELS:
        raise ImageError(
            f"an image must have pixels, {_MOST_PIXELS} at most, got shape {image.shape}"
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image)


class _OpenCvLog:
    """OpenCV's log level, silent while a photo or video is read; counts readers, for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._level = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._level = _opencv_logging().getLogLevel()
                _opencv_logging().setLogLevel(_SILENT)
            self._readers += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                _opencv_logging().setLogLevel(self._level)


def _opencv_logging() -> Any:
    """What has OpenCV's getLogLevel and setLogLevel: 4.13 moved them out of `cv2` itself."""
    return getattr(cv2.utils, "logging", cv2)


_LOG = _OpenCvLog()


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing what is raised as an error here."""
    with _LOG:
        yield


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    # bytes and imdecode rather than imread: names of any alphabet work on every system
    try:
        kind = what_is_at(path)
        if kind == "nothing":
            raise ImageError(f"{shown(path)} does not exist; expected a photo")
        if kind == "folder":
            raise ImageError(f"{shown(path)} is a folder; expected a photo")
        data = as_path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{shown(path)} cannot be read: {error}") from error
    except ImageError:
        raise
    except InputError as error:
        reason = error.__cause__ or error
        raise ImageError(f"{shown(path)} cannot be read: {reason}; expected a photo") from error
    if not data:
        raise ImageError(f"{shown(path)} is empty (0 bytes); expected a photo")
    return data


def _truncated(path: str | os.PathLike[str], kind: str) -> ImageError:
    return ImageError(f"{path} is a truncated {kind}: the file ends too early; fetch it again")


def _jpeg_is_complete(data: bytes) -> bool:
    """Walk the segments of ITU-T T.81 (annex B) to the end marker of the main picture.

    OpenCV 4 decodes a truncated JPEG into a picture with a grey rest and says nothing. The last
    bytes alone do not tell: a thumbnail has an end marker too, and some cameras append data.
    """
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return False
        marker = data[at + 1]
        if marker == 0xD9:  # end of image
            return True
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # within a scan, or without a body
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _check_png(path: str | os.PathLike[str], data: bytes) -> None:
    """Walk the chunks to IEND and compare the checksums of those that a decoder must understand.

    libpng prints to stderr when either is wrong. Raises ImageError.
    """
    at = len(_PNG_START)
    while at + 12 <= len(data):
        body = at + 8
        end = body + int.from_bytes(data[at : at + 4], "big")
        critical = data[at + 4 : at + 5].isupper()
        checksum = int.from_bytes(data[end : end + 4], "big")
        if end + 4 <= len(data) and critical and zlib.crc32(data[at + 4 : end]) != checksum:
            raise ImageError(f"{path} is a damaged PNG: a checksum is wrong; fetch it again")
        if data[at + 4 : body] == b"IEND":
            return
        at = end + 4
    raise _truncated(path, "PNG")


def _as_array(image: object) -> object:
    """Arrays of a PIL image, a torch tensor, DLPack or a GPU's array; anything else as it is."""
    if isinstance(image, np.ndarray):
        return image
    module = type(image).__module__
    try:
        if module.startswith("PIL.") and hasattr(image, "convert"):
            return np.asarray(image.convert("RGB"))[:, :, ::-1]
        if module.startswith("torch") and hasattr(image, "detach"):
            return np.asarray(image.detach().cpu())
        if (found := gpu_image(image)) is not None:
            return found.host
        if (array := host_array(image)) is not None:
            return array
    except ImageError:
        raise
    except Exception as error:  # a file that PIL reads only now, a type that NumPy lacks
        raise ImageError(
            f"an image must be a BGR uint8 numpy array (H, W, 3); this {type(image).__name__} "
            f"cannot be converted: {error}"
        ) from error
    return image


_THUMBNAIL_PX = 800  # the longer side at most


def write_picture(path: str | Path, image: Image) -> Path:
    """Write a BGR image; the suffix gives the format. Raises InputError for one that is unknown."""
    file = as_path(path)
    suffix = file.suffix.lower() or file.name
    unknown = f"{shown(file)}: OpenCV writes no {shown(suffix)!r} pictures; use .jpg or .png"
    if not suffix.isascii():  # OpenCV ends the process at what is not UTF-8
        raise InputError(unknown)
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error as error:
        raise InputError(unknown) from error
    if not done:
        raise InputError(f"{shown(file)}: the picture cannot be encoded as {suffix!r}")
    return write_file(file, data.tobytes())


def thumbnail(image: Image) -> bytes:
    """JPEG of a BGR image, shrunk to 800 pixels where it is larger."""
    height, width = image.shape[:2]
    scale = min(1.0, _THUMBNAIL_PX / max(height, width))
    if scale < 1:
        size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA).astype(image.dtype)
    return bytes(cv2.imencode(".jpg", image)[1].tobytes())
