"""Bring public files into a data root: resumed where cut off, checked, unpacked."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import urllib.parse
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from cfpose_bench.data.download import fetch, record_archives, seen_archives
from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import digest
from cfpose_training.archives.catalogue import FileSet, PublicFile

OTHERWISE = "give --mirror another host that has the file"


def fetch_set(files: FileSet, root: Path, *, mirror: str = "") -> list[str]:
    """Bring what is missing below `root`; prints and returns a sentence for each file got by hand.

    `mirror` stands in for the publishers' hosts. Raises DatasetError when a host cannot be reached,
    a file is not the published one, or one that is there is another than its name says.
    """
    seen = seen_archives(root)
    todo = [file for file in files.files if not _is_here(file, root)]
    print(files.notice, file=sys.stderr)
    by_hand = [
        f"{file.what}: has no stable address; from {file.origin}; put it at "
        f"{' and '.join(str(root / target) for target in file.targets)}"
        for file in todo
        if not file.url
    ]
    for sentence in by_hand:
        print(f"BY HAND: {sentence}", flush=True)
    for file in files.files:
        if file not in todo:
            _check(file, root)
            _say(f"{file.what}: here")
        elif file.url:
            url = file.url
            if mirror:
                url = mirror.rstrip("/") + urllib.parse.urlparse(url).path
            size = "a size that is not published" if file.size is None else _size(file.size)
            _say(f"{file.what}: fetching {url}, {size}, into {root}")
            seen[file.name] = _bring(file, url, root)
            record_archives(root, seen)
    return by_hand


def _is_here(file: PublicFile, root: Path) -> bool:
    """Whether all targets are there; an archive beside them was not unpacked to its end."""
    unpacking = bool(file.members) and (root / file.name).is_file()
    return not unpacking and all(os.path.exists(root / target) for target in file.targets)


def _bring(file: PublicFile, url: str, root: Path) -> str:
    """Fetch, check and unpack; returns the SHA-256."""
    path = root / (file.name if file.members else file.targets[0])
    if not path.is_file():
        if file.size is not None and shutil.disk_usage(_there(root)).free < 2 * file.size:
            raise DatasetError(
                f"{file.name} takes {_size(file.size)} and as much unpacked; {root} has less left"
            )
        fetch(url, path, file.size, instead=OTHERWISE)
    actual = digest(path)
    if not actual.startswith(file.sha256):
        path.unlink()
        raise DatasetError(
            f"{file.name} from {url} has the SHA-256 {actual}, expected {file.sha256}"
            f"{'' if len(file.sha256) == 64 else '…'}; it was deleted, run the command again"
        )
    if file.members:
        _unpack(path, file, root)
        path.unlink()
    return actual


def _unpack(path: Path, file: PublicFile, root: Path) -> None:
    """Write the members that are wanted, each under its own name into its folder."""
    found = 0
    try:
        with _members(path) as members:
            for name, stream in tqdm(members, desc=f"unpacking {path.name}", disable=not watched()):
                folder = next((f for p, f in file.members.items() if fnmatchcase(name, p)), None)
                if folder is not None:
                    target = root / folder / PurePosixPath(name).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with stream, target.open("wb") as out:
                        shutil.copyfileobj(stream, out)
                    found += 1
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DatasetError(
            f"{path} cannot be unpacked: {error}; delete it and run again"
        ) from error
    if missing := [target for target in file.targets if not os.path.exists(root / target)]:
        raise DatasetError(
            f"{path} has other members than expected: {found} were unpacked, and "
            f"{', '.join(missing)} is not among them"
        )


@contextmanager
def _members(path: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Name and content of each file in a zip or tar archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            yield ((n, packed.open(n)) for n in packed.namelist() if not n.endswith("/"))
        return
    with tarfile.open(path) as tape:
        yield (
            (member.name, stream)
            for member in tape
            if member.isfile() and (stream := tape.extractfile(member)) is not None
        )


def _check(file: PublicFile, root: Path) -> None:
    """Raise DatasetError where what is there is not what its name says."""
    target = root / file.targets[0]
    if file.entries is not None:
        count = _entries(target)
        if count != file.entries:
            raise DatasetError(
                f"{target} holds {count} entries, {file.what} has {file.entries}; it is another "
                f"file or not whole: delete it, and get it again"
            )
    if file.sha256 and not file.members and not digest(target).startswith(file.sha256):
        raise DatasetError(
            f"{target} has the SHA-256 {digest(target)[:16]}…, expected {file.sha256}…; it is "
            f"another file or not whole: delete it, and run the command again"
        )


def _entries(target: Path) -> int:
    if target.is_dir():
        return sum(entry.is_file() for entry in os.scandir(target))
    try:
        content = json.loads(target.read_bytes())
        return len(content["images"] if isinstance(content, dict) else content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{target} is no JSON file of annotations or boxes: {error}") from error


def _there(folder: Path) -> Path:
    return next(place for place in (folder, *folder.resolve().parents) if place.exists())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _say(text: str) -> None:
    print(f"cfpose-train: {text}", file=sys.stderr, flush=True)
