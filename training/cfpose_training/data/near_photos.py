"""Photos to learn from, without those that show what evaluation photos show.

Perceptual hashes: the signs of the 63 lowest cosine coefficients of a photo shrunk to 32 x 32 grey
pixels about their median. Resizing, compression and slight colours leave nearly all of them; the
mirror image is looked for as well. A photo that shows another part of the same scene is not found.

    python -m cfpose_training.data.near_photos FOLDER... --against VAL_PHOTOS --into KEPT

links the kept photos into a folder, and writes `photos.json` there: every photo's SHA-256, and what
was left out and for which photo.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.commands import number
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import digest, write_file
from cfpose_sdk.media.image import Image, read_image
from cfpose_training.data.photo_cache import PHOTO_SUFFIXES

Bits = NDArray[np.bool_]
SIDE = 32  # pixels a photo is shrunk to
LOW = 8  # cosines along each axis that count
NEAR_BITS = 8  # of 63: at most so many differ between two copies of a photo
LIST_FILE = "photos.json"


@dataclass(frozen=True)
class Near:
    """A photo that is left out, the one it repeats, and how many bits differ."""

    photo: str
    repeats: str
    bits: int


def photo_bits(image: Image) -> Bits:
    """(63,) hash of a BGR photo."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(small))[:LOW, :LOW].ravel()[1:]  # the first is the brightness
    bits: Bits = low > np.median(low)
    return bits


def near_photos(
    photos: Sequence[Path], against: Sequence[Path], near_bits: int = NEAR_BITS
) -> list[Near]:
    """The photos whose hash, plain or mirrored, lies within `near_bits` of one of `against`."""
    hashes = np.array([photo_bits(read_image(path)) for path in against]).reshape(-1, LOW**2 - 1)
    found = []
    for path in photos:
        image = read_image(path)
        both = (image, np.ascontiguousarray(image[:, ::-1]))
        distance = np.min([(hashes != photo_bits(one)).sum(axis=1) for one in both], axis=0)
        if len(distance) and distance.min() <= near_bits:
            nearest = int(distance.argmin())
            found.append(Near(path.name, against[nearest].name, int(distance[nearest])))
    return found


def gather(
    folders: Sequence[Path], against: Path, into: Path, near_bits: int = NEAR_BITS
) -> tuple[int, int]:
    """Link the photos of `folders` and below into `into`, without those near one of `against`.

    Returns how many were kept and how many left out. Raises InputError when two kept photos have
    one name, or there are no photos.
    """
    photos = [path for folder in folders for path in _photos_below(folder)]
    names = [path.name for path in photos]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two photos are called {twice}; gather their folders one by one")
    dropped = near_photos(photos, _photos_below(against), near_bits)
    left_out = {near.photo for near in dropped}
    into.mkdir(parents=True, exist_ok=True)
    kept = [path for path in photos if path.name not in left_out]
    for path in kept:
        link = into / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    content = {
        "against": against.name,
        "near_bits": near_bits,
        "left_out": [vars(near) for near in dropped],
        "sha256": {path.name: digest(path) for path in kept},
    }
    write_file(into / LIST_FILE, json.dumps(content, indent=1))
    return len(kept), len(dropped)


def _photos_below(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no photo ({', '.join(PHOTO_SUFFIXES)})")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="photos to gather")
    parser.add_argument("--against", type=Path, required=True, help="photos of the evaluation")
    parser.add_argument("--into", type=Path, required=True, help="folder of links to make")
    parser.add_argument(
        "--near-bits",
        type=number(0, 63, whole=True),
        default=NEAR_BITS,
        help="of 63 that may differ",
    )
    given = parser.parse_args(arguments)
    kept, dropped = gather(given.folders, given.against, given.into, given.near_bits)
    print(f"{kept} photos kept, {dropped} left out; {given.into / LIST_FILE} says which and why")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
