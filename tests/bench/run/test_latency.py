"""Timings against a clock that the test turns."""

from __future__ import annotations

import numpy as np
import pytest

from cfpose_bench.measurement import Timing, measure, stage_timings
from cfpose_sdk.errors import InputError


class Clock:
    """Nanoseconds that pass only when work is done."""

    def __init__(self) -> None:
        self.now = 0
        self.calls = 0

    def work(self) -> None:
        self.calls += 1
        self.now += self.calls * 1_000_000  # call i takes i ms

    def wait(self) -> None:
        self.now += 500_000

    def read(self) -> int:
        return self.now


def test_every_counted_call_is_in_the_percentiles() -> None:
    clock = Clock()
    timing = measure(clock.work, warmup=10, repeats=101, clock_ns=clock.read)
    assert clock.calls == 111
    # calls 11 … 111 take 11 … 111 ms
    assert timing == Timing(p50=61.0, p90=101.0, p99=110.0, mean=61.0, n=101)


def test_waiting_for_the_device_is_part_of_the_time() -> None:
    clock = Clock()
    timing = measure(clock.work, warmup=0, repeats=3, synchronize=clock.wait, clock_ns=clock.read)
    assert timing.mean == pytest.approx(2.5)


def test_a_delay_moves_the_figures_by_itself() -> None:
    durations = np.random.default_rng(0).exponential(10, 500)
    plain, late = Timing.of(durations), Timing.of(durations + 7)
    for name in ("p50", "p90", "p99", "mean"):
        assert getattr(late, name) - getattr(plain, name) == pytest.approx(7)


def test_stages_are_gathered_by_name() -> None:
    timings = stage_timings([{"infer": 1.0, "total": 3.0}, {"infer": 2.0}, {"infer": 6.0}])
    assert timings["infer"].p50 == 2.0
    assert timings["infer"].mean == 3.0
    assert (timings["infer"].n, timings["total"].n) == (3, 1)
    assert stage_timings([]) == {}


def test_no_durations_and_no_repeats_are_refused() -> None:
    with pytest.raises(InputError, match="got none"):
        Timing.of([])
    for wrong in ({"repeats": 0}, {"warmup": -1}):
        with pytest.raises(InputError, match="repeats must be"):
            measure(lambda: None, **wrong)
