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
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.data.loader import Shard
from cfpose_training.run.loop import RunOptions, fit
from cfpose_training.run.outputs import RunLog
from cfpose_training.run.state import STATE_FILE
from cfpose_training.run.trainer import untouched
from cfpose_training.stages.base import Stage

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


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> list[str]:
    return [row[name] for row in rows(folder)]


def test_it_learns_and_logs_each_epoch(tmp_path: Path) -> None:
    stage = run(tmp_path, OptimConfig(epochs=40, lr=0.1, schedule="cosine"))
    assert weights(stage) == pytest.approx([3, 1], abs=0.05)
    logged = rows(tmp_path)
    assert [int(row["epoch"]) for row in logged] == list(range(1, 41))
    assert float(logged[-1]["loss"]) < 0.01 * float(logged[0]["loss"])
    assert logged[-1]["seen"] == "39"
    assert 0 <= float(logged[-1]["load_s_share"]) <= 1


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

    monkeypatch.setattr("cfpose_training.run.state.torch.save", full_disk)
    with pytest.raises(TrainingError, match=r"cannot save.*--resume"):
        run(tmp_path, CONFIG, resume=True, save_every_s=0.0)
    assert (tmp_path / STATE_FILE).read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_the_norm_of_the_gradient_is_logged_before_it_is_clipped(tmp_path: Path) -> None:
    stage, squares = Line(), [0.0]

    def add(gradient: Tensor) -> None:
        squares[-1] += float(gradient.double().square().sum())

    class Counted(Line):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            squares.append(0.0)
            return super().forward(batch)

    for clip_norm in (0.0, 1e-3):
        stage = Counted()
        for parameter in stage.trainable.parameters():
            parameter.register_hook(add)
        squares.clear()
        config = OptimConfig(epochs=2, lr=0.1, clip_norm=clip_norm)
        run(tmp_path / str(clip_norm), config, stage)
        norms = [math.sqrt(square) for square in squares]
        expected = [sum(norms[:BATCHES]) / BATCHES, sum(norms[BATCHES:]) / BATCHES]
        logged = [float(row["grad_norm"]) for row in rows(tmp_path / str(clip_norm))]
        assert logged == pytest.approx(expected, rel=1e-5)
        assert min(norms) > 1e-2


def test_no_clipping_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights(run(tmp_path / "as it is", CONFIG))
    monkeypatch.setattr("lightning_fabric.Fabric.clip_gradients", lambda *a, **k: torch.ones(()))
    assert weights(run(tmp_path / "never touched", CONFIG)) == expected


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    class Steep(Line):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            losses = super().forward(batch)
            flat = (0 * self.trainable.weight).sum()  # type: ignore[union-attr, operator]
            return {**losses, "loss": losses["loss"] + flat.sqrt()}

    for clip_norm in (0.0, 1.0):
        stage = Steep()
        before = weights(stage)
        with pytest.raises(TrainingError, match=r"gradient is not finite.*batch 1.*'grad_norm'"):
            run(tmp_path / str(clip_norm), OptimConfig(epochs=1, clip_norm=clip_norm), stage)
        assert weights(stage) == before


class Probed(Line):
    """A look at the first batch that disturbs all that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.looked: list[int] = []

    def epoch_figures(self, batch: Batch) -> dict[str, float]:
        assert self.training
        assert all(p.grad is None for p in self.parameters())
        self.looked.append(len(batch["x"]))
        torch.rand(7)
        loss = self.trainable(self.norm(batch["x"])).square().mean()
        loss.backward()
        self.eval()
        assert self.norm.num_batches_tracked == 1  # each time anew
        return {"look": float(batch["x"][0]), "drawn": float(torch.rand(()))}


def test_a_look_at_an_epochs_first_batch_leaves_no_trace(tmp_path: Path) -> None:
    expected = weights(run(tmp_path / "plain", CONFIG))
    stage = Probed()
    assert weights(run(tmp_path / "probed", CONFIG, stage)) == expected
    assert stage.looked == [8] * CONFIG.epochs
    assert stage.norm.num_batches_tracked == 0
    assert stage.norm.running_mean == 0
    first = [float(next(iter(batches(epoch, 0, Shard())))["x"][0]) for epoch in range(4)]
    logged = rows(tmp_path / "probed")
    assert [float(row["look"]) for row in logged] == pytest.approx(first, rel=1e-5)

    looks = 0  # a run in parts looks as often, and logs the same
    for _ in range(100):
        part = Probed()
        options = RunOptions(tmp_path / "parts", resume=True, max_minutes=0, accelerator="cpu")
        done = fit(part, batches, BATCHES, CONFIG, options, after_epoch=lambda e, _: {"seen": e})
        looks += len(part.looked)
        if done:
            break
    assert looks == CONFIG.epochs
    assert weights(part) == expected
    times = {"steps_per_s", "samples_per_s", "load_s_share", "memory_gb"}
    assert [
        {k: v for k, v in row.items() if k not in times} for row in rows(tmp_path / "parts")
    ] == [{k: v for k, v in row.items() if k not in times} for row in logged]


def test_a_look_that_fails_leaves_no_trace_either() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    module(torch.randn(4, 2)).sum().backward()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    state = torch.get_rng_state()

    def look() -> None:
        with untouched(module):
            module(torch.randn(4, 2)).sum().backward()
            module.eval()
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        look()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in module.modules())


def test_an_epoch_that_is_logged_twice_has_one_row(tmp_path: Path) -> None:
    """A process may be killed after the row is written and before the state is."""
    expected = weights(run(tmp_path / "whole", CONFIG))
    folder, states = tmp_path / "killed", []
    for epochs in (2, 3):  # the state after two epochs, the log after three

        def stop(epoch: int, module: nn.Module, last: int = epochs) -> dict[str, float]:
            if epoch == last:
                raise KeyboardInterrupt
            return {"seen": epoch}

        with pytest.raises(KeyboardInterrupt):
            fit(
                Line(), batches, BATCHES, CONFIG,
                RunOptions(folder, resume=True, accelerator="cpu"), after_epoch=stop,
            )  # fmt: skip
        states.append((folder / STATE_FILE).read_bytes())
    (folder / STATE_FILE).write_bytes(states[0])
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3"]
    assert weights(run(folder, CONFIG, resume=True)) == expected
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3", "4"]
    assert [row["loss"] for row in rows(folder)] == [
        row["loss"] for row in rows(tmp_path / "whole")
    ]


def test_a_full_disk_leaves_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path / "log.csv")
    log.append({"epoch": 1, "loss": 0.5})
    good = (tmp_path / "log.csv").read_bytes()

    def full_disk(file: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(TrainingError, match=r"No space left.*--resume"):
        log.append({"epoch": 2, "loss": 0.25})
    assert (tmp_path / "log.csv").read_bytes() == good
