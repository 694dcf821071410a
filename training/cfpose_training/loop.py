"""The training loop: epochs of a Stage under Fabric, with EMA, resume, CSV log and progress bar."""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from cfpose_sdk.errors import TrainingError
from cfpose_training.config import OptimConfig
from cfpose_training.data import Batch, Batches, Shard
from cfpose_training.stages import Stage

STATE_FILE = "state.pt"
LOG_FILE = "log.csv"
SAVE_EVERY_S = 300.0


@dataclass(frozen=True)
class RunOptions:
    """Where a run lives and how long it may take; nothing here changes its result."""

    folder: Path
    resume: bool = False
    max_minutes: float = math.inf  # stop after this long, ready to resume
    devices: int = 1
    accelerator: str = "auto"
    threads: int = 0  # of torch on a CPU; 0: its own choice
    save_every_s: float = SAVE_EVERY_S  # the state, within an epoch


class Ema:
    """Exponential moving average of parameters and buffers; warms up as (1 + n) / (10 + n)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, value in zip(
            self.module.state_dict().values(), module.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), weight)
            else:
                average.copy_(value)


def build_optimiser(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW; norms and biases are not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=config.lr)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(config: OptimConfig, epoch: float, step: int) -> float:
    """Rate at a fractional epoch (from 0) and optimiser step (from 0)."""
    if config.schedule == "multistep":
        rate = config.lr * 0.1 ** sum(epoch >= milestone for milestone in config.milestones)
    else:
        begin = config.cosine_from
        progress = min(1.0, max(0.0, (epoch / config.epochs - begin) / (1 - begin)))
        rate = config.final_lr + (config.lr - config.final_lr) * (
            0.5 + 0.5 * math.cos(math.pi * progress)
        )
    return rate * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else rate


def fit(
    stage: Stage,
    batches: Batches,
    batches_per_epoch: int,
    config: OptimConfig,
    options: RunOptions,
    *,
    after_epoch: Callable[[int, nn.Module], dict[str, float]],
) -> bool:
    """Train `stage.trainable` in place; its final weights are the averaged ones if EMA is on.

    `after_epoch(epoch, module)` gets the (averaged) module and returns figures for the log; of
    several processes the first alone calls it, while the others wait.
    Returns False when `max_minutes` ended the run early. Raises TrainingError when a loss is not
    finite, or when the folder holds another run and `resume` is not set.
    """
    run = _Run(stage, config, options)
    deadline = time.monotonic() + options.max_minutes * 60
    total = config.epochs * batches_per_epoch
    with tqdm(total=total, initial=run.step, unit="batch", disable=None) as progress:
        while run.epoch < config.epochs:
            meter = _Meter()
            stage.set_epoch(run.epoch + 1, config.epochs)
            try:
                for batch in batches(run.epoch, run.batch, run.shard):
                    fraction = run.epoch + run.batch / batches_per_epoch
                    losses = run.train_step(batch, learning_rate(config, fraction, run.step))
                    meter.add(losses, len(next(iter(batch.values()))))
                    progress.update()
                    progress.set_postfix_str(f"epoch {run.epoch + 1} {meter.summary()}", False)
                    if run.agree(time.monotonic() > deadline):
                        run.save()
                        return False
                    run.save_now_and_then()
            except KeyboardInterrupt:
                run.save_if_whole()
                raise
            figures = after_epoch(run.epoch, run.result) if run.is_first else {}
            run.log({"samples_per_s": meter.rate(), **meter.means(), **figures})
            run.epoch, run.batch = run.epoch + 1, 0
            run.save()
    stage.trainable.load_state_dict(run.result.state_dict())
    return True


def leave_processes() -> None:
    """End this process's part in a group of processes; without one, nothing.

    The last call of a program that trains under torchrun. A process that exits with its group
    open aborts now and then, because its threads outlive it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Run:
    """The mutable state of one run, and its file."""

    def __init__(self, stage: Stage, config: OptimConfig, options: RunOptions) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        self.config = config
        self.folder = options.folder
        self.save_every_s = options.save_every_s
        self.fabric = Fabric(
            accelerator=options.accelerator, devices=options.devices, precision=config.precision
        )
        self.fabric.launch()
        self.fabric.seed_everything(config.seed, verbose=False)
        optimiser = build_optimiser(stage.trainable, config)
        self.module = stage.trainable
        self.stage, self.optimiser = self.fabric.setup(stage, optimiser)
        self.ema = Ema(self.module, config.ema_decay) if config.ema_decay else None
        self.epoch = self.batch = self.step = 0
        self._saved = time.monotonic()
        self._in_step = False  # between the optimiser's step and the counters'
        self._open(resume=options.resume)

    @property
    def result(self) -> nn.Module:
        return self.module if self.ema is None else self.ema.module

    def train_step(self, batch: Batch, rate: float) -> dict[str, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.stage.train()
        batch = self.fabric.to_device(batch)
        losses: dict[str, Tensor] = self.stage(batch)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise TrainingError(
                f"a loss is not finite: epoch {self.epoch + 1}, batch {self.batch + 1}, {values}; "
                f"lower lr or set clip_norm; the state before it is in {self.folder / STATE_FILE}"
            )
        self._in_step = True
        self.fabric.backward(losses["loss"])
        if self.config.clip_norm:
            self.fabric.clip_gradients(self.stage, self.optimiser, max_norm=self.config.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module)
        self.batch += 1
        self.step += 1
        self._in_step = False
        return values

    def save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > self.save_every_s:
            self.save()

    @property
    def shard(self) -> Shard:
        """This process's share of every batch."""
        return Shard(self.fabric.global_rank, self.fabric.world_size)

    @property
    def is_first(self) -> bool:
        return self.fabric.is_global_zero

    def agree(self, flag: bool) -> bool:
        """The first process's flag, in all of them: they stop together, or wait for ever."""
        return bool(self.fabric.broadcast(flag)) if self.fabric.world_size > 1 else flag

    def save_if_whole(self) -> None:
        """Save unless a step is half done; then the last saved state stands."""
        if not self._in_step:
            self.save()

    def save(self) -> None:
        """Write the state atomically, from the first process alone."""
        self._saved = time.monotonic()
        if not self.fabric.is_global_zero:
            return
        state = {
            "config": repr(self.config),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "ema_steps": 0 if self.ema is None else self.ema.steps,
            "rng": torch.get_rng_state(),
        }
        temporary = self.folder / f".{STATE_FILE}.{os.getpid()}"
        try:
            torch.save(state, temporary)
            os.replace(temporary, self.folder / STATE_FILE)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise TrainingError(
                f"cannot save {self.folder / STATE_FILE}: {error}; free some space, then pass "
                f"--resume to go on from the last saved state"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def log(self, figures: dict[str, float]) -> None:
        """Append one row for the epoch just ended."""
        if not self.fabric.is_global_zero:
            return
        row = {"epoch": self.epoch + 1, "step": self.step, **figures}
        path = self.folder / LOG_FILE
        is_new = not path.is_file()
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})

    def _open(self, *, resume: bool) -> None:
        path = self.folder / STATE_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(f".{STATE_FILE}.*"):  # a process was killed while saving
            torn.unlink(missing_ok=True)
        if not path.is_file():
            (self.folder / LOG_FILE).unlink(missing_ok=True)
            return
        if not resume:
            raise TrainingError(
                f"{self.folder} holds a run already; pass --resume to go on with it"
            )
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["config"] != repr(self.config):
            raise TrainingError(
                f"{path} was made with {state['config']}, now asked for {self.config!r}"
            )
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.steps = state["ema_steps"]
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        torch.set_rng_state(state["rng"])


class _Meter:
    """Mean losses and speed since the epoch, or its resumption, began."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._batches = self._samples = 0
        self._start = time.monotonic()

    def add(self, losses: dict[str, float], samples: int) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._batches += 1
        self._samples += samples

    def means(self) -> dict[str, float]:
        return {name: total / max(1, self._batches) for name, total in self._sums.items()}

    def rate(self) -> float:
        return self._samples / max(1e-9, time.monotonic() - self._start)

    def summary(self) -> str:
        parts = " ".join(f"{name} {value:.4g}" for name, value in self.means().items())
        return f"{parts} {self.rate():.0f}/s"
