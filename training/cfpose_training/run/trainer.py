"""The trainer: a Stage, its optimiser, the averaged weights, and figures taken between steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cfpose_sdk.errors import TrainingError
from cfpose_training.config import OptimConfig
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.data.loader import Shard
from cfpose_training.run.devices import forget_peak, launch_fabric, peak_memory_gb, prepare
from cfpose_training.stages.base import Stage


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


def _parts(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` equal parts. Raises TrainingError when it does not divide."""
    size = len(next(iter(batch.values())))
    if size % count:
        raise TrainingError(f"{size} samples of a process do not divide into {count} (accumulate)")
    pieces = {name: values.chunk(count) for name, values in batch.items()}
    return [{name: values[part] for name, values in pieces.items()} for part in range(count)]


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


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Restore all that a forward and backward pass inside changes, also when it fails.

    These are torch's random state, the buffers (batch-norm statistics), the gradients, and each
    part's training mode. Gradients inside begin empty. The weights are not copied: do not step.
    """
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    devices = {p.device for p, _ in gradients if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for part, mode in modes.items():
                part.training = mode


class Trainer:
    """The part of a run that changes weights; it reads and writes no files.

    `epoch` and `batch` count from 0 and are the next ones to train; `step` counts optimiser steps.
    """

    def __init__(
        self, stage: Stage, config: OptimConfig, *, accelerator: str, devices: int, threads: int
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.config = config
        self.fabric = launch_fabric(accelerator, devices, config.precision)
        self.fabric.seed_everything(config.seed, verbose=False)
        prepare(stage, config)
        optimiser = build_optimiser(stage.trainable, config)
        self.plain_stage, self.module = stage, stage.trainable
        self.stage, self.optimiser = self.fabric.setup(stage, optimiser)
        self.ema = Ema(self.module, config.ema_decay) if config.ema_decay else None
        self.epoch = self.batch = self.step = 0
        self.epoch_figures: dict[str, float] = {}
        self.is_whole = True  # False from an optimiser step until the loop has counted it
        self._before: tuple[list[Tensor], Tensor] | None = None  # of a batch: buffers, random state

    @property
    def result(self) -> nn.Module:
        """The averaged network, or without EMA the trained one."""
        return self.module if self.ema is None else self.ema.module

    @property
    def shard(self) -> Shard:
        """This process's share of every batch."""
        return Shard(self.fabric.global_rank, self.fabric.world_size)

    def train_step(self, batch: Batch, rate: float) -> dict[str, float]:
        """One step; gives the losses and the norm of all gradients before it is clipped.

        The caller sets `is_whole` once it has counted these: a state saved before would lack them.
        Raises TrainingError, and leaves the weights alone, when one of these is not finite.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self._before = [buffer.clone() for buffer in self.module.buffers()], torch.get_rng_state()
        self.stage.train()
        parts = _parts(self.fabric.to_device(batch), self.config.accumulate)
        if self.batch == 0:
            forget_peak(self.fabric.device)
            with untouched(self.plain_stage), self.fabric.autocast():
                self.epoch_figures = self.plain_stage.epoch_figures(parts[0])
        values = self._gradients(parts)
        values |= self._clip_gradients(values)
        self.is_whole = False
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module)
        self.batch += 1
        self.step += 1
        self._before = None
        return values

    def peak_memory(self) -> dict[str, float]:
        """`memory_gb` of this epoch, see `peak_memory_gb`; nothing where it is not known."""
        peak = peak_memory_gb(self.fabric.device)
        return {} if peak is None else {"memory_gb": peak}

    def leave_batch(self) -> None:
        """Undo a batch that was interrupted before its optimiser step."""
        if self._before is None:
            return
        buffers, random_state = self._before
        with torch.no_grad():
            for buffer, value in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(value)
        torch.set_rng_state(random_state)
        self._before = None

    def agree(self, flag: bool) -> bool:
        """The first process's flag, in every process: they have to stop together."""
        return bool(self.fabric.broadcast(flag)) if self.fabric.world_size > 1 else flag

    def state(self) -> dict[str, Any]:
        """All that a later process needs to continue from here to the same weights."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "ema_steps": 0 if self.ema is None else self.ema.steps,
            "precision": self.fabric.strategy.precision.state_dict(),
            "rng": torch.get_rng_state(),
            "epoch_figures": self.epoch_figures,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a result of `state`."""
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.steps = state["ema_steps"]
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.epoch_figures = state["epoch_figures"]
        torch.set_rng_state(state["rng"])

    def _gradients(self, parts: Sequence[Batch]) -> dict[str, float]:
        """Add up the mean gradient of the parts of a batch; the mean losses."""
        values: dict[str, float] = {}
        for number, part in enumerate(parts, start=1):
            # processes exchange gradients once, with the last part
            with self.fabric.no_backward_sync(self.stage, enabled=number < len(parts)):
                losses: dict[str, Tensor] = self.stage(part)
                for name, loss in losses.items():
                    values[name] = values.get(name, 0.0) + float(loss.detach()) / len(parts)
                self._check_finite("a loss", values)
                self.fabric.backward(losses["loss"] / len(parts))
        return values

    def _clip_gradients(self, losses: dict[str, float]) -> dict[str, float]:
        """Clip where the recipe says so; the norm before, which is the same in all processes."""
        limit = self.config.clip_norm or math.inf  # at infinity the factor is exactly 1
        norm = self.fabric.clip_gradients(
            self.stage, self.optimiser, max_norm=limit, error_if_nonfinite=False
        )
        figures = {"grad_norm": math.nan if norm is None else float(norm)}
        if self.config.precision == "16-mixed" and not math.isfinite(figures["grad_norm"]):
            return {}  # the scaler of float16 leaves this step out and scales less
        self._check_finite("the gradient", {**losses, **figures})
        return figures

    def _check_finite(self, what: str, values: dict[str, float]) -> None:
        if not all(math.isfinite(value) for value in values.values()):
            raise TrainingError(
                f"{what} is not finite: epoch {self.epoch + 1}, batch {self.batch + 1}, {values}; "
                f"lower lr or set clip_norm, in a new --out; the last saved state of this run is "
                f"from before it"
            )
