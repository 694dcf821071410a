"""Photos by index: decoded once into one memory-mapped file, or read from their files at each use.

The decoded file is made anew when the list of photos, or the size or time of one of them, changes.
One process makes it; others that want the same one wait for it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cfpose_bench.data.download import cache_folder
from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError, require
from cfpose_sdk.files import sha256, write_file
from cfpose_sdk.media.image import read_image
from cfpose_training.data.photo_sizes import size_in_header

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")  # of the photos that a folder is searched for


class PhotoCache(Protocol):
    """Read-only photos by index: BGR uint8 (H, W, 3)."""

    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    def __len__(self) -> int: ...

    @property
    def sizes_wh(self) -> list[tuple[int, int]]:
        """Width and height of each photo."""


class DecodedPhotos:
    """Views into the memory map."""

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

    def __reduce__(self) -> tuple[type[DecodedPhotos], tuple[Path, list[tuple[int, int]]]]:
        # a loader process maps the file again; a pickled memory map would carry every pixel
        return DecodedPhotos, (self._path, self._shapes)


class PhotoFiles:
    """The photos' own files, decoded at each use: in the loader's processes, where there are any.

    Raises ImageError for one that cannot be decoded, when it is used.
    """

    def __init__(self, photos: Sequence[Path]) -> None:
        self._photos = list(photos)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return read_image(self._photos[index])

    def __len__(self) -> int:
        return len(self._photos)

    @property
    def sizes_wh(self) -> list[tuple[int, int]]:
        """Width and height of each photo, from its header where that says it."""
        return [_size_wh(photo) for photo in self._photos]


def photo_folder(root: Path) -> Path:
    """Where the decoded photos of a data root are kept, for every run over it.

    Below $CFPOSE_CACHE, else ~/.cache/cfpose; the name holds the root's own name and a hash of its
    path. Nothing is written into the root.
    """
    whole = os.path.realpath(root)
    return cache_folder() / "photos" / f"{Path(whole).name}-{sha256(whole.encode())[:12]}"


def cache_photos(photos: Sequence[Path], folder: Path | None) -> PhotoCache:
    """Decode `photos` into `folder`, or reuse what an earlier call left there; None: do not.

    Of several processes one decodes, and the others wait; when it dies, the next one begins anew.
    Raises DatasetError naming the missing photos, a folder that cannot be made, or one on a disk
    that is too small; ImageError for a photo that cannot be decoded.
    """
    if missing := [path for path in photos if not os.path.isfile(path)]:
        raise DatasetError(
            f"{len(missing)} of {len(photos)} photos are missing, the first is {missing[0]}"
        )
    if folder is None:
        return PhotoFiles(photos)
    facts = [(os.path.abspath(p), s.st_size, s.st_mtime_ns) for p in photos for s in [p.stat()]]
    key = sha256(json.dumps(facts).encode())[:16]
    pixels_path, index_path = folder / f"photos-{key}.bin", folder / f"photos-{key}.json"
    if not index_path.is_file():
        with _only_builder(folder, folder / f"photos-{key}.lock"):
            if not index_path.is_file():  # else the one that was waited for has made it
                _write(photos, pixels_path, index_path)
    shapes = [(int(h), int(w)) for h, w in json.loads(index_path.read_text())]
    return DecodedPhotos(pixels_path, shapes)


@contextmanager
def _only_builder(folder: Path, lock: Path) -> Iterator[None]:
    """Wait until no other process decodes these photos. The system frees the lock of a dead one."""
    require("filelock", extra="train", why="decoding photos once for several processes")
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(lock)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            _say(f"another process decodes these photos into {folder}; waiting for it")
            held.acquire()
    except OSError as error:
        raise DatasetError(
            f"cannot make the folder of decoded photos {folder}: {error.strerror}; give another "
            f"--cache, or --cache none"
        ) from error
    try:
        yield
    finally:
        held.release()


def _write(photos: Sequence[Path], pixels_path: Path, index_path: Path) -> None:
    """Write the pixels first and the index last: without an index the pixels are not used."""
    size = sum(3 * width * height for width, height in map(_size_wh, photos))
    folder = pixels_path.parent
    free = shutil.disk_usage(folder).free
    _say(f"decoding {len(photos)} photos once: {_bytes(size)} into {folder}")
    if size > free:
        raise DatasetError(
            f"the decoded photos take {_bytes(size)}, and {folder} has {_bytes(free)} left; give "
            f"--cache a folder on another disk, or --cache none, which reads the photos at each use"
        )
    part = pixels_path.with_suffix(".part")  # of a builder that died: overwritten
    shapes = []
    try:
        with open(part, "wb") as file:
            for path in tqdm(photos, desc="decoding photos", unit="photo", disable=not watched()):
                image = read_image(path)
                shapes.append(image.shape[:2])
                file.write(image.data)
        os.replace(part, pixels_path)
        write_file(index_path, json.dumps(shapes))
    except OSError as error:
        raise DatasetError(
            f"{pixels_path} cannot be written: {error.strerror}; give another --cache, or --cache "
            f"none"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _size_wh(photo: Path) -> tuple[int, int]:
    found = size_in_header(photo)
    if found is None:
        height, width = read_image(photo).shape[:2]
        return width, height
    return found


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _say(text: str) -> None:
    print(f"cfpose-train: {text}", file=sys.stderr, flush=True)
