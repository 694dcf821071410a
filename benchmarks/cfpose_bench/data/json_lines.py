"""A file of JSON lines that grows during a run, and that an interrupted run goes on from.

Used for the bench's finished predictions and for the journal of labels in training. A line counts
once its newline is written; a last line without one was cut off, and is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that were written to their end; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


class JsonLines:
    """A file of JSON lines, open for more of them.

    `kept` are its first lines, as `read_whole_lines` gave them; what follows them is cut off.
    Raises OSError where the file, or its folder, cannot be written.
    """

    def __init__(self, path: Path, kept: Sequence[bytes] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(sum(map(len, kept)))

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one line; it has left this process when the call returns. Raises OSError."""
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; it stays for the next run."""
        self._file.close()
