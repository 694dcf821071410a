"""Time the same task in several runtimes, each in its own process, in turns; compute ratios.

`run/rounds.py` shows a data set to models; here a single decoded frame is posed again and again,
and each worker times its own calls, so that no pipe and no JPEG is in the figures. The first
result is timed from starting Python to the poses of one photo.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.accuracy.coco import bootstrap_median
from cfpose_sdk.errors import BackendError, InputError

# onnxruntime's threads spin for some tens of milliseconds of CPU after a call; no worker runs then
REST_S = 0.1
STAGES = ("detect", "crop", "infer", "post", "networks")


class Asked(Protocol):
    """A worker that answers questions, one after the other; see `peers/serve.py`."""

    def ask(self, question: Mapping[str, Any], /) -> dict[str, Any]:
        """The answer to one question."""
        ...


@dataclass(frozen=True)
class Task:
    """The work of every runtime, and how often. Raises InputError when it makes no sense."""

    photo: Path
    people: int
    boxes: NDArray[np.float64] | None  # (people, 4); None: a detector's
    rounds: int
    repeats: int  # timed calls of a turn, after one that is not

    def __post_init__(self) -> None:
        if min(self.people, self.rounds, self.repeats) < 1:
            raise InputError(f"people, rounds and repeats must be 1 or more, got {self}")
        if self.boxes is not None and self.boxes.shape != (self.people, 4):
            raise InputError(f"boxes must be ({self.people}, 4), got {self.boxes.shape}")


@dataclass(frozen=True)
class Turn:
    """The times of one worker in one round."""

    place: int  # among the workers of the round, from 0
    ms: tuple[float, ...]
    stages: tuple[Mapping[str, float], ...]
    cpu_s: tuple[float, float]  # of the worker's process, before and after


Turns = Mapping[str, Sequence[Turn]]  # by label, one a round


def order(count: int, turn: int) -> list[int]:
    """The order of the workers in a round: each has every place once in `count` rounds.

    After that the other way round, so that no worker always follows the same one.
    """
    turned = np.roll(np.arange(count), -turn)
    return [int(n) for n in (turned if turn // count % 2 == 0 else turned[::-1])]


def run_task(
    workers: Mapping[str, Asked], task: Task, rest_s: float = REST_S
) -> dict[str, list[Turn]]:
    """Let the workers do the task in turns, with a rest after each.

    Raises BackendError for a wrong number of people.
    """
    labels, turns = list(workers), dict[str, list[Turn]]()
    question = {
        "do": "time",
        "image": str(task.photo),
        "boxes": None if task.boxes is None else task.boxes.tolist(),
        "people": task.people,
        "warmup": 1,
        "repeats": task.repeats,
    }
    for turn in range(task.rounds):
        for place, n in enumerate(order(len(labels), turn)):
            answer = workers[labels[n]].ask(question)
            time.sleep(rest_s)
            if "unreadable" in answer:
                raise InputError(f"{task.photo} cannot be read: {answer['unreadable']}")
            wrong = {s["people"] for s in answer["stages"]} - {task.people}
            if wrong:
                raise BackendError(f"{labels[n]} posed {wrong} people, asked for {task.people}")
            cpu = (answer["cpu_s"][0], answer["cpu_s"][1])
            done = Turn(place, tuple(answer["ms"]), tuple(answer["stages"]), cpu)
            turns.setdefault(labels[n], []).append(done)
    return {label: turns[label] for label in labels}


def rows(turns: Turns, base: str) -> list[dict[str, Any]]:
    """A record of each runtime: times, stages, `speedup` over `base`, all samples."""
    return [_row(label, done, turns[base], label == base) for label, done in turns.items()]


def _row(label: str, done: Sequence[Turn], base: Sequence[Turn], is_base: bool) -> dict[str, Any]:
    own = [turn.ms for turn in done]
    samples = [ms for turn in done for ms in turn.ms]
    row: dict[str, Any] = {"label": label, "ms": float(np.median(samples))}
    row |= {
        "ms_p10": float(np.percentile(samples, 10)),
        "ms_p90": float(np.percentile(samples, 90)),
    }
    if not is_base:
        row["speedup"] = vars(speedup([turn.ms for turn in base], own))
    stages = {
        name: float(np.median([s[name] for turn in done for s in turn.stages]))
        for name in STAGES
        if all(name in s for turn in done for s in turn.stages)
    }
    row["stages_ms"] = stages
    if "networks" in stages:
        inside = [[s["networks"] for s in turn.stages] for turn in done]
        row["outside_share"] = vars(outside_share(own, inside))
    gaps = [later.cpu_s[0] - turn.cpu_s[1] for turn, later in pairwise(done)]
    if gaps:
        row["idle_cpu_ms"] = float(np.median(gaps)) * 1e3
    row["samples_ms"] = [[round(ms, 3) for ms in turn.ms] for turn in done]
    return row


def summary_of(row: Mapping[str, Any], name: str) -> Summary | None:
    """A summary that a row carries; None where it carries none."""
    return None if name not in row else Summary(**row[name])


Rounds = Sequence[Sequence[float]]  # the values of each round


@dataclass(frozen=True)
class Summary:
    """The median over rounds, its 95 % bootstrap interval, and the value of each round."""

    median: float
    low: float
    high: float
    by_round: tuple[float, ...]

    @classmethod
    def of(cls, by_round: Sequence[float]) -> Summary:
        """Summarise at least one round. Raises InputError without one."""
        if not by_round:
            raise InputError("a summary needs at least one round, got none")
        low, high = bootstrap_median(by_round)
        return cls(float(np.median(by_round)), low, high, tuple(map(float, by_round)))


def speedup(base: Rounds, own: Rounds) -> Summary:
    """How many times as fast as `base`: in each round, base's median time by the own one.

    What slows the machine down for a while slows both in the same round. Raises InputError unless
    both have the same rounds.
    """
    if len(base) != len(own):
        raise InputError(f"ratios need the same rounds, got {len(base)} and {len(own)}")
    return Summary.of([_median(b) / _median(o) for b, o in zip(base, own, strict=True)])


def outside_share(total_ms: Rounds, networks_ms: Rounds) -> Summary:
    """The share of a call's time outside its networks: of each call, the median of each round."""
    shares = [
        [1 - inside / total for total, inside in zip(totals, insides, strict=True)]
        for totals, insides in zip(total_ms, networks_ms, strict=True)
    ]
    return Summary.of([_median(share) for share in shares])


def _median(values: Sequence[float]) -> float:
    if len(values) == 0 or min(values) < 0:
        raise InputError(f"a round needs times of 0 or more, got {list(values)}")
    return float(np.median(np.array(values)))


CODE = """
import sys, time
start = time.perf_counter()
from cfpose_sdk import PoseEstimator
imported = time.perf_counter()
estimator = PoseEstimator()
opened = time.perf_counter()
poses = estimator.predict(sys.argv[1])
done = time.perf_counter()
print(len(poses), imported - start, opened - imported, done - opened, flush=True)
"""
PARTS = ("import", "open", "predict")


def first_results(photo: Path, runs: int, *, code: str = CODE) -> dict[str, Any]:
    """Wall seconds of `runs` processes, one after the other, from spawn to the line they print.

    `parts_s`: medians of what the process itself saw; `start` is the rest, the interpreter's. The
    files are as warm as they are: the first run is in `samples_s` and in the maximum. Raises
    BackendError when a process fails.
    """
    if runs < 1:
        raise InputError(f"runs must be 1 or more, got {runs}")
    walls, parts = [], []
    for _ in range(runs):
        wall, people, spans = _first(photo, code)
        walls.append(wall)
        parts.append([*spans, wall - sum(spans)])
    medians = np.median(np.array(parts), axis=0)
    return {
        "median_s": float(np.median(walls)),
        "max_s": max(walls),
        "people": people,
        "parts_s": dict(zip((*PARTS, "start"), medians.tolist(), strict=True)),
        "samples_s": [round(wall, 4) for wall in walls],
    }


def _first(photo: Path, code: str) -> tuple[float, int, Sequence[float]]:
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(photo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    wall = time.perf_counter() - start
    _, complaint = process.communicate()
    if process.returncode or not line:
        last = json.dumps(complaint.strip().splitlines()[-1:])
        raise BackendError(f"the first result failed with code {process.returncode}: {last}")
    people, *spans = line.split()
    return wall, int(people), [float(span) for span in spans]
