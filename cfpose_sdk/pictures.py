"""Arrays → encoded pictures."""

from __future__ import annotations

from pathlib import Path

import cv2

from cfpose_sdk.errors import InputError
from cfpose_sdk.files import write_file
from cfpose_sdk.image import Image

_THUMBNAIL_PX = 800  # the longer side at most


def write_picture(path: str | Path, image: Image) -> Path:
    """Write a BGR image; the suffix gives the format. Raises InputError for one that is unknown."""
    file = Path(path)
    try:
        done, data = cv2.imencode(file.suffix.lower() or file.name, image)
    except cv2.error as error:
        raise InputError(
            f"{file}: OpenCV writes no {file.suffix!r} pictures; use .jpg or .png"
        ) from error
    if not done:
        raise InputError(f"{file}: the picture cannot be encoded as {file.suffix!r}")
    return write_file(file, data.tobytes())


def thumbnail(image: Image) -> bytes:
    """PNG of a BGR image, shrunk to 800 pixels where it is larger."""
    height, width = image.shape[:2]
    scale = min(1.0, _THUMBNAIL_PX / max(height, width))
    if scale < 1:
        size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA).astype(image.dtype)
    return bytes(cv2.imencode(".png", image)[1].tobytes())
