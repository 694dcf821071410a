"""The report: figures with the machine, the versions and the protocol they were taken under."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfpose_bench.accuracy import Accuracy
from cfpose_bench.latency import Timing
from cfpose_sdk import __version__
from cfpose_sdk.files import write_file

SCHEMA = 1
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
STAGES = ("read", "detect", "crop", "infer", "post", "total")


@dataclass(frozen=True)
class Measured:
    """One model under one kind of boxes."""

    model: str
    boxes: str  # gt, detector, or a file of boxes
    precision: str | None
    provider: str | None  # what truly ran it
    bytes: int | None  # size of the artifact
    accuracy: Accuracy
    latency_ms: Mapping[str, Timing]
    is_peer: bool = False
    unreadable: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The model's entry in the report; what was not measured is left out."""
        record: dict[str, Any] = {
            "model": self.model,
            "boxes": self.boxes,
            "precision": self.precision,
            "provider": self.provider,
            "bytes": self.bytes,
            "accuracy": self.accuracy.to_dict(),
            "latency_ms": {stage: asdict(timing) for stage, timing in self.latency_ms.items()},
            "unreadable": list(self.unreadable) or None,
        }
        return {key: value for key, value in record.items() if value is not None}


def environment() -> dict[str, Any]:
    """Machine, versions and commit; what cannot be found out is left out."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    record = {
        "cfpose": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": usable,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": packages,
    }
    return {key: value for key, value in record.items() if value is not None}


def report(protocol: Mapping[str, Any], models: Sequence[Measured]) -> dict[str, Any]:
    """The whole report as JSON-ready values, by the stable keys of `--json`."""
    return {
        "schema": SCHEMA,
        "environment": environment(),
        "protocol": dict(protocol),
        "models": [model.to_dict() for model in models],
    }


def write_json(record: Mapping[str, Any], path: str | Path) -> None:
    """Write a report, whole or not at all. Raises InputError when the place is not writable."""
    write_file(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def table(models: Sequence[Measured]) -> str:
    """The figures for a terminal: accuracy, then the median milliseconds of each stage."""
    is_crowdpose = any(row.accuracy.AP_easy is not None for row in models)
    classes = ("AP_easy", "AP_medium", "AP_hard") if is_crowdpose else ("APM", "APL")
    names = ("AP50", "AP75", *classes, "AR")
    head = ["model", "boxes", "AP", "95 % interval", *names]
    rows = [[*head, *(f"{stage} ms" for stage in STAGES)]]
    for row in models:
        a = row.accuracy
        interval = "-" if a.AP_ci95 is None else f"{a.AP_ci95[0]:.3f} to {a.AP_ci95[1]:.3f}"
        figures = [f"{getattr(a, name):.3f}" for name in names]
        times = [
            f"{row.latency_ms[stage].p50:.1f}" if stage in row.latency_ms else "-"
            for stage in STAGES
        ]
        rows.append([row.model, row.boxes, f"{a.AP:.3f}", interval, *figures, *times])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        padded = [
            cell.ljust(width) if i in (0, 1, 3) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
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
