"""One step of gpu.sh, in a process of its own: check and time a model on this machine's GPU.

Every step writes a JSON record: {"status": "done" | "skipped" | "failed", "why": …, figures}. It
uses what is installed and says what is not; only numpy and OpenCV are needed by all steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from gpu_runtimes import Record, SkippedError, bench, onnxruntime_cuda, tensorrt
from gpu_w32 import make_w32, torch_modes

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "onnx", "numpy")


def facts() -> Record:
    """The GPU as nvidia-smi names it, and the versions of what is installed."""
    keys = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm")
    query = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    first = [value.strip() for value in answer.splitlines()[0].split(",")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "gpu": dict(zip(keys, first, strict=True)),
        "gpus": len(answer.splitlines()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
    }


def collect(folder: Path, output: Path) -> None:
    """Join the records of the steps, write one file for each model, and print a summary."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    machine = records.pop("facts")
    gpu = "-".join(machine["gpu"]["name"].lower().split())
    output.mkdir(parents=True, exist_ok=True)
    for what in dict.fromkeys(name.split(".")[0] for name in records):
        steps = {
            name.removeprefix(f"{what}."): record
            for name, record in records.items()
            if name.startswith(f"{what}.")
        }
        target = output / f"{what}-{gpu}.json"
        content = {"schema": 1, "environment": machine, "model": what, "steps": steps}
        target.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{target}:")
        for name, record in steps.items():
            print(f"  {name}: {record['status']}", record.get("why", ""))
            for line in _figures(record):
                print(f"    {line}")


def _figures(record: Record) -> list[str]:
    rows = [(name, mode.get("ms")) for name, mode in record.get("modes", {}).items()]
    rows.append(("keypoints", record.get("ms")))
    lines = [
        f"{name}: p50 ms " + ", ".join(f"batch {n}: {t['p50']:.2f}" for n, t in ms.items())
        for name, ms in rows
        if ms
    ]
    lines += [f"{n}: {m['failed']}" for n, m in record.get("modes", {}).items() if "failed" in m]
    against = record.get("against_cpu")
    if isinstance(against, dict):
        lines.append(f"max {against['max_px']:.4f} px from the CPU")
    if "build_s" in record:
        lines.insert(0, f"parsed and built in {record['build_s']:.1f} s")
    if "not_run" in record:
        lines.append(f"not run: {record['not_run']}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step; 0 when its record was written, whatever it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = ("facts", "make-w32", "onnxruntime-cuda", "torch", "tensorrt", "tensorrt-rtx", "bench")
    parser.add_argument("step", choices=(*steps, "collect"))
    parser.add_argument("--model", type=Path, help="the artifact, or where make-w32 writes it")
    parser.add_argument(
        "--record", type=Path, required=True, help="JSON file, or folder to collect"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    model = options.model
    if options.step == "collect":
        collect(options.record, options.results)
        return 0
    calls: dict[str, Callable[[], Record]] = {
        "facts": facts,
        "make-w32": lambda: make_w32(model),
        "onnxruntime-cuda": lambda: onnxruntime_cuda(model),
        "torch": torch_modes,
        "tensorrt": lambda: tensorrt(model, "tensorrt"),
        "tensorrt-rtx": lambda: tensorrt(model, "tensorrt_rtx"),
        "bench": lambda: bench(model),
    }
    try:
        record = {"status": "done", **calls[options.step]()}
    except SkippedError as reason:
        record = {"status": "skipped", "why": str(reason)}
    except Exception as error:  # recorded and shown in the summary; the other steps go on
        record = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:2000]}
    options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
