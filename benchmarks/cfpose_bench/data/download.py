"""Download data sets from their publishers: with progress, resumed where cut off, and checked."""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import digest, write_file

COCO_HOST = "http://images.cocodataset.org"
CACHE_VARIABLE = "CFPOSE_CACHE"
CHUNK = 1 << 20
TRIES = 5
SCHEMES = ("http", "https", "file")  # of addresses that can be fetched
OTHERWISE = "pass --data-root with the data set"
RECORD_FILE = "downloads.json"  # beside what was unpacked: archive -> SHA-256
COCO_NOTICE = (
    "COCO val2017: annotations CC BY 4.0 (COCO Consortium); the photos are their photographers', "
    "under the Flickr licences that the annotation file names. See https://cocodataset.org/#termsofuse"
)


@dataclass(frozen=True)
class Archive:
    """A zip file of a publisher, and the part of it that is needed."""

    place: str  # below the host
    bytes: int
    sha256: str | None  # None: not published; the one that is seen is recorded
    wanted: str  # members that begin with this are unpacked

    @property
    def name(self) -> str:
        """Its file name."""
        return self.place.rsplit("/", 1)[-1]


COCO_VAL = (
    Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        "annotations/person_keypoints_val2017.json",
    ),
    Archive(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        "val2017/",
    ),
)


def cache_folder() -> Path:
    """Where cfpose keeps what it can make or fetch again: $CFPOSE_CACHE, else ~/.cache/cfpose."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "cfpose"


def coco_cache() -> Path:
    """Where COCO is kept."""
    return cache_folder() / "coco"


def fetch_archives(
    archives: tuple[Archive, ...], folder: Path, *, host: str = COCO_HOST, notice: str = COCO_NOTICE
) -> Path:
    """Bring the archives into `folder` and unpack what is wanted; what is there already stays.

    The hashes that were seen go to `downloads.json` there. Raises DatasetError when the host cannot
    be reached or a file is not the published one.
    """
    seen = seen_archives(folder)
    todo = [archive for archive in archives if archive.name not in seen]
    if todo:
        total = sum(archive.bytes for archive in todo) / 1e6
        print(f"{notice}\nfetching {total:.0f} MB from {host} into {folder}", file=sys.stderr)
    for archive in todo:
        path = folder / archive.name
        fetch(f"{host}/{archive.place}", path, archive.bytes, instead=OTHERWISE)
        actual = digest(path)
        if archive.sha256 is not None and actual != archive.sha256:
            path.unlink()
            raise DatasetError(
                f"{archive.name} from {host} has the SHA-256 {actual}, expected {archive.sha256}; "
                f"it was deleted, run the command again"
            )
        with zipfile.ZipFile(path) as packed:
            members = [n for n in packed.namelist() if n.startswith(archive.wanted)]
            packed.extractall(folder, members)
        path.unlink()
        seen[archive.name] = actual
        record_archives(folder, seen)
    return folder


def seen_archives(folder: Path) -> dict[str, str]:
    """SHA-256 of the archives that were unpacked into a folder, by name; {} where none was.

    Raises DatasetError where the record of them cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        seen = json.loads(path.read_bytes())
        return {str(name): str(digest) for name, digest in seen.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path} is no record of downloads ({error}); delete it, and run the command again"
        ) from error


def record_archives(folder: Path, seen: dict[str, str]) -> None:
    """Write what `seen_archives` reads."""
    write_file(folder / RECORD_FILE, json.dumps(seen, indent=1) + "\n")


def fetch(url: str, path: Path, size: int | None, *, instead: str) -> None:
    """Download `size` bytes to `path` over HTTP; a cut-off download goes on where it stopped.

    None: as many as the host says, where no size is published. What has come so far waits in
    PATH.part. Raises DatasetError after five tries without a byte, or when the host has another
    size; `instead` is what its reader can do other than try again.
    """
    if not _is_address(url):
        raise DatasetError(
            f"{url} is no address; expected one that begins with http:// or https://"
        )
    if size is None:
        size = _size_at(url, instead)
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    tries, problem = 0, ""
    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=not watched()) as bar:
        while (have := part.stat().st_size if part.exists() else 0) < size:
            bar.update(have - bar.n)
            if tries == TRIES:
                raise DatasetError(
                    f"{url} cannot be fetched ({problem}); {have} of {size} bytes are in {part}. "
                    f"Run the command again, or {instead}"
                )
            try:
                _fetch_rest(url, part, have, size, bar)
            except (OSError, http.client.HTTPException) as error:
                problem = str(error)
            grown = (part.stat().st_size if part.exists() else 0) > have
            tries = 0 if grown else tries + 1
    if part.stat().st_size != size:
        part.unlink()
        raise DatasetError(f"{url} has more than the published {size} bytes; it was deleted")
    os.replace(part, path)


def _is_address(url: str) -> bool:
    """Whether there is a host to ask."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # a host in brackets that is no IPv6 address
        return False
    return parts.scheme in SCHEMES


def _size_at(url: str, instead: str) -> int:
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, http.client.HTTPException, TypeError, ValueError) as error:
        raise DatasetError(
            f"{url} cannot be reached, or tells no size: {error}. Run the command again, or "
            f"{instead}"
        ) from error


def _fetch_rest(url: str, part: Path, have: int, size: int, bar: tqdm[None]) -> None:
    headers = {"Range": f"bytes={have}-"} if have else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        if have and answer.status != 206:  # the host cannot resume: from the beginning
            have = 0
            bar.reset()
        length = answer.headers.get("Content-Length")
        if length is not None and have + int(length) != size:
            raise DatasetError(f"{url} has {have + int(length)} bytes, expected {size}")
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(CHUNK):
                file.write(block)
                bar.update(len(block))
