"""Schedules, what is decayed, and the average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cfpose_training.config import OptimConfig
from cfpose_training.run.trainer import Ema, build_optimiser, learning_rate


def test_schedules() -> None:
    steps = OptimConfig(epochs=210, lr=1e-3, milestones=(170, 200))
    assert learning_rate(steps, 169.9, 0) == pytest.approx(1e-3)
    assert learning_rate(steps, 170, 0) == pytest.approx(1e-4)
    assert learning_rate(steps, 205, 0) == pytest.approx(1e-5)
    cosine = OptimConfig(epochs=10, lr=1.0, schedule="cosine", final_lr=0.1, warmup_steps=4)
    assert learning_rate(cosine, 0, 0) == pytest.approx(0.25)
    assert learning_rate(cosine, 5, 99) == pytest.approx(0.55)
    assert learning_rate(cosine, 10, 99) == pytest.approx(0.1)


def test_norms_and_biases_are_not_decayed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimiser = build_optimiser(module, OptimConfig(1, optimiser="adamw", weight_decay=0.5))
    decay = {
        id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]
    }
    assert decay == {id(p): 0.5 if p.ndim > 1 else 0.0 for p in module.parameters()}


def test_average_follows_its_formula_on_parameters_and_buffers() -> None:
    module = nn.BatchNorm1d(1)
    ema = Ema(module, decay=0.5)
    expected = 1.0
    for step, value in enumerate((2.0, 4.0, 8.0), start=1):
        with torch.no_grad():
            module.weight.fill_(value)
            module.running_mean.fill_(value)  # type: ignore[union-attr]
            module.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        ema.update(module)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.module.weight.item() == pytest.approx(expected)  # type: ignore[union-attr, operator]
    assert ema.module.num_batches_tracked.item() == 3  # type: ignore[union-attr, operator]


def test_a_late_cosine_is_flat_before_and_whole_after() -> None:
    late = OptimConfig(
        epochs=20, lr=4e-3, schedule="cosine", final_lr=2e-4, cosine_from=0.5, warmup_steps=10
    )
    step = 10**6
    assert [learning_rate(late, epoch, step) for epoch in (0, 5.5, 10)] == [4e-3] * 3
    assert learning_rate(late, 15, step) == pytest.approx((4e-3 + 2e-4) / 2)
    assert learning_rate(late, 20, step) == pytest.approx(2e-4)
    whole = OptimConfig(epochs=10, lr=4e-3, schedule="cosine", final_lr=2e-4)
    for epoch in (10.0, 12.5, 17.0, 19.9):
        assert learning_rate(late, epoch, step) == pytest.approx(
            learning_rate(whole, epoch - 10, step)
        )
    assert learning_rate(late, 0, 4) == pytest.approx(4e-3 * 5 / 10)  # warm-up on top
