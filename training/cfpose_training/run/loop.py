"""The training loop: epochs of a Stage under Fabric, with EMA, resume, CSV log and progress bar."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm import tqdm

from cfpose_sdk.commands import watched
from cfpose_sdk.errors import TrainingError
from cfpose_training.config import OptimConfig
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.data.loader import Batches
from cfpose_training.processes import is_first_process, wait_for_processes
from cfpose_training.run.curves import CURVES_FILE, write_curves
from cfpose_training.run.devices import device_type
from cfpose_training.run.outputs import KeptCheckpoints, Meter, RunLog, SaveCheckpoint
from cfpose_training.run.state import (
    FREE_OPTIM_FIELDS,
    Record,
    load_state,
    recorded,
    remove_torn_states,
    save_state,
)
from cfpose_training.run.trainer import Trainer, learning_rate
from cfpose_training.stages.base import Stage

LOG_FILE = "log.csv"
SAVE_EVERY_S = 300.0
SAID = ("loss", "dev_AP", "dev_recall")  # of a line an epoch
AfterEpoch = Callable[[int, nn.Module], dict[str, float]]


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes, on which devices, and for how long; nothing here changes its result."""

    folder: Path
    resume: bool = False
    max_minutes: float = math.inf  # stop after this long, ready to resume
    devices: int = 1
    accelerator: str = "auto"
    threads: int = 0  # of torch on a CPU; 0: its own choice
    save_every_s: float = SAVE_EVERY_S  # the state, within an epoch
    keep_last: int = 0  # checkpoints of the last epochs; 0: none

    @property
    def uses_cuda(self) -> bool:
        """Whether batches go to a CUDA device."""
        return device_type(self.accelerator) == "cuda"


def fit(
    stage: Stage,
    batches: Batches,
    batches_per_epoch: int,
    config: OptimConfig,
    options: RunOptions,
    *,
    after_epoch: AfterEpoch,
    record: Record | None = None,
    save_checkpoint: SaveCheckpoint | None = None,
) -> bool:
    """Train `stage.trainable` in place; its final weights are the averaged ones if EMA is on.

    `after_epoch(epoch, module)` gets the (averaged) module and returns figures for the log; only
    the first process calls it, while the others wait. `record` holds all that decides the result;
    None: `config` alone. With `save_checkpoint` the run keeps checkpoints, see
    KeptCheckpoints.
    Returns False when `max_minutes` ended the run early. Raises TrainingError when a loss or
    gradient is not finite, when a file cannot be written, or when the folder holds another run, or
    any run and `resume` is not set.
    """
    run = _Run(stage, config, options, record, save_checkpoint)
    trainer = run.trainer
    deadline = time.monotonic() + options.max_minutes * 60
    total = config.epochs * batches_per_epoch
    with tqdm(total=total, initial=trainer.step, unit="batch", disable=not watched()) as progress:
        while trainer.epoch < config.epochs:
            stage.set_epoch(trainer.epoch + 1, config.epochs)
            try:
                part = batches(trainer.epoch, trainer.batch, trainer.shard)
                for batch in run.meter.waiting(part):
                    fraction = trainer.epoch + trainer.batch / batches_per_epoch
                    rate = learning_rate(config, fraction, trainer.step)
                    run.train_step(batch, rate)
                    progress.update()
                    summary = f"epoch {trainer.epoch + 1} {run.meter.summary()}"
                    progress.set_postfix_str(summary, refresh=False)
                    if trainer.agree(time.monotonic() > deadline):
                        run.save()
                        return False
                    run.save_now_and_then()
                run.end_epoch(after_epoch)
            except KeyboardInterrupt:
                run.save_if_whole()
                raise
    wait_for_processes()  # until the first one has written the last epoch's files
    stage.trainable.load_state_dict(trainer.result.state_dict())
    return True


class _Run:
    """A trainer and its folder: state, log and checkpoints, all written by the first process."""

    def __init__(
        self,
        stage: Stage,
        config: OptimConfig,
        options: RunOptions,
        record: Record | None,
        save_checkpoint: SaveCheckpoint | None,
    ) -> None:
        self.folder = options.folder
        self.save_every_s = options.save_every_s
        self.record = recorded(config, "optim", FREE_OPTIM_FIELDS) if record is None else record
        self.trainer = Trainer(
            stage,
            config,
            accelerator=options.accelerator,
            devices=options.devices,
            threads=options.threads,
        )
        self.meter = Meter()
        self.kept: KeptCheckpoints | None = None
        if save_checkpoint is not None and is_first_process():
            self.kept = KeptCheckpoints(options.folder, save_checkpoint, options.keep_last)
        self._saved = self._began = time.monotonic()
        self._open(resume=options.resume)
        self._first = self.trainer.epoch
        self.log = RunLog(self.folder / LOG_FILE, self.trainer.epoch)

    def train_step(self, batch: Batch, rate: float) -> None:
        """One step of the trainer, counted."""
        self.meter.add(self.trainer.train_step(batch, rate), len(next(iter(batch.values()))))
        self.trainer.is_whole = True

    def end_epoch(self, after_epoch: AfterEpoch) -> None:
        """Measure, keep and log the epoch in the first process, then go on to the next one."""
        trainer = self.trainer
        if is_first_process():
            speeds = self.meter.speeds()  # before the measuring, which is no part of them
            figures = after_epoch(trainer.epoch, trainer.result)
            if self.kept is not None:
                self.kept.keep(trainer.epoch + 1, trainer.result, figures)
            means = self.meter.means()
            numbers = {"epoch": trainer.epoch + 1, "step": trainer.step}
            speeds |= trainer.peak_memory()
            self.log.append({**numbers, **speeds, **means, **trainer.epoch_figures, **figures})
            write_curves(self.folder / CURVES_FILE, self.log.rows)
            self._say({**means, **figures})
        trainer.epoch, trainer.batch = trainer.epoch + 1, 0
        self.meter = Meter()
        self.save()

    def _say(self, figures: Mapping[str, float]) -> None:
        """A line an epoch where no progress bar is seen."""
        if watched():
            return
        done, total = self.trainer.epoch + 1, self.trainer.config.epochs
        left = (time.monotonic() - self._began) / (done - self._first) * (total - done) / 60
        parts = [f"{name} {figures[name]:.4g}" for name in SAID if name in figures]
        text = f"epoch {done} of {total}: {', '.join(parts)}; about {left:.0f} minutes left"
        print(text, file=sys.stderr, flush=True)

    def save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > self.save_every_s:
            self.save()

    def save_if_whole(self) -> None:
        """Save the state before the batch; during an optimiser step keep the last saved one."""
        if self.trainer.is_whole:
            self.trainer.leave_batch()
            self.save()

    def save(self) -> None:
        """Write the state; only the first process does."""
        self._saved = time.monotonic()
        if is_first_process():
            best = None if self.kept is None else self.kept.best
            state = {**self.trainer.state(), "meter": self.meter.state(), "best": best}
            save_state(self.folder, state, self.record)

    def _open(self, *, resume: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot make the folder {self.folder}: {error.strerror}; give another --out"
            ) from error
        if is_first_process():
            remove_torn_states(self.folder)
        state = load_state(self.folder, self.record, resume=resume)
        if state is None:
            if is_first_process():
                (self.folder / LOG_FILE).unlink(missing_ok=True)
            if self.kept is not None:
                self.kept.begin()
            return
        self.trainer.restore(state)
        self.meter = Meter(state["meter"])
        if self.kept is not None:
            self.kept.resume(state["best"])
