"""Decoded photos in one memory-mapped file, so that an epoch decodes no JPEG.

The file is rebuilt when the list of photos, or the size or time of one of them, changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import UnfinishedFile, sha256, write_file
from cfpose_sdk.media.image import read_image

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")  # of the photos that a folder is searched for


class PhotoCache:
    """Read-only photos by index: BGR uint8 (H, W, 3) views into the memory map."""

    def __init__(self, pixels_path: Path, shapes: Sequence[tuple[int, int]]) -> None:
        self._path = pixels_path
        self._shapes = list(shapes)
        sizes = [height * width * 3 for height, width in self._shapes]
        self._offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._pixels: NDArray[np.uint8] = (
            np.memmap(pixels_path, dtype=np.uint8, mode="r")
            if sizes
            else np.zeros(0, dtype=np.uint8)  # an empty file cannot be mapped
        )

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        height, width = self._shapes[index]
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._pixels[start:end].reshape(height, width, 3)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def sizes_wh(self) -> list[tuple[int, int]]:
        """Width and height of each photo."""
        return [(width, height) for height, width in self._shapes]

    def __reduce__(self) -> tuple[type[PhotoCache], tuple[Path, list[tuple[int, int]]]]:
        # a loader process maps the file again; a pickled memory map would carry every pixel
        return PhotoCache, (self._path, self._shapes)


def cache_photos(photos: Sequence[Path], folder: Path) -> PhotoCache:
    """Decode `photos` into `folder`, or reuse what an earlier call left there.

    Raises DatasetError naming the missing photos or a folder that cannot be made, ImageError for a
    photo that cannot be decoded, InputError for a file that cannot be written.
    """
    if missing := [path for path in photos if not os.path.isfile(path)]:
        raise DatasetError(
            f"{len(missing)} of {len(photos)} photos are missing, the first is {missing[0]}"
        )
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in photos]
    key = sha256(json.dumps(facts).encode())[:16]
    pixels_path, index_path = folder / f"photos-{key}.bin", folder / f"photos-{key}.json"
    if not index_path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatasetError(
                f"cannot make the folder of decoded photos {folder}: {error.strerror}; give "
                f"another --cache or --out"
            ) from error
        _write(photos, pixels_path, index_path)
    shapes = [(int(h), int(w)) for h, w in json.loads(index_path.read_text())]
    return PhotoCache(pixels_path, shapes)


def _write(photos: Sequence[Path], pixels_path: Path, index_path: Path) -> None:
    """Write the pixels first and the index last: without an index the pixels are not used."""
    shapes = []
    with UnfinishedFile(pixels_path) as unfinished, open(unfinished.part, "wb") as file:
        for path in tqdm(photos, desc="decoding photos", unit="photo", disable=not watched()):
            image = read_image(path)
            shapes.append(image.shape[:2])
            file.write(image.data)
    write_file(index_path, json.dumps(shapes))
