"""The loop: schedules, averaging, resuming, stopping."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cfpose_sdk.errors import TrainingError
from cfpose_training.config import OptimConfig
from cfpose_training.data import Batch, Shard
from cfpose_training.loop import STATE_FILE, Ema, RunOptions, build_optimiser, fit, learning_rate
from cfpose_training.stages import Stage

BATCHES = 6


class Line(Stage):
    """y = w x + b on noisy points; `poison` makes one loss NaN."""

    def __init__(self, poison: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trainable = nn.Linear(1, 1)
        self.poison = poison

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        noise = torch.rand(())  # dropout would draw from the same generator
        loss = (self.trainable(batch["x"]) - 3 * batch["x"] - 1).square().mean() + 0 * noise
        return {"loss": loss + (math.nan if self.poison else 0.0), "fit": loss.detach()}


def batches(epoch: int, start: int, shard: Shard) -> Iterable[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    drawn = [torch.randn(8, 1, generator=generator) for _ in range(BATCHES)]
    return ({"x": x} for x in drawn[start:])


def run(folder: Path, config: OptimConfig, stage: Stage | None = None, **options: object) -> Stage:
    stage = stage or Line()
    run_options = RunOptions(folder, accelerator="cpu", **options)  # type: ignore[arg-type]
    fit(stage, batches, BATCHES, config, run_options, after_epoch=lambda epoch, _: {"seen": epoch})
    return stage


CONFIG = OptimConfig(epochs=4, lr=0.1, schedule="cosine", ema_decay=0.9, seed=1)


def weights(stage: Stage) -> list[float]:
    return [p.item() for p in stage.trainable.parameters()]


def test_it_learns_and_logs_each_epoch(tmp_path: Path) -> None:
    stage = run(tmp_path, OptimConfig(epochs=40, lr=0.1, schedule="cosine"))
    assert weights(stage) == pytest.approx([3, 1], abs=0.05)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 41))
    assert float(rows[-1]["loss"]) < 0.01 * float(rows[0]["loss"])
    assert rows[-1]["seen"] == "39"


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", CONFIG)
    for _ in range(100):  # each call is out of time after one batch
        stage = Line()
        options = RunOptions(tmp_path / "parts", resume=True, max_minutes=0, accelerator="cpu")
        if fit(stage, batches, BATCHES, CONFIG, options, after_epoch=lambda *_: {}):
            break
    else:
        pytest.fail("the run never ends")
    assert weights(stage) == weights(whole)


def test_the_stage_knows_its_epoch_also_after_a_stop(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    class Told(Line):
        def set_epoch(self, epoch: int, epochs: int) -> None:
            told.append((epoch, epochs))

    run(tmp_path / "whole", CONFIG, Told())
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    told.clear()
    for _ in range(BATCHES + 2):  # each is out of time after one batch; two are in epoch 2
        run(tmp_path / "parts", CONFIG, Told(), resume=True, max_minutes=0)
    assert set(told[:BATCHES]) == {(1, 4)}
    assert told[-1] == (2, 4)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, CONFIG)
    with pytest.raises(TrainingError, match="--resume"):
        run(tmp_path, CONFIG)


def test_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path, CONFIG)
    with pytest.raises(TrainingError, match="was made with"):
        run(tmp_path, OptimConfig(epochs=4, lr=0.2), resume=True)


def test_a_loss_that_is_not_finite_stops_with_its_parts(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1.*'loss': nan, 'fit': \d"):
        run(tmp_path, CONFIG, Line(poison=1))
    assert not (tmp_path / STATE_FILE).exists()


def test_an_interrupted_run_keeps_its_state(tmp_path: Path) -> None:
    def interrupted(epoch: int, start: int, shard: Shard) -> Iterable[Batch]:
        for index, batch in enumerate(batches(epoch, start, shard)):
            if epoch == 1 and index == 3:
                raise KeyboardInterrupt
            yield batch

    stage = Line()
    with pytest.raises(KeyboardInterrupt):
        fit(
            stage, interrupted, BATCHES, CONFIG, RunOptions(tmp_path, accelerator="cpu"),
            after_epoch=lambda *_: {},
        )  # fmt: skip
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 3)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("unexpected pos")])
def test_a_full_disk_ends_the_run_and_keeps_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run(tmp_path, CONFIG, max_minutes=0)  # one batch
    good = (tmp_path / STATE_FILE).read_bytes()

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr("cfpose_training.loop.torch.save", full_disk)
    with pytest.raises(TrainingError, match=r"cannot save.*--resume"):
        run(tmp_path, CONFIG, resume=True, save_every_s=0.0)
    assert (tmp_path / STATE_FILE).read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


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
