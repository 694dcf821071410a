"""The steps of gpu.sh: the product's own commands on this machine's GPU, and their records.

Each step is one command in a process of its own. Its record: {"command": …, "status": "done" |
"skipped" | "failed", "seconds": …, "why": …, "figures": …}; skipped is what ends with code 2, for
want of a package say. Needs the packages of the commands alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx", "cuda-bindings", "rtmlib", "onnx", "numpy",
)  # fmt: skip
SECONDS = 1800  # of one step
# the commands of cfpose, by the function that an installed one calls
COMMANDS = {"cfpose": "cfpose", "cfpose-export": "export", "cfpose-bench": "bench"}
Record = dict[str, Any]
Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Step:
    """One command, what it tells, and the JSON file that it writes; None: it prints JSON."""

    name: str
    tells: str
    command: tuple[str, ...]
    report: Path | None = None


def steps_of(name: str, model: str, work: Path, flavour: str, *, first: bool) -> list[Step]:
    """The steps for one model, an .onnx file or `default`; `first`: with those of the machine."""
    engines = {p: work / f"{name}-{p}.engine" for p in ("fp32", "fp16")}
    finder = work / f"{name}-fp16.finder.engine"
    build = ("cfpose-export", "engine", "--model", model, "--flavour", flavour)
    bench = ("cfpose-bench", "--dataset", "demo", "--rounds", "1", "--repeats", "200",
             "--device", "cuda")  # fmt: skip
    simcc, report = work / f"{name}-simcc.onnx", work / f"{name}-bench.json"
    written = ("--json", str(report))
    file = str(bundled_model()) if model == "default" else model
    machine = [
        Step("doctor", "what runs here, and the known answers on CUDA",
             ("cfpose", "doctor", "--json")),
        Step("tests", "the tests that need a GPU", ("pytest", "-q", str(ROOT / "tests" / "gpu"))),
        Step("torch", "HRNet-W32 in torch: eager, and compiled in fp16 and bf16",
             ("python", str(ROOT / "benchmarks" / "gpu_w32.py"), "torch")),
    ]  # fmt: skip
    return [
        *(machine if first else []),
        *(
            Step(f"engine-{precision}", f"seconds and bytes of the {precision} pair, and how far "
                 "both engines are from their graphs on this GPU",
                 (*build, "--precision", precision, "-o", str(path)))
            for precision, path in engines.items()
        ),
        *(
            Step(f"check-{label}", f"the {label} engine against the float32 graph",
                 ("cfpose-export", "check", str(path),
                  *(("--reference", model) if label == "pose" and model != "default" else ())))
            for label, path in (("pose", engines["fp16"]), ("finder", finder))
        ),
        Step("bench-engines", "milliseconds of the engines, finding included, and people curve",
             (*bench, "--boxes", "gt", "--boxes", "detector", "--detector", str(finder),
              "--model", str(engines["fp16"]), "--model", str(engines["fp32"]),
              *written), report),
        Step("bench-onnxruntime", "the same of onnxruntime-gpu",
             (*bench, "--boxes", "gt", "--boxes", "detector", "--model", model, *written), report),
        Step("simcc", "the network cut out for rtmlib",
             ("cfpose-bench", "simcc", file, "-o", str(simcc))),
        Step("bench-rtmlib", "the same network in rtmlib on onnxruntime-gpu",
             (*bench, "--boxes", "gt", "--model", f"rtmlib:{simcc}", *written), report),
    ]  # fmt: skip


def bundled_model() -> Path:
    """The default pose model."""
    return ROOT / "cfpose_sdk" / "models" / "cfpose-s.onnx"


def shown(command: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(command)


def run_step(step: Step, run: Runner) -> Record:
    """Run one step; a crash or an end that does not come are recorded too."""
    record: Record = {"command": shown(step.command), "tells": step.tells}
    if step.report is not None:
        step.report.unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        done = run(_words(step.command))
    except subprocess.TimeoutExpired:
        return {**record, "status": "failed", "why": f"it did not end within {SECONDS} s"}
    record["seconds"] = round(time.perf_counter() - start, 1)
    if done.returncode:
        status = "skipped" if done.returncode == 2 else "failed"
        why = (done.stderr.strip() or done.stdout.strip())[-2000:]
        return {**record, "status": status, "why": why or f"it ended with code {done.returncode}"}
    if step.report is not None and step.report.is_file():
        figures: Any = json.loads(step.report.read_text(encoding="utf-8"))
    else:
        figures = _last_json(done.stdout)
    return {**record, "status": "done", "figures": figures}


def _words(command: Sequence[str]) -> list[str]:
    """The command with this interpreter and this checkout, installed or not."""
    first, *rest = command
    if first in COMMANDS:
        code = f"import sys; from cfpose_sdk.commands import {COMMANDS[first]} as c; sys.exit(c())"
        return [sys.executable, "-c", code, *rest]
    return [sys.executable, *(["-m", "pytest"] if first == "pytest" else []), *rest]


def _last_json(text: str) -> Any:
    """The last JSON object of an output; None where there is none."""
    found, place, decoder = None, 0, json.JSONDecoder()
    while (place := text.find("{", place)) >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
        except ValueError:
            place += 1
    return found


def environment() -> Record:
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


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    folders = [ROOT, *(ROOT / name for name in ("training", "export", "benchmarks"))]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
    )  # fmt: skip


def main(argv: Sequence[str] | None = None, run: Runner = _run) -> int:
    """Print the plan, or run it and write gpu-NAME-GPU.json a model. Returns the exit code."""
    options = _parser().parse_args(argv)
    models = dict(entry.partition("=")[::2] for entry in options.model or ["default=default"])
    with tempfile.TemporaryDirectory() as folder:
        work = Path("WORK") if options.plan else Path(folder)
        plans = {
            name: steps_of(name, model, work, options.flavour, first=index == 0)
            for index, (name, model) in enumerate(models.items())
        }
        if options.plan:
            for name, steps in plans.items():
                for step in steps:
                    print(f"{name}, {step.name}: {step.tells}\n    {shown(step.command)}")
            return 0
        machine = environment()
        gpu = "-".join(machine["gpu"]["name"].lower().split())
        options.results.mkdir(parents=True, exist_ok=True)
        for name, steps in plans.items():
            target = options.results / f"gpu-{name}-{gpu}.json"
            records: dict[str, Record] = {}
            for step in steps:
                print(f"-- {name}, {step.name}: {shown(step.command)}", flush=True)
                records[step.name] = record = run_step(step, run)
                print(f"   {record['status']} {record.get('why', '')}".rstrip(), flush=True)
                content = {"schema": 2, "environment": machine, "model": name, "steps": records}
                _write(target, json.dumps(content, indent=1) + "\n")
            print(f"{target} is written")
    return 0


def _write(target: Path, text: str) -> None:
    """Whole, or not at all."""
    part = target.with_name(f".{target.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    parser.add_argument("--model", action="append", metavar="NAME=F.onnx")
    parser.add_argument("--flavour", default="auto", choices=("auto", "tensorrt", "rtx"))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--plan", action="store_true", help="print the steps alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
