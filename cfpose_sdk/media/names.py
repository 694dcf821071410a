"""Names of sources in results: short ones, which no two sources share; and web addresses."""

from __future__ import annotations

import http.client
import os
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard
from urllib.parse import unquote, urlsplit

from cfpose_sdk.errors import ImageError
from cfpose_sdk.files import PHOTO_SUFFIXES, VIDEO_SUFFIXES, shown
from cfpose_sdk.formats import coco_image_id

PathLike = str | os.PathLike[str]
Names = Mapping[PathLike, str]
_LARGEST_DOWNLOAD = 1 << 28  # bytes
_LONGEST_DOWNLOAD_S = 60.0


def is_url(source: object) -> TypeGuard[str]:
    """Whether the source is a string such as rtsp://…"""
    return isinstance(source, str) and "://" in source


def is_photo_url(source: object) -> TypeGuard[str]:
    """Whether an address is a photo's by its path, whatever its query."""
    if not is_url(source) or not source.lower().startswith(("http://", "https://")):
        return False
    return Path(base_name(source)).suffix.lower() in PHOTO_SUFFIXES


def fetch_photo(url: str, timeout_s: float) -> bytes:
    """The bytes behind an http or https address: 256 MiB and a minute at most.

    `timeout_s`: of each wait for the server. Raises ImageError.
    """
    try:
        # is_photo_url lets no other scheme, such as file:, in; nor may the answer lead to one
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            if not answer.url.lower().startswith(("http://", "https://")):
                raise ImageError(f"{shown(url)} leads to {shown(answer.url)}; expected a photo")
            return _all_of(answer, url)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{shown(url)} cannot be fetched: {error}; check the address") from error


def _all_of(answer: http.client.HTTPResponse, url: str) -> bytes:
    """What an answer holds; a server that drips holds nobody up for longer than a minute."""
    data, begun = bytearray(), time.monotonic()
    while part := answer.read1(1 << 16):
        data += part
        if len(data) > _LARGEST_DOWNLOAD:
            limit = _LARGEST_DOWNLOAD >> 20
            raise ImageError(f"{shown(url)} is larger than {limit} MiB; expected a photo")
        if time.monotonic() - begun > _LONGEST_DOWNLOAD_S:
            raise ImageError(
                f"{shown(url)} was not there after {_LONGEST_DOWNLOAD_S:g} s; download it yourself"
            )
    if answer.length:
        raise ImageError(f"{shown(url)} ended {answer.length} bytes too early; try again")
    return bytes(data)


def base_name(source: PathLike) -> str:
    """The last part of a path, or of an address without its query."""
    if not is_url(source):
        return Path(os.fsdecode(source)).name
    try:
        return Path(unquote(urlsplit(source).path)).name or (urlsplit(source).hostname or "")
    except ValueError:  # a host in brackets that is no IPv6 address
        return Path(source).name


def distinct_names(sources: Iterable[PathLike]) -> dict[PathLike, str]:
    """A name for each source: its last part, where no other source's results would share it.

    Sources that would share it, or its COCO id (1.jpg and 0001.png), get as many folders as it
    takes: cam1/0001.jpg. Names that are equal in all their folders are of one file.
    """
    groups: dict[object, list[PathLike]] = defaultdict(list)
    for source in dict.fromkeys(sources):
        groups[_shared(base_name(source))].append(source)
    names: dict[PathLike, str] = {}
    for group in groups.values():
        if len(group) == 1:
            names[group[0]] = base_name(group[0])
            continue
        parts = {source: _parts(source) for source in group}
        for depth in range(2, 2 + max(map(len, parts.values()))):
            named = {source: "/".join(each[-depth:]) for source, each in parts.items()}
            if len(set(named.values())) == len({tuple(each) for each in parts.values()}):
                break
        names |= named
    return names


def _shared(name: str) -> object:
    """Equal for two names whose results could not be told apart."""
    if Path(name).suffix.lower() in VIDEO_SUFFIXES:
        return "video", Path(name).stem  # its frames are STEM-000000, …
    return "photo", coco_image_id(name)


def _parts(source: PathLike) -> list[str]:
    if is_url(source):
        return [part for part in source.split("?")[0].split("/") if part]
    return [part for part in Path(os.path.abspath(os.fsdecode(source))).parts if part != os.sep]
