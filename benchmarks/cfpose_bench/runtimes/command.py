"""Compare the times of pose runtimes on one photo: they take turns, and ratios are reported."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from cfpose_bench.data.annotations import read_json
from cfpose_bench.data.dataset import PEOPLE_FILE
from cfpose_bench.measurement import cpu_flags, cpu_kind, environment
from cfpose_bench.models.workers import ProcessWorker
from cfpose_bench.report.report import write_json
from cfpose_bench.runtimes.contestants import (
    RTMLIB,
    THUNDER,
    W32,
    Arena,
    Contestant,
    default_contestants,
    facts_of,
    w32_contestants,
    write_rtmlib_graph,
)
from cfpose_bench.runtimes.tables import goals, runtimes_block
from cfpose_bench.runtimes.turns import REST_S, Task, first_results, rows, run_task
from cfpose_sdk.commands import number
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import check_output_folder, demo_photos
from cfpose_sdk.media.image import read_image

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

PHOTO = "street.jpg"
ROUNDS = {1: 8, 5: 6, 20: 4}  # by people: a round of few people takes less time
W32_REPEATS = {1: 4, 5: 2, 20: 1}
DEFAULT_REPEATS = {1: 12, 5: 6, 20: 3}
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Plan:
    """What is compared, and how often. A file that is None leaves its part out."""

    w32: Path | None = None
    w32_int8: Path | None = None
    detector: Path | None = None  # YOLOX, which rtmlib and cfpose both run
    thunder: Path | None = None
    python: str | None = None  # interpreter of rtmlib's environment
    threads: int = 2
    people: tuple[int, ...] = (1, 5, 20)
    rounds: Mapping[int, int] = field(default_factory=lambda: ROUNDS)
    w32_repeats: Mapping[int, int] = field(default_factory=lambda: W32_REPEATS)
    default_repeats: Mapping[int, int] = field(default_factory=lambda: DEFAULT_REPEATS)
    starts: int = 7

    def __post_init__(self) -> None:
        for name in ("w32", "w32_int8", "detector", "thunder"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise InputError(f"{path} does not exist; expected a model file")
        if self.threads < 1:
            raise InputError(f"threads must be 1 or more, got {self.threads}")


def measure(plan: Plan) -> dict[str, Any]:
    """The whole record, of the demo photo PHOTO.

    Raises as the workers do; an optional runtime that cannot run is left out with the reason.
    """
    photo = demo_photos() / PHOTO
    people = read_json(photo.parent / PEOPLE_FILE)[photo.name]
    boxes = np.array(people, dtype=np.float64)
    tasks: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    started = first_results(photo, plan.starts)  # first, while the machine is at rest
    if plan.w32 is None:
        left_out.append({"label": "W32", "why": "no --w32 was given"})
    else:
        tasks += _w32_tasks(plan, plan.w32, photo, boxes, left_out)
    if plan.thunder is None:
        left_out.append({"label": THUNDER, "why": "no --thunder was given"})
    tasks += _default_tasks(plan, photo, left_out)
    flags = cpu_flags()
    record = {
        "environment": {
            **environment(),
            "cpu_kind": cpu_kind(flags, platform.machine()),
            "cpu_features": [f for f in FEATURES if f in flags],
        },
        "protocol": _protocol(plan, photo, len(boxes)),
        "tasks": tasks,
        "first_result": started,
        "left_out": left_out,
    }
    return {**record, "goals": goals(record)}


def _w32_tasks(
    plan: Plan, w32: Path, photo: Path, boxes: Any, left_out: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """W32 in given boxes on all runtimes; then with a detector, rtmlib's and the two that count."""
    tasks, detector = list[dict[str, Any]](), plan.detector
    with (
        tempfile.TemporaryDirectory() as folder,
        Arena(plan.threads, plan.python, left_out) as arena,
    ):
        contestants = w32_contestants(
            w32, write_rtmlib_graph(w32, Path(folder), detector), plan.w32_int8
        )
        workers = arena.open(contestants, find=detector is not None, detector=detector)
        for count in plan.people:
            given = np.resize(boxes, (count, 4))
            task = Task(photo, count, given, plan.rounds[count], plan.w32_repeats[count])
            record = _task_record("w32", workers, task, contestants, RTMLIB)
            _add_agreement(record["rows"], workers, task)
            tasks.append(record)
        if detector is None:
            left_out.append({"label": "W32 behind a detector", "why": "no --detector was given"})
            return tasks
        ours = [row for row in tasks[-1]["rows"] if row["label"] != RTMLIB]
        fastest = min(ours, key=lambda row: row["ms"])["label"]
        chosen = {label: workers[label] for label in workers if label in (RTMLIB, W32, fastest)}
        for count in plan.people:
            task = Task(photo, count, None, plan.rounds[count], plan.w32_repeats[count])
            tasks.append(_task_record("w32", chosen, task, contestants, RTMLIB))
    return tasks


def _default_tasks(plan: Plan, photo: Path, left_out: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The bundled model and MoveNet Thunder, both behind the bundled finder."""
    contestants = default_contestants(plan.thunder)
    with Arena(plan.threads, None, left_out) as arena:
        workers = arena.open(contestants, find=True, detector=None)
        base = contestants[0].label
        return [
            _task_record(
                "default",
                workers,
                Task(photo, count, None, plan.rounds[count], plan.default_repeats[count]),
                contestants,
                base,
            )
            for count in plan.people
        ]


def _task_record(
    model: str,
    workers: Mapping[str, ProcessWorker],
    task: Task,
    contestants: Sequence[Contestant],
    base: str,
) -> dict[str, Any]:
    boxes = "found" if task.boxes is None else "given"
    print(f"cfpose-bench: {model}, boxes {boxes}, {task.people} people", file=sys.stderr)
    by_label = {contestant.label: contestant for contestant in contestants}
    measured = rows(run_task(workers, task), base)
    for row in measured:
        row |= facts_of(workers[row["label"]], by_label[row["label"]])
    shared = {"model": model, "boxes": boxes, "people": task.people, "base": base}
    return {**shared, "rounds": task.rounds, "repeats": task.repeats, "rows": measured}


def _add_agreement(
    measured: list[dict[str, Any]], workers: Mapping[str, ProcessWorker], task: Task
) -> None:
    """Median distance of each runtime's joints from the base's: they did the same work."""
    xy = {label: w.predict(task.photo, boxes=task.boxes).xy for label, w in workers.items()}
    base = next(iter(xy.values()))
    for row in measured:
        distance = np.linalg.norm(xy[row["label"]] - base, axis=-1)
        row["median_px_from_base"] = round(float(np.median(distance)), 3)


def _protocol(plan: Plan, photo: Path, boxes: int) -> dict[str, Any]:
    height, width = read_image(photo).shape[:2]
    return {
        "photo": photo.name,
        "size_wh": [width, height],
        "threads": plan.threads,
        "input": "a decoded frame",
        "people": f"the photo's {boxes} hand-drawn boxes in their order, or those that the "
        "detector found by falling score, repeated or cut to the number",
        "isolation": "a process for each runtime, kept on as many CPUs as it has threads; one "
        "works at a time, in an order that rotates from round to round",
        "rest_s": REST_S,
        "speedup": "in each round the base's median time by the runtime's own; the median over "
        "rounds, with its 95 % bootstrap interval",
        "outside_share": "of a predict() call, the time outside Backend.run of finder and pose "
        "network, measured in the same calls",
        "first_result": "wall time from spawning Python to the poses of the photo at a path: "
        "import cfpose_sdk, PoseEstimator(), predict()",
        "w32": "W32 SimCC 256x192 without a refiner, untrained, seed 0; the int8 one is calibrated "
        "on crops of the examples: latency only, no word on accuracy",
        "warmup": 1,
        "starts": plan.starts,
    }


def add_command(commands: Commands) -> None:
    """Add `runtimes` to the sub-commands of cfpose-bench."""
    parser = commands.add_parser(
        "runtimes", description=__doc__, help="times of cfpose's CPU runtimes, rtmlib and MoveNet"
    )
    parser.set_defaults(run=_runtimes)
    add = parser.add_argument
    # fmt: off
    add("--w32", type=Path, help="a W32 artifact, for cfpose's runtimes and rtmlib")
    add("--w32-int8", type=Path, help="the same in int8, for OpenVINO")
    add("--detector", type=Path, help="a YOLOX that rtmlib and cfpose find people with around W32")
    add("--thunder", type=Path, help="movenet_thunder.onnx, against the bundled model")
    add("--peer-python", metavar="PYTHON", help="interpreter of the environment that has rtmlib")
    add("--threads", type=int, default=2, help="CPU threads of a runtime (default: 2)")
    add("--rounds", type=number(1, whole=True),
        help="of every task; without it 8, 6, 4 for 1, 5, 20 people")
    add("--starts", type=number(1, whole=True), default=7,
        help="processes of the first result (default: 7)")
    add("--json", type=Path, help="write the record here")
    add("--results", type=Path, metavar="DIR",
        help="write it here as runtimes-KIND.json, by the kind of CPU: amx, avx512, avx2, arm, "
        "other")
    # fmt: on


def _runtimes(options: argparse.Namespace) -> int:
    """Measure, write the record, print the tables; returns 0, whatever the goals say."""
    rounds, target, folder = options.rounds, options.json, options.results
    if folder is not None:
        check_output_folder("--results", folder)
    plan = Plan(
        w32=options.w32,
        w32_int8=options.w32_int8,
        detector=options.detector,
        thunder=options.thunder,
        python=options.peer_python,
        threads=options.threads,
        starts=options.starts,
    )
    if rounds is not None:
        plan = replace(plan, rounds=dict.fromkeys(plan.people, rounds))
    record = measure(plan)
    if target is not None:
        write_json(record, target)
    if folder is not None:
        write_json(record, folder / f"runtimes-{record['environment']['cpu_kind']}.json")
    print(runtimes_block([record]))
    return 0
