"""What OpenCV leaves out of picture files: more than one picture in them, and AVIF's orientation.

Sources: GIF89a; WebP's RIFF container; TIFF 6.0; PNG's acTL chunk; ISO/IEC 23008-12 (irot, imir).
"""

from __future__ import annotations

import re
import struct

import cv2
import numpy as np
from numpy.typing import NDArray

Uint8 = NDArray[np.uint8]

_ROTATION = re.compile(rb"\x00\x00\x00\x09irot(.)", re.DOTALL)
_MIRROR = re.compile(rb"\x00\x00\x00\x09imir(.)", re.DOTALL)
# of 0 to 3 quarter turns anticlockwise
_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_MOST_PAGES = 1 << 16  # a chain of pages that leads back into itself ends here


def turn_avif(data: bytes, image: Uint8) -> Uint8:
    """Turn the picture of an AVIF file upright by its `irot` and `imir`; any other as it is."""
    if data[4:8] != b"ftyp" or b"avi" not in data[8:64]:
        return image
    head = data[: data.find(b"mdat") if b"mdat" in data else len(data)]
    if (turn := _ROTATION.search(head)) and (how := _TURNS.get(turn[1][0] & 3)) is not None:
        image = cv2.rotate(image, how).astype(image.dtype, copy=False)
    if mirror := _MIRROR.search(head):  # after the rotation; 0: top and bottom change places
        image = cv2.flip(image, mirror[1][0] & 1).astype(image.dtype, copy=False)
    return image


def count_pictures(data: bytes) -> int:
    """How many frames or pages a GIF, WebP, PNG, TIFF or AVIF file holds; 1 for other files.

    Of an AVIF sequence it says 2: more than one. A damaged file counts up to its damage.
    """
    try:
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return max(1, _gif_frames(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return max(1, _webp_frames(data))
        if data[:4] in (b"II*\x00", b"MM\x00*"):
            return max(1, _tiff_pages(data))
        if data[:4] == b"\x89PNG" and (at := data.find(b"acTL", 0, 4096)) >= 0:
            return max(1, int.from_bytes(data[at + 4 : at + 8], "big"))
    except (IndexError, struct.error):
        return 1  # cut off: what reads it says so
    return 2 if data[4:12] == b"ftypavis" else 1


def _gif_frames(data: bytes) -> int:
    at, frames = 13 + _gif_table(data[10]), 0
    while at < len(data) and data[at] in (0x21, 0x2C):
        if data[at] == 0x2C:
            frames += 1
            at += 11 + _gif_table(data[at + 9])
        else:
            at += 2
        while size := data[at]:
            at += 1 + size
        at += 1
    return frames


def _gif_table(flags: int) -> int:
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _webp_frames(data: bytes) -> int:
    at, frames = 12, 0
    while at + 8 <= len(data):
        frames += data[at : at + 4] == b"ANMF"
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return frames


def _tiff_pages(data: bytes) -> int:
    order, pages = "<" if data[:1] == b"I" else ">", 0
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    while at and pages < _MOST_PAGES:
        (entries,) = struct.unpack_from(f"{order}H", data, at)
        fields = [struct.unpack_from(f"{order}HHII", data, at + 2 + 12 * n) for n in range(entries)]
        # a thumbnail or a mask belongs to another page
        pages += not any(tag == 254 and value & 5 for tag, _, _, value in fields)
        (at,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * entries)
    return pages
