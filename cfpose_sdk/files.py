"""Write files whole or not at all, and SHA-256 of files and values.

Where OSError and ValueError are caught: Python raises ValueError for a path with a NUL character,
and its subclass UnicodeError for text that is not UTF-8.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from cfpose_sdk.errors import InputError

MODELS = Path(__file__).parent / "models"  # the folder of the bundled models


def demo_photos() -> Path:
    """The folder of the example photos: a checkout's `examples/photos`, else the wheel's copy."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "examples" / "photos"
    return checkout if checkout.is_dir() else package / "photos"


def digest(path: str | Path, *others: str | Path) -> str:
    """SHA-256 of a file; for several, the SHA-256 of their digests, one a line."""
    digests = []
    for each in (path, *others):
        with Path(each).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if not others else sha256("\n".join(digests).encode())


def digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of JSON-ready values, whatever the order of their keys."""
    return sha256(json.dumps(record, sort_keys=True).encode())


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_file(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a new file beside `path`, then rename it to `path`; makes missing folders.

    Raises InputError when the file cannot be written.
    """
    file = Path(path)
    unfinished = file.with_name(f".{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(data.encode() if isinstance(data, str) else data)
            os.replace(unfinished, file)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be written: {error}") from error
    return file


class UnfinishedFile:
    """A file that is written under another name beside `path` and renamed at the end.

    `with UnfinishedFile(path) as file: write to file.part`; `commit` renames it, `discard` (also
    when the block raises) removes it. For data that does not fit in memory. Raises InputError when
    the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # the suffix stays last: video writers choose their container by it
        self.part = self.path.with_name(f".{uuid.uuid4().hex}.part{self.path.suffix}")
        self._stream: TextIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.part.touch()
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error

    def write(self, text: str) -> None:
        """Append text."""
        try:
            if self._stream is None:
                self._stream = self.part.open("w", encoding="utf-8", newline="")
            self._stream.write(text)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error

    def commit(self) -> Path:
        """Rename the file to `path`."""
        try:
            self._close()
            os.replace(self.part, self.path)
        except (OSError, ValueError) as error:
            self.discard()
            raise InputError(f"{self.path} cannot be written: {error}") from error
        return self.path

    def discard(self) -> None:
        """Remove what was written; does nothing after `commit`."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self.part.unlink()

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()
