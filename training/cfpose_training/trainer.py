"""One optimiser step after the other: a Stage, its optimiser and its average under Fabric."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cfpose_sdk.errors import TrainingError
from cfpose_training.batches import Shard
from cfpose_training.data import Batch
from cfpose_training.ema import Ema
from cfpose_training.optim_config import OptimConfig, Precision
from cfpose_training.optimiser import build_optimiser
from cfpose_training.probe import untouched
from cfpose_training.stages import Stage


def launch_fabric(accelerator: str, devices: int, precision: Precision) -> Fabric:
    """Fabric on its devices, with its processes. Raises TrainingError when they are not there."""
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)
        fabric.launch()
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise TrainingError(
            f"cannot run on {devices} device(s) of accelerator {accelerator!r}: {error}; give "
            f"--accelerator auto, cpu or cuda, and as many --devices as there are"
        ) from error
    return fabric


class Trainer:
    """The part of a run that changes weights; it knows no folder.

    `epoch` and `batch` count from 0 and say what comes next; `step` counts optimiser steps.
    """

    def __init__(
        self, stage: Stage, config: OptimConfig, *, accelerator: str, devices: int, threads: int
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.config = config
        self.fabric = launch_fabric(accelerator, devices, config.precision)
        self.fabric.seed_everything(config.seed, verbose=False)
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

    @property
    def is_first(self) -> bool:
        """Whether this is the first of the processes, or the only one."""
        return self.fabric.is_global_zero

    def train_step(self, batch: Batch, rate: float) -> dict[str, float]:
        """One step; gives the losses and the norm of all gradients before it is clipped.

        Who has counted these sets `is_whole`: a state without them would log other means.
        Raises TrainingError, and leaves the weights alone, when one of these is not finite.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self._before = [buffer.clone() for buffer in self.module.buffers()], torch.get_rng_state()
        self.stage.train()
        batch = self.fabric.to_device(batch)
        if self.batch == 0:
            with untouched(self.plain_stage), self.fabric.autocast():
                self.epoch_figures = self.plain_stage.epoch_figures(batch)
        losses: dict[str, Tensor] = self.stage(batch)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        self._check_finite("a loss", values)
        self.fabric.backward(losses["loss"])
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

    def leave_batch(self) -> None:
        """Forget a batch that was broken off before its optimiser step."""
        if self._before is None:
            return
        buffers, random_state = self._before
        with torch.no_grad():
            for buffer, value in zip(self.module.buffers(), buffers, strict=True):
                buffer.copy_(value)
        torch.set_rng_state(random_state)
        self._before = None

    def agree(self, flag: bool) -> bool:
        """The first process's flag, in all of them: they stop together, or wait for ever."""
        return bool(self.fabric.broadcast(flag)) if self.fabric.world_size > 1 else flag

    def wait_for_all(self) -> None:
        """Until every process has come here."""
        self.fabric.barrier()

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on from here to the same weights."""
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
        """Go on from what `state` gave."""
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.steps = state["ema_steps"]
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.epoch_figures = state["epoch_figures"]
        torch.set_rng_state(state["rng"])

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
