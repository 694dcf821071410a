"""Photos of another size than annotated, whose labels lie beside the people.

Sources: ITU-T T.81 (JPEG's frame headers); Exif 2.3, tag 274 (orientation); PNG's IHDR.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

SizeWh = tuple[int, int]
_ORIENTATION = 274
_LYING = (5, 6, 7, 8)  # orientations that change width and height about
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG's markers that hold the size
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a body


def other_sizes(
    photos: Sequence[str | Path], annotated: Sequence[SizeWh], found: Iterable[SizeWh | None]
) -> str:
    """A counted sentence about photos whose size is not the annotated one; "" for none.

    A size that is not known (None) is taken for right.
    """
    wrong = [
        f"{Path(photo).name} has {is_[0]} x {is_[1]}, annotated are {said[0]} x {said[1]}"
        for photo, said, is_ in zip(photos, annotated, found, strict=True)
        if is_ is not None and is_ != said
    ]
    if not wrong:
        return ""
    return (
        f"{len(wrong)} of {len(photos)} photos have another size than annotated, so their labels "
        f"lie beside the people: {wrong[0]}; take the photos that were annotated"
    )


def size_in_header(photo: Path) -> SizeWh | None:
    """Width and height of a JPEG or PNG as it is read, upright, without decoding it.

    None for other formats, and for a file that cannot be read: whoever decodes it says so.
    """
    try:
        with photo.open("rb") as file:
            start = file.read(24)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                width, height = struct.unpack(">II", start[16:24])
                return width, height
            if start.startswith(b"\xff\xd8"):
                file.seek(2)
                return _jpeg_size(file)
    except (OSError, ValueError, struct.error):
        return None
    return None


def _jpeg_size(file: BinaryIO) -> SizeWh | None:
    """Walk the segments to the frame header, past an Exif block."""
    lying = False
    while file.read(1) == b"\xff":
        while (marker := file.read(1)[0:1]) == b"\xff":
            pass
        if not marker or marker[0] in _BARE:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        body = file.read(length - 2)
        if marker[0] in _FRAMES:
            height, width = struct.unpack(">HH", body[1:5])
            return (height, width) if lying else (width, height)
        if marker[0] == 0xE1 and body.startswith(b"Exif\0\0"):
            lying = _orientation(body[6:]) in _LYING
    return None


def _orientation(exif: bytes) -> int:
    order = "<" if exif[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, at)
    for entry in range(count):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return int(value)
    return 1
