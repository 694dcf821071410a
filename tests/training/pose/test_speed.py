"""`data speed`: rates by a false clock, and the command on drawn people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from cfpose_sdk.skeleton import COCO_17
from cfpose_training.cli import main
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.data.loader import Shard
from cfpose_training.data.people import load_people
from cfpose_training.pose.speed import loader_rate, some_people
from cfpose_training.run.outputs import Meter


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(f"time.{name}", clock)
    return clock


def slow_batches(clock: Clock, seconds: float, count: int) -> Iterable[Batch]:
    for index in range(count):
        clock.now += seconds
        yield {"crops": torch.full((4, 1), index)}


def test_the_loader_is_timed_after_its_warm_up(clock: Clock) -> None:
    epochs: list[int] = []

    def batches(epoch: int, start: int, shard: Shard) -> Iterable[Batch]:
        epochs.append(epoch)
        clock.now += 50.0 if epoch == 0 else 0.0  # processes start
        return slow_batches(clock, 0.5, 3)

    rate, last = loader_rate(batches, 6, warm_up=2)
    assert rate == pytest.approx(4 / 0.5)
    assert epochs == [0, 1, 2]  # short epochs follow one another
    assert last["crops"][0, 0] == 1


def test_waiting_for_data_is_told_from_work(clock: Clock) -> None:
    meter = Meter()
    for _ in meter.waiting(slow_batches(clock, 0.25, 8)):
        clock.now += 0.75
        meter.add({"loss": 1.0}, 4)
    assert meter.speeds() == pytest.approx(
        {"steps_per_s": 1.0, "samples_per_s": 4.0, "load_s_share": 0.25}
    )
    clock.now += 1000  # between two processes
    later = Meter(meter.state() | {"elapsed_s": 8.0})
    for _ in later.waiting(slow_batches(clock, 0.75, 8)):
        clock.now += 0.25
        later.add({"loss": 2.0, "rare": 5.0}, 4)
    assert later.speeds() == pytest.approx(
        {"steps_per_s": 1.0, "samples_per_s": 4.0, "load_s_share": 0.5}
    )
    assert later.means() == {"loss": 1.5, "rare": 5.0}


def test_a_sample_of_people_fills_an_epoch(tiny_root: Path, tiny_recipe: Path) -> None:
    people = load_people(load_recipe(tiny_recipe).sources, tiny_root, COCO_17)
    some = some_people(people, 4, visits=30)
    assert len(some) == 4
    assert len(some.photos) == len(some.image_ids) == 4
    assert 30 <= some.repeat.sum() < 30 + 4
    for index, photo in enumerate(some.photo):
        origin = int(np.flatnonzero((people.boxes == some.boxes[index]).all(axis=1))[0])
        assert some.photos[photo] == people.photos[people.photo[origin]]
        np.testing.assert_array_equal(some.joints[index], people.joints[origin])
    assert len(some_people(people, 500, visits=1)) == len(people)


@pytest.mark.parametrize("more", [[], ["--workers", "1"]])
def test_the_command_prints_both_rates(
    more: list[str], tiny_root: Path, tiny_recipe: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cache = tmp_path / "cache"
    given = [] if more else ["--cache", str(cache)]
    command = ["data", "speed", "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    assert main([*command, "--batches", "2", "--accelerator", "cpu", *more, *given]) == 0
    loader, network, verdict = capsys.readouterr().out.splitlines()
    assert f"with {len(more) // 2} processes" in loader
    assert "forward and backward on cpu" in network
    rates = {name: float(line.split()[2]) for name, line in (("l", loader), ("n", network))}
    assert all(rate > 0 for rate in rates.values())
    slower = "loader" if rates["l"] < rates["n"] else "network"
    assert verdict == f"the {slower} is the slower one (2 batches of 4 each)"
    assert cache.exists() == bool(given)
    with pytest.raises(SystemExit):
        main([*command, "--batches", "0"])
