"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from cfpose_sdk.errors import InputError


def write_file(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a new file beside `path`, then rename it to `path`; makes missing folders.

    Raises InputError when the place cannot be written to.
    """
    file = Path(path)
    content = data.encode() if isinstance(data, str) else data
    unfinished = file.with_name(f".{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, file)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}") from error
    return file
