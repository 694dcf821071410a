"""The first result: from starting Python to the poses of one photo, with the bundled models."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk.errors import BackendError, InputError

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
