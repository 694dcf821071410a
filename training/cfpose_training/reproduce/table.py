"""The table at the end of a plan: the paper's figures, ours, their interval, time and memory."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.files import write_file
from cfpose_training.reproduce.plan import Options, Plan, Row
from cfpose_training.reproduce.targets import FIGURES, TEST_DEV

NAME = "table"  # .md, .csv and .json
# of Student's t: 97.5 % quantile by degrees of freedom, 1 to 9
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Figure:
    """One figure of a row, in percent; None where the paper has none, or nothing was measured."""

    row: str
    figure: str
    paper: float | None
    ours: float | None  # mean over the seeds
    difference: float | None
    seeds: int
    low: float | None  # 95 % interval, see `interval`
    high: float | None
    interval: str  # "seeds": Student's t; "photos": bootstrap of one seed; "": none
    seconds: float  # of training, all its seeds and their teacher
    gigabytes: float  # the most memory that a step took


def figures(plan: Plan, records: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """All figures of the rows, from the steps' reports. Raises TrainingError without one."""
    return [figure for row in plan.rows for figure in _row(plan, row, records)]


def _row(plan: Plan, row: Row, records: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    reports = [_accuracy(plan.step(name).output) for name in row.measured]
    took = [records.get(name, {}) for name in row.trained or row.measured]
    seconds = sum(record.get("seconds", 0.0) for record in took)
    gigabytes = max((record.get("gigabytes", 0.0) for record in took), default=0.0)
    found = []
    for name in FIGURES:
        values = [100 * r[name] for r in reports if r.get(name) is not None]
        paper = row.target.figures.get(name)
        if not values and paper is None:
            continue
        ours = statistics.fmean(values) if values else None
        low, high, kind = _interval(values, reports[0].get("AP_ci95") if name == "AP" else None)
        difference = None if ours is None or paper is None else ours - paper
        found.append(
            Figure(
                row.target.title, name, paper, ours, difference, len(reports), low, high, kind,
                seconds, gigabytes,
            )
        )  # fmt: skip
    return found


def _accuracy(report: Path) -> dict[str, Any]:
    try:
        (model,) = json.loads(report.read_bytes())["models"]
        accuracy: dict[str, Any] = model["accuracy"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{report} is no report of one model ({error!r}); delete it, and run reproduce again"
        ) from error
    return accuracy


def _interval(
    values: Sequence[float], photos: Sequence[float] | None
) -> tuple[float | None, float | None, str]:
    """Of the mean over seeds; of one seed over resampled photos, where the report has it."""
    if len(values) > 1:
        half = T975[min(len(values) - 2, len(T975) - 1)]
        half *= statistics.stdev(values) / math.sqrt(len(values))
        return statistics.fmean(values) - half, statistics.fmean(values) + half, "seeds"
    if values and photos is not None:
        return 100 * photos[0], 100 * photos[1], "photos"
    return None, None, ""


def write_table(plan: Plan, options: Options, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Write `table.md`, `table.csv` and `table.json` below the folder; returns the Markdown."""
    found = figures(plan, records)
    text = markdown(found, options)
    rows = [asdict(figure) for figure in found]
    content = {
        "table": options.table.roman, "dataset": options.dataset, "miniature": options.miniature,
        "official": [path.name for path in options.official], "seeds": list(options.seeds),
        "figures": rows, "steps": dict(records),
    }  # fmt: skip
    target = io.StringIO()
    writer = csv.DictWriter(target, list(Figure.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    write_file(options.out / f"{NAME}.csv", target.getvalue())
    write_file(options.out / f"{NAME}.json", json.dumps(content, indent=1) + "\n")
    write_file(options.out / f"{NAME}.md", text)
    return text


def markdown(found: Sequence[Figure], options: Options) -> str:
    """A line a row: AP with its difference and interval, then the other figures as ours (paper)."""
    names = [name for name in FIGURES[1:] if any(f.figure == name for f in found)]
    others = [f"{name} (paper)" for name in names]
    head = ["row", "AP, paper", "AP, ours", "difference", "seeds", "95 % interval", *others]
    head += ["hours", "GB"]
    lines = [heading(options), "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for title in dict.fromkeys(figure.row for figure in found):
        row = {figure.figure: figure for figure in found if figure.row == title}
        ap = row.get("AP")
        if ap is None:
            continue
        interval = "-" if ap.low is None else f"{_shown(ap.low)} to {_shown(ap.high)}"
        cells = [title, _shown(ap.paper), _shown(ap.ours)]
        cells += ["-" if ap.difference is None else f"{ap.difference:+.1f}", str(ap.seeds)]
        cells += [interval, *(_pair(row.get(name)) for name in names)]
        cells += [f"{ap.seconds / 3600:.2f}", f"{ap.gigabytes:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes(options), ""])


def heading(options: Options) -> str:
    """What the table is, and what it is not."""
    if options.miniature and options.official:
        return "Published checkpoints on drawn people; figures mean nothing beside the paper's."
    if options.miniature:
        return (
            "Miniature: drawn people, tiny networks and a few steps. It shows that the plan runs "
            "to its end; its figures mean nothing beside the paper's."
        )
    if options.official:
        return "Published checkpoints of SimCC by the paper's protocol, on COCO val2017."
    return f"Table {options.table.roman}: {options.table.about}."


def notes(options: Options) -> list[str]:
    """How to read the columns."""
    lines = [
        "Figures in percent. Interval of several seeds: Student's t over them; of one: bootstrap "
        "over photos, which does not hold what another seed would change. Hours: wall clock of all "
        "training that the row needs, its teacher included. GB: the most memory that one of "
        "its processes took: of the GPU where its log names it, else main memory."
    ]
    if options.dataset == "coco" and not options.official:
        lines += ["", TEST_DEV + "."]
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _pair(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return _shown(figure.ours) + ("" if figure.paper is None else f" ({figure.paper:.1f})")
