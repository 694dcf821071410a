"""Time of calls and of stages: percentiles in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cfpose_sdk.errors import InputError


@dataclass(frozen=True)
class Timing:
    """Percentiles and mean of n durations, in milliseconds."""

    p50: float
    p90: float
    p99: float
    mean: float
    n: int

    @classmethod
    def of(cls, durations_ms: Iterable[float]) -> Timing:
        """Summarise durations, all of them. Raises InputError when there are none."""
        values = np.array(list(durations_ms), dtype=np.float64)
        if values.size == 0:
            raise InputError("a timing needs at least one duration, got none")
        p50, p90, p99 = (float(v) for v in np.percentile(values, [50, 90, 99]))
        return cls(p50, p90, p99, float(values.mean()), int(values.size))


def measure(
    call: Callable[[], object],
    *,
    warmup: int = 10,
    repeats: int = 100,
    synchronize: Callable[[], object] | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Timing:
    """Time `repeats` calls after `warmup` calls that are not counted.

    `synchronize` waits for a device to finish and runs inside the timed span. Raises InputError
    unless repeats is at least 1.
    """
    if repeats < 1 or warmup < 0:
        raise InputError(f"repeats must be >= 1 and warmup >= 0, got {repeats} and {warmup}")
    wait = synchronize if synchronize is not None else lambda: None
    for _ in range(warmup):
        call()
    wait()
    durations = []
    for _ in range(repeats):
        start = clock_ns()
        call()
        wait()
        durations.append((clock_ns() - start) / 1e6)
    return Timing.of(durations)


def stage_timings(stages: Iterable[Mapping[str, float]]) -> dict[str, Timing]:
    """Timings by stage from the `speed_ms` of many photos; a photo without a stage is not in it."""
    by_stage: dict[str, list[float]] = {}
    for speed in stages:
        for stage, milliseconds in speed.items():
            by_stage.setdefault(stage, []).append(milliseconds)
    return {stage: Timing.of(values) for stage, values in by_stage.items()}
