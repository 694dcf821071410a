"""The checkpoints that a run leaves behind as it goes: the best one, and those of the last epochs.

Each is an ordinary checkpoint, written whole or not at all, whose spec carries the epoch and the
figures on the development photos as metrics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from cfpose_sdk.errors import InputError, TrainingError
from cfpose_training.checkpoint import load_spec

BEST_FILE = "best.safetensors"
BEST_METRIC = "dev_AP"  # COCO AP with ground-truth boxes; the best checkpoint has the highest
EPOCH_FILE = "epoch-{:04d}.safetensors"
EPOCH_PATTERN = re.compile(r"epoch-(\d{4,})\.safetensors")

# (path, module, metrics): write the module as a checkpoint whose spec carries the metrics
SaveCheckpoint = Callable[[Path, nn.Module, Mapping[str, float]], None]


class KeptCheckpoints:
    """`best.safetensors` where development photos exist, and the last `keep_last` epochs' files.

    What the best file says of itself is the figure to beat, so the two cannot disagree, wherever a
    run was killed. Of equal figures the earliest stays. Raises TrainingError for a negative number.
    """

    def __init__(self, folder: Path, save: SaveCheckpoint, keep_last: int) -> None:
        if keep_last < 0:
            raise TrainingError(f"keep_last is {keep_last}, expected 0 or more epochs")
        self.best: float | None = None
        self._folder = folder
        self._save = save
        self._keep_last = keep_last

    def begin(self) -> None:
        """Remove what an earlier run, whose state is gone, left in the folder."""
        (self._folder / BEST_FILE).unlink(missing_ok=True)
        for path in self._epochs().values():
            path.unlink(missing_ok=True)

    def resume(self, best: float | None) -> None:
        """Go on from a state that knew of a best figure, or of none.

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
