"""CSV log and running means of a run, and the checkpoints that it keeps.

It keeps the best checkpoint and those of the last epochs. Each is an ordinary checkpoint, written
whole or not at all; the metrics in its spec are the epoch and the figures on the development
photos.
"""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from cfpose_sdk.errors import InputError, TrainingError
from cfpose_sdk.files import write_file
from cfpose_training.checkpoints.files import load_spec

Item = TypeVar("Item")


class RunLog:
    """The log of a run, one row an epoch, numbered from 1; the file is replaced whole each time.

    A run that is resumed in epoch `epochs` + 1 keeps the rows up to `epochs`: a later one was
    written by a process that was killed before it saved its state, and is written again.
    """

    def __init__(self, path: Path, epochs: int = 0) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        if epochs and self._path.is_file():
            with open(self._path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            self._rows = [row for row in rows if int(row["epoch"]) <= epochs]

    @property
    def rows(self) -> Sequence[Mapping[str, str]]:
        """The rows so far, as the file has them."""
        return self._rows

    def append(self, figures: Mapping[str, float]) -> None:
        """Add a row. Raises TrainingError when it cannot be written."""
        self._rows.append({name: f"{value:.6g}" for name, value in figures.items()})
        columns = dict.fromkeys(name for row in self._rows for name in row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        try:
            write_file(self._path, text.getvalue())
        except InputError as error:
            raise TrainingError(
                f"{error}; free some space, then pass --resume to go on from the last saved state"
            ) from error


class Meter:
    """Mean losses and speed of one epoch, over all the processes that ran parts of it in turn."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        before = state or {}
        self._sums: dict[str, float] = dict(before.get("sums", {}))
        self._counts: dict[str, int] = dict(before.get("counts", {}))
        self._samples: int = before.get("samples", 0)
        self._waited_s: float = before.get("waited_s", 0.0)
        self._start: float = time.monotonic() - before.get("elapsed_s", 0.0)

    def state(self) -> dict[str, Any]:
        """Numbers for a Meter that goes on from here."""
        return {
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "samples": self._samples,
            "waited_s": self._waited_s,
            "elapsed_s": self._elapsed_s(),
        }

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches; the time until each is there counts as waiting for data."""
        start = time.monotonic()
        for batch in batches:
            self._waited_s += time.monotonic() - start
            yield batch
            start = time.monotonic()

    def add(self, figures: Mapping[str, float], samples: int) -> None:
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._samples += samples

    def means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def speeds(self) -> dict[str, float]:
        """Steps and samples per second, and the share of the time spent waiting for data."""
        return {
            "steps_per_s": max(self._counts.values(), default=0) / self._elapsed_s(),
            "samples_per_s": self._samples / self._elapsed_s(),
            "load_s_share": self._waited_s / self._elapsed_s(),
        }

    def summary(self) -> str:
        parts = " ".join(f"{name} {value:.4g}" for name, value in self.means().items())
        return f"{parts} {self.speeds()['samples_per_s']:.0f}/s"

    def _elapsed_s(self) -> float:
        return max(1e-9, time.monotonic() - self._start)


BEST_FILE = "best.safetensors"
BEST_METRIC = "dev_AP"  # COCO AP with ground-truth boxes; the best checkpoint has the highest
EPOCH_FILE = "epoch-{:04d}.safetensors"
EPOCH_PATTERN = re.compile(r"epoch-(\d{4,})\.safetensors")
# (path, module, metrics): write the module as a checkpoint whose spec carries the metrics
SaveCheckpoint = Callable[[Path, nn.Module, Mapping[str, float]], None]


class KeptCheckpoints:
    """`best.safetensors` where development photos exist, and the last `keep_last` epochs' files.

    The figure to beat is read from the best file itself, so the two agree wherever a run was
    killed. Of equal figures the earliest stays. Raises TrainingError for a negative number.
    """

    def __init__(self, folder: Path, save: SaveCheckpoint, keep_last: int) -> None:
        if keep_last < 0:
            raise TrainingError(f"keep_last is {keep_last}, expected 0 or more epochs")
        self.best: float | None = None
        self._folder = folder
        self._save = save
        self._keep_last = keep_last

    def begin(self) -> None:
        """Remove the checkpoints of an earlier run, whose state is gone, from the folder."""
        (self._folder / BEST_FILE).unlink(missing_ok=True)
        for path in self._epochs().values():
            path.unlink(missing_ok=True)

    def resume(self, best: float | None) -> None:
        """Continue from a state with this best figure, or with none.

        Raises TrainingError when its file is gone, ArtifactError when that cannot be read.
        """
        path = self._folder / BEST_FILE
        if path.is_file():
            self.best = load_spec(path).metrics.get(BEST_METRIC)
        elif best is not None:
            raise TrainingError(
                f"{path} is gone, the best checkpoint of this run so far ({BEST_METRIC} "
                f"{best:.4f}); put it back, or give another --out"
            )

    def keep(self, epoch: int, module: nn.Module, figures: Mapping[str, float]) -> None:
        """After epoch `epoch`, from 1. Raises TrainingError when a file cannot be written."""
        metrics = {**figures, "epoch": float(epoch)}
        if self._keep_last:
            self._write(EPOCH_FILE.format(epoch), module, metrics)
            for number, path in self._epochs().items():
                if number <= epoch - self._keep_last:
                    path.unlink(missing_ok=True)
        value = figures.get(BEST_METRIC, math.nan)
        if math.isfinite(value) and (self.best is None or value > self.best):
            self._write(BEST_FILE, module, metrics)
            self.best = value

    def _write(self, name: str, module: nn.Module, metrics: Mapping[str, float]) -> None:
        try:
            self._save(self._folder / name, module, metrics)
        except InputError as error:
            raise TrainingError(
                f"{error}; free some space, then pass --resume to go on from the last saved state"
            ) from error

    def _epochs(self) -> dict[int, Path]:
        """The epochs' checkpoints in the folder."""
        matches = ((EPOCH_PATTERN.fullmatch(path.name), path) for path in self._folder.iterdir())
        return {int(match[1]): path for match, path in matches if match}
