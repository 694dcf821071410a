"""One door to every source: `open_source` chooses by what it is given."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from cfpose_sdk.errors import InputError
from cfpose_sdk.frames import (
    Footage,
    Frame,
    Item,
    PathLike,
    Source,
    Unread,
    expand,
    is_url,
    is_video,
    load_frame,
)
from cfpose_sdk.image import Image
from cfpose_sdk.videos import TIMEOUT_S, open_video


def open_source(source: Source, timeout_s: float = TIMEOUT_S) -> Footage:
    """A photo, folder of photos, glob, video, camera index, URL, or an iterable of arrays and
    paths (of photos and videos), as items in order.

    The source is opened now, its items are read one by one later. A file that cannot be
    read is an `Unread` in its place. Raises InputError when there is nothing to read from, or the
    one path does not exist.
    """
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise InputError(
            f"a stream needs several images, got one array {source.shape}; use [image]"
        )
    if isinstance(source, int) or is_url(source):
        return open_video(source, timeout_s)
    if isinstance(source, str | os.PathLike):
        files = expand(source)
        if len(files) == 1 and not files[0].exists():
            raise InputError(f"{source} does not exist; expected a photo, video, folder or glob")
        if len(files) == 1 and is_video(files[0]):
            return open_video(files[0], timeout_s)
        return _listed(files, own=True)
    if not isinstance(source, Iterable):
        raise InputError(
            f"a stream needs a path, a camera index, a URL or an iterable of images, "
            f"got {type(source).__name__}"
        )
    own = isinstance(source, list | tuple | np.ndarray)
    return _listed(source, own=own)


def open_frames(source: Source) -> Iterator[Frame]:
    """Frames of `open_source`; raises InputError now, or at the item that cannot be read."""
    return _frames(open_source(source))


def _listed(entries: Iterable[Image | PathLike], *, own: bool) -> Footage:
    items = _items(entries)
    count = len(entries) if isinstance(entries, list | tuple) else None
    return Footage(items, items.close, count=count, own=own)


def _items(entries: Iterable[Image | PathLike]) -> Generator[Item, None, None]:
    for entry in entries:
        try:
            if isinstance(entry, str | os.PathLike) and is_video(entry):
                footage = open_video(Path(entry))
            else:
                yield load_frame(entry)
                continue
        except InputError as error:
            if not isinstance(entry, str | os.PathLike):
                raise  # an array that is no image is the caller's mistake, not a damaged file
            yield Unread(error)
            continue
        try:
            yield from footage.items
        finally:
            footage.close()


def _frames(footage: Footage) -> Iterator[Frame]:
    try:
        for item in footage.items:
            if isinstance(item, Unread):
                raise item.error
            yield item
    finally:
        footage.close()
