"""Describe the machine and package versions of a measurement; time calls and take percentiles."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk import __version__
from cfpose_sdk.errors import InputError

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "pycocotools",
    "torch",
    "tensorrt",
    "tensorrt-rtx",
    "openvino",
)
CPU_INFO = Path("/proc/cpuinfo")


def environment() -> dict[str, Any]:
    """Machine, versions and commit; what is not known is left out."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    record = {
        "cfpose": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": len(usable_cpus()) or os.cpu_count(),
        "physical_cores": len(physical_cores()) or None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_1m": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "packages": packages,
    }
    return {key: value for key, value in record.items() if value is not None}


def usable_cpus() -> tuple[int, ...]:
    """CPUs that this process may run on; empty where the system does not say."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def physical_cores(source: Path = CPU_INFO) -> tuple[int, ...]:
    """One usable CPU of each physical core; all usable ones where the cores are not named."""
    usable, first = usable_cpus(), dict[tuple[str, str], int]()
    try:
        blocks = source.read_text(encoding="utf-8").strip().split("\n\n")
    except OSError:
        return usable
    for block in blocks:
        pairs = (line.partition(":") for line in block.splitlines())
        facts = {name.strip(): value.strip() for name, _, value in pairs}
        cpu = facts.get("processor", "")
        if cpu.isdigit() and int(cpu) in usable:
            core = (facts.get("physical id", "0"), facts.get("core id", cpu))
            first.setdefault(core, int(cpu))
    return tuple(first.values()) or usable


def cpu_flags(source: Path = CPU_INFO) -> frozenset[str]:
    """The CPU's features by Linux's names (amx_bf16, …); empty where the system does not say."""
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.split(":", 1)[1].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, ()))


def cpu_kind(features: Collection[str], machine: str) -> str:
    """The kind of CPU that decides what is fast: amx, avx512, avx2, arm, or other.

    `features` are Linux's names, `machine` what `platform` says: "x86_64", "aarch64".
    """
    if machine.lower().startswith(("arm", "aarch64")):
        return "arm"
    named = {"amx": "amx_bf16", "avx512": "avx512f", "avx2": "avx2"}
    return next((kind for kind, feature in named.items() if feature in features), "other")


def cpus_for(threads: int) -> tuple[int, ...]:
    """CPUs for a worker of `threads` threads: a core each while there are cores, then the rest."""
    cores = physical_cores()
    ordered = [*cores, *(cpu for cpu in usable_cpus() if cpu not in cores)]
    return tuple(ordered[:threads])


def _cpu_name() -> str | None:
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _commit() -> str | None:
    """The commit of the source tree that runs, with `+` when it has changes; None elsewhere."""
    here = Path(__file__).resolve().parent
    try:
        inside = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(here, "rev-parse", "--short=12", "HEAD") if inside else ""
        return f"{commit}+" if commit and _git(here, "status", "--porcelain") else commit or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


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
