"""Goals and document tables, computed from the record of `cfpose-bench runtimes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cfpose_bench.measurement import cpu_kind
from cfpose_bench.runtimes.contestants import RTMLIB, W32, W32_BF16
from cfpose_bench.runtimes.turns import Summary, speedup, summary_of

SAME_RUNTIME, BEST_BACKEND = 1.0, 3.0  # times as fast as rtmlib
OUTSIDE = 0.10  # of a call with OUTSIDE_PEOPLE people, at most
OUTSIDE_PEOPLE = 5
FIRST_RESULT_S = 1.5
Record = Mapping[str, Any]
NO_AMX = "no AMX"


def goals(record: Record) -> list[dict[str, Any]]:
    """Each goal with its figure and `pass`, `fail` or `not measured`.

    The median decides; `sure` tells whether the unfavourable end of its interval says the same.
    """
    w32 = [task for task in record["tasks"] if task["model"] == "w32"]
    verdicts = [_against_rtmlib(task, best=False) for task in w32]
    verdicts += [_against_rtmlib(task, best=True) for task in w32]
    if not w32:
        for text in ("same onnxruntime as rtmlib", "best backend against rtmlib"):
            verdicts.append({"goal": text, "verdict": "not measured", "why": "no W32 was given"})
    return [
        *verdicts,
        _outside(record["tasks"]),
        _first_result(record["first_result"]),
        *_amx(record, w32),
    ]


def _case(task: Record) -> str:
    return f"boxes {task['boxes']}, {task['people']} people"


def _against_rtmlib(task: Record, *, best: bool) -> dict[str, Any]:
    ours = [row for row in task["rows"] if row["label"] != RTMLIB]
    row = min(ours, key=lambda r: r["ms"]) if best else _row(ours, W32)
    goal = "best backend against rtmlib" if best else "same onnxruntime as rtmlib"
    wanted = BEST_BACKEND if best else SAME_RUNTIME
    value = None if row is None else summary_of(row, "speedup")
    if row is None or value is None:
        return {"goal": goal, "case": _case(task), "verdict": "not measured", "why": "left out"}
    return _judged(goal, _case(task), row["label"], value, at_least=wanted)


def _outside(tasks: Sequence[Record]) -> dict[str, Any]:
    goal = "time outside the two networks"
    for task in tasks:
        if task["model"] == "default" and task["people"] == OUTSIDE_PEOPLE:
            ours = [row for row in task["rows"] if row["label"].startswith("default")]
            row = min(ours, key=lambda r: r["ms"])
            share = summary_of(row, "outside_share")
            if share is not None:
                return _judged(goal, _case(task), row["label"], share, at_most=OUTSIDE)
    why = f"no task with {OUTSIDE_PEOPLE} people"
    return {"goal": goal, "verdict": "not measured", "why": why}


def _first_result(started: Record) -> dict[str, Any]:
    seconds = Summary(started["median_s"], min(started["samples_s"]), started["max_s"], ())
    case = f"{len(started['samples_s'])} processes, interval: least and most"
    return _judged("first result, seconds", case, "default", seconds, at_most=FIRST_RESULT_S)


def _amx(record: Record, w32: Sequence[Record]) -> list[dict[str, Any]]:
    """OpenVINO bf16 by onnxruntime fp32, on CPUs with AMX alone; no goal was set for it."""
    goal = "W32 in bf16 with AMX against onnxruntime fp32"
    if "amx_bf16" not in record["environment"]["cpu_features"]:
        return [{"goal": goal, "verdict": "not measured", "why": NO_AMX}]
    verdicts = []
    for task in w32:
        plain, low = _row(task["rows"], W32), _row(task["rows"], W32_BF16)
        if plain is not None and low is not None:
            ratio = speedup(plain["samples_ms"], low["samples_ms"])
            verdicts.append(_judged(goal, _case(task), W32_BF16, ratio))
    return verdicts or [{"goal": goal, "verdict": "not measured", "why": "left out"}]


def _judged(
    goal: str,
    case: str,
    who: str,
    value: Summary,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    figures = {"value": value.median, "low": value.low, "high": value.high}
    record: dict[str, Any] = {"goal": goal, "case": case, "who": who, **figures}
    if at_least is not None:
        reached = [float(v) >= at_least for v in (value.median, value.low, value.high)]
        record["wanted"] = f"≥ {at_least:g}"
    elif at_most is not None:
        reached = [float(v) <= at_most for v in (value.median, value.high, value.low)]
        record["wanted"] = f"≤ {at_most:g}"
    else:
        return {**record, "verdict": "measured"}
    passed = reached[0]
    return {**record, "verdict": "pass" if passed else "fail", "sure": bool(np.all(reached))
            if passed else not any(reached)}  # fmt: skip


def _row(rows: Sequence[Record], label: str) -> Record | None:
    return next((row for row in rows if row["label"] == label), None)


NOT_MEASURED = "Not measured yet: run `make runtimes`."
OTHER = "other"
KINDS = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2", "arm": "ARM", OTHER: "another kind"}
NAMES = {"w32": "W32", "default": "default"}


def runtimes_block(records: Sequence[Record]) -> str:
    """Markdown of the records, one a kind of CPU, side by side; without one, that there is none."""
    if not records:
        return NOT_MEASURED
    known = {kind_of(record): record for record in records}
    by_kind = {kind: known[kind] for kind in KINDS if kind in known}
    absent = [title for kind, title in KINDS.items() if kind not in by_kind and kind != OTHER]
    parts = [_heading(kind, record) for kind, record in by_kind.items()]
    parts += [_legend(next(iter(by_kind.values())))]
    if absent:
        parts[-1] += f" Not measured: {', '.join(absent)}."
    parts += [_times(by_kind), _goals(by_kind)]
    for kind, record in by_kind.items():
        parts.append(f"{KINDS[kind]}: {_first(record)}")
        if record["left_out"]:
            why = "; ".join(f"{entry['label']} ({entry['why']})" for entry in record["left_out"])
            parts.append(f"{KINDS[kind]}, left out: {why}.")
    return "\n\n".join(parts)


def kind_of(record: Record) -> str:
    """The kind of CPU of a record; one that does not name it has its features."""
    environment = record["environment"]
    kind: str = environment.get("cpu_kind") or cpu_kind(
        environment["cpu_features"],
        environment.get("platform", "").partition("-with")[0].rpartition("-")[2],
    )
    return kind


def _heading(kind: str, record: Record) -> str:
    environment, protocol = record["environment"], record["protocol"]
    versions = {**environment["packages"]}
    for task in record["tasks"]:
        for row in task["rows"]:
            versions |= row.get("versions", {})
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("onnxruntime", "openvino", "rtmlib")
        if name in versions
    )
    return (
        f"{KINDS[kind]}: one run on {environment['cpu']} with {protocol['threads']} threads: "
        f"{named}."
    )


def _legend(record: Record) -> str:
    protocol = record["protocol"]
    width, height = protocol["size_wh"]
    return (
        f"The photo "
        f"is `{protocol['photo']}` ({width} × {height}), decoded; with boxes `found` the "
        f"detector's time is in it (W32: YOLOX-Nano on both sides; default and "
        f"Thunder: the bundled finder). "
        f"W32 is untrained: its figures are times, and its int8 and bf16 rows say nothing about "
        f"accuracy. A ratio is how many times as fast as the first row, the median over rounds "
        f"with its 95 % interval. `outside`: share of the time outside the networks' runs."
    )


def _times(by_kind: Mapping[str, Record]) -> str:
    """A row a runtime of a task, with the figures of each kind of CPU; `-` where it did not run."""
    cells: dict[tuple[str, str, str, str], dict[str, tuple[str, str, str]]] = {}
    for kind, record in by_kind.items():
        for task in record["tasks"]:
            for row in task["rows"]:
                place = (NAMES[task["model"]], task["boxes"], str(task["people"]), row["label"])
                cells.setdefault(place, {})[kind] = _figures(row)
    titles = [f" {KINDS[kind]}" if len(by_kind) > 1 else "" for kind in by_kind]
    head = [f"{name}{title}" for title in titles for name in ("ms", "ratio", "outside")]
    lines = _head(("model", "boxes", "people", "runtime", *head), 4)
    for place, figures in cells.items():
        found = [figures.get(kind, ("-", "-", "-")) for kind in by_kind]
        lines.append(_line(*place, *(cell for group in found for cell in group)))
    return "\n".join(lines)


def _figures(row: Record) -> tuple[str, str, str]:
    ratio, outside = row.get("speedup"), row.get("outside_share")
    return (
        f"{row['ms']:.1f}",
        "1" if ratio is None else _interval(ratio["median"], ratio["low"], ratio["high"]),
        "-" if outside is None else f"{outside['median']:.1%}",
    )


def _goals(by_kind: Mapping[str, Record]) -> str:
    lines = _head(("CPU", "goal", "case", "runtime", "wanted", "found", "verdict"), 7)
    for kind, record in by_kind.items():
        lines += [_line(KINDS[kind], *_goal(goal)) for goal in record["goals"]]
    return "\n".join(lines)


def _goal(goal: Record) -> tuple[str, ...]:
    if "value" not in goal:
        verdict = f"not measured: {goal['why']}"
        return (goal["goal"], goal.get("case", "-"), "-", "-", "-", verdict)
    unsure = ", not surely" if goal.get("sure") is False else ""
    found = _interval(goal["value"], goal["low"], goal["high"])
    wanted = goal.get("wanted", "-")
    return (goal["goal"], goal["case"], goal["who"], wanted, found, f"{goal['verdict']}{unsure}")


def _first(record: Record) -> str:
    started = record["first_result"]
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in started["parts_s"].items())
    return (
        f"First result: median {started['median_s']:.2f} s, most {started['max_s']:.2f} s of "
        f"{len(started['samples_s'])} processes (median seconds of its parts: {parts})."
    )


def _head(names: Sequence[str], texts: int) -> list[str]:
    return [_line(*names), "|" + "---|" * texts + "---:|" * (len(names) - texts)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
