"""The files of a bulk run: its plan, and one file a shard, which appears whole or not at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cfpose_sdk.errors import InputError, require
from cfpose_sdk.files import digest_of, shown, write_file

Format = Literal["jsonl", "parquet"]
Row = dict[str, Any]  # of one image: `image` and either `error`, or `size_wh` and `people`
_PLAN = "plan.json"
_COUNTS = b"cfpose.counts"  # of a Parquet file's metadata


@dataclass(frozen=True)
class Counts:
    """Of a shard, or of several: images, people in them, images that could not be read."""

    images: int = 0
    people: int = 0
    broken: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.images + other.images, self.people + other.people, self.broken + other.broken
        )


def count(rows: Sequence[Row]) -> Counts:
    """What is in the rows of a shard."""
    people = sum(len(row["people"] or ()) for row in rows)
    return Counts(len(rows), people, sum(row["error"] is not None for row in rows))


@dataclass(frozen=True)
class ShardFolder:
    """A bulk run's folder: `plan.json`, `part-00000.jsonl` or `.parquet`, …, `summary.json`."""

    folder: Path
    format: Format = "jsonl"

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise InputError(f"format must be one of {get_args(Format)}, got {self.format!r}")
        if self.format == "parquet":
            require("pyarrow", extra="parquet", why="a Parquet file")

    def begin(self, plan: dict[str, Any], images: Sequence[str]) -> None:
        """Write the plan, or find that the folder's own is the same.

        Raises InputError where the folder holds another run's, or files of somebody else.
        """
        plan = {**plan, "format": self.format, "images": len(images)}
        plan["images_sha256"] = digest_of({"images": list(images)})
        file = self.folder / _PLAN
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            if self.folder.exists() and any(self.folder.glob("part-*")):
                raise InputError(
                    f"{shown(self.folder)} holds part files without a {_PLAN}; choose another --out"
                ) from None
            write_file(file, json.dumps(plan, indent=2) + "\n")
            return
        except (OSError, ValueError) as error:
            raise InputError(f"{shown(file)} cannot be read: {error}") from error
        try:
            before = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise InputError(f"{shown(file)} is no plan of cfpose bulk: {error}") from error
        changed = sorted(
            key for key in plan.keys() | before.keys() if plan.get(key) != before.get(key)
        )
        if changed:
            raise InputError(
                f"{shown(self.folder)} holds a run that differs in {', '.join(changed)}; give the "
                f"same sources and options to go on with it, or choose another --out"
            )

    def file(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"part-{number:05d}.{self.format}"

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Write a shard's rows."""
        if self.format == "parquet":
            write_file(self.file(number), _parquet(rows))
            return
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        write_file(self.file(number), "".join(lines))

    def counts(self, number: int) -> Counts | None:
        """What a finished shard holds; None where it is not there yet.

        Raises InputError for a file that is no shard.
        """
        file = self.file(number)
        if not file.exists():
            return None
        try:
            if self.format == "parquet":
                import pyarrow.parquet

                metadata = pyarrow.parquet.read_schema(file).metadata
                return Counts(**json.loads(metadata[_COUNTS]))
            with file.open(encoding="utf-8") as lines:
                return count([json.loads(line) for line in lines])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{shown(file)} is damaged ({error}); remove it, and it is made again"
            ) from error

    def finish(self, counts: Counts, shards: int) -> None:
        """Write what the whole run found."""
        summary = {**asdict(counts), "shards": shards}
        write_file(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    real, points = pyarrow.float32(), pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    person = pyarrow.struct(
        [
            ("box", pyarrow.list_(real)),
            ("box_score", real),
            ("xy", points),
            ("confidence", pyarrow.list_(real)),
            ("covariance", pyarrow.list_(points)),
        ]
    )
    fields = [
        ("image", pyarrow.string()),
        ("size_wh", pyarrow.list_(pyarrow.int32())),
        ("people", pyarrow.list_(person)),
        ("error", pyarrow.string()),
    ]
    metadata = {_COUNTS: json.dumps(asdict(count(rows)))}
    schema = pyarrow.schema(fields, metadata=metadata)
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), data)
    return data.getvalue()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
