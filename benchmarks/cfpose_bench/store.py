"""Finished predictions on disk, so that an interrupted run can go on.

One file a model and kind of boxes, named by a hash of all that decides what the model answers: the
bytes of the model's files, the finder's and the boxes, the device, threads, flip test and photos'
folder. A line a photo; a last line that was cut off is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from cfpose_bench.predictions import plain_poses, poses_of
from cfpose_sdk.errors import InputError
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import Skeleton


def digest(path: str | Path, *others: str | Path) -> str:
    """SHA-256 of a file; of several, that of their hashes, a line each."""
    found = []
    for each in (path, *others):
        with Path(each).open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found[0] if not others else hashlib.sha256("\n".join(found).encode()).hexdigest()


def digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of JSON-ready values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class Store:
    """The predictions of one model under one kind of boxes. Raises InputError when not writable."""

    def __init__(self, folder: Path, key: Mapping[str, Any], skeleton: Skeleton) -> None:
        self.path = folder / f"{digest_of(key)[:24]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.done = self._read(skeleton) if self.path.is_file() else {}
            self._file: TextIO = self.path.open("a", encoding="utf-8")
            if self._file.tell() == 0:
                self._line({"key": dict(key)})
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error

    def add(self, image_id: int, turn: int, poses: Poses | None) -> None:
        """Keep one photo's poses; None says that the photo cannot be read."""
        self.done[image_id] = (turn, poses)
        plain = None if poses is None else plain_poses(poses)
        self._line({"photo": image_id, "turn": turn, "poses": plain})

    def close(self) -> None:
        """Close the file; it stays for the next run."""
        self._file.close()

    def _line(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def _read(self, skeleton: Skeleton) -> dict[int, tuple[int, Poses | None]]:
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")  # the next line starts on its own
        records = [json.loads(line) for line in whole.splitlines()]
        done: dict[int, tuple[int, Poses | None]] = {}
        for record in records:
            if "photo" in record:
                plain = record["poses"]
                poses = None if plain is None else poses_of(plain, skeleton)
                done[record["photo"]] = (record["turn"], poses)
        return done
