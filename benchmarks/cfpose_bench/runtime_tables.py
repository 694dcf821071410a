"""The record of `cfpose-bench runtimes` → its section in the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "Not measured yet: run `make runtimes`."
NAMES = {"w32": "W32", "default": "default"}

Record = Mapping[str, Any]


def runtimes_block(record: Record | None) -> str:
    """Markdown of one record; without one, that there is none."""
    if record is None:
        return NOT_MEASURED
    parts = [_heading(record), _times(record["tasks"]), _goals(record["goals"]), _first(record)]
    if record["left_out"]:
        reasons = "; ".join(f"{entry['label']} ({entry['why']})" for entry in record["left_out"])
        parts.append(f"Left out: {reasons}.")
    return "\n\n".join(parts)


def _heading(record: Record) -> str:
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
    width, height = protocol["size_wh"]
    return (
        f"One run on {environment['cpu']} with {protocol['threads']} threads: {named}. The photo "
        f"is `{protocol['photo']}` ({width} × {height}), decoded; with boxes `found` the "
        f"detector's time is in it (W32: YOLOX-Nano on both sides; default and "
        f"Thunder: the bundled finder). "
        f"W32 is untrained: its figures are times, and its int8 and bf16 rows say nothing about "
        f"accuracy. A ratio is how many times as fast as the first row, the median over rounds "
        f"with its 95 % interval. `outside`: share of the time outside the networks' runs."
    )


def _times(tasks: Sequence[Record]) -> str:
    lines = _head(("model", "boxes", "people", "runtime", "ms", "ratio", "outside"), 4)
    for task in tasks:
        for row in task["rows"]:
            ratio, outside = row.get("speedup"), row.get("outside_share")
            lines.append(
                _line(
                    NAMES[task["model"]],
                    task["boxes"],
                    str(task["people"]),
                    row["label"],
                    f"{row['ms']:.1f}",
                    "1"
                    if ratio is None
                    else _interval(ratio["median"], ratio["low"], ratio["high"]),
                    "-" if outside is None else f"{outside['median']:.1%}",
                )
            )
    return "\n".join(lines)


def _goals(goals: Sequence[Record]) -> str:
    lines = _head(("goal", "case", "runtime", "wanted", "found", "verdict"), 6)
    for goal in goals:
        if "value" not in goal:
            verdict = f"not measured: {goal['why']}"
            lines.append(_line(goal["goal"], goal.get("case", "-"), "-", "-", "-", verdict))
            continue
        unsure = ", not surely" if goal.get("sure") is False else ""
        found = _interval(goal["value"], goal["low"], goal["high"])
        wanted = goal.get("wanted", "-")
        verdict = f"{goal['verdict']}{unsure}"
        lines.append(_line(goal["goal"], goal["case"], goal["who"], wanted, found, verdict))
    return "\n".join(lines)


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
