"""The optimiser of a run, and its learning rate over the epochs."""

from __future__ import annotations

import math

import torch
from torch import nn

from cfpose_training.optim_config import OptimConfig


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
