"""Options of one optimisation run: epochs, batches, learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class OptimConfig:
    """One optimisation run. `schedule`: multistep divides lr by 10 at each milestone epoch."""

    epochs: int
    batch_size: int = 128
    optimiser: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0  # adamw: not on norms and biases
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[int, ...] = (170, 200)
    warmup_steps: int = 0
    final_lr: float = 0.0  # cosine
    cosine_from: float = 0.0  # the cosine begins after this share of the epochs, lr before
    mild_epochs: int = 0  # the last epochs, augmented as the recipe's [mild_augment] says
    clip_norm: float = 0.0  # gradient norm; 0: off
    ema_decay: float = 0.0  # 0: off
    precision: Precision = "32-true"
    seed: int = 2025
    workers: int = 0  # loader processes
    final: Literal["last", "best"] = "last"  # epoch that is kept in the end; best: by dev_AP
