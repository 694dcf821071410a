"""The ablation's table: a CSV row for each run, a Markdown row for each scheme, and a picture."""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfpose_sdk.errors import require

CSV_FILE = "ablation.csv"
MARKDOWN_FILE = "ablation.md"
PICTURE_FILE = "ablation.png"


@dataclass(frozen=True)
class Row:
    """One scheme with one seed: its figures on the development photos.

    AP is measured as the ablation's protocol says; the joint errors are in annotated boxes.
    """

    scheme: str
    seed: int
    kd_fea: bool
    kd_l1: bool
    kd_cst: bool
    kd_logit: bool  # not a column of Table IV: as the recipe has it, in every scheme
    gcn: str
    AP: float
    AP50: float
    AP75: float
    error: float  # mean distance of labelled joints, percent of sqrt(area)
    coarse_error: float  # the same before refinement
    loss_first: float  # of the scheme's last stage: mean of its first and of its last epoch
    loss_last: float
    AP_easy: float | None = None  # CrowdPose's photos by crowd index; None: none of that level
    AP_medium: float | None = None
    AP_hard: float | None = None
    AP_opec: float | None = None  # CrowdPose on its first 12 joints, as OPEC-Net evaluates


LEVELS = {"AP_easy": "AP easy", "AP_medium": "AP medium", "AP_hard": "AP hard"}
CROWDPOSE = {**LEVELS, "AP_opec": "AP of 12 joints"}


def require_plotting() -> None:
    """Raise MissingDependencyError when the picture cannot be drawn."""
    require("matplotlib", extra="train", why="the ablation's picture")


def write_tables(rows: Sequence[Row], folder: Path, how: str) -> None:
    """Write `ablation.csv`, `ablation.md` and `ablation.png` below `folder`.

    `how`: the sentence that says how they were measured.
    """
    with open(folder / CSV_FILE, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(_csv_record(row) for row in rows)
    (folder / MARKDOWN_FILE).write_text(f"{markdown(rows)}\n{how}\n")
    _draw(rows, folder / PICTURE_FILE)


def markdown(rows: Sequence[Row]) -> str:
    """One line a scheme: its switches, and mean ± standard deviation over the seeds.

    The columns by crowd index are there for CrowdPose alone, kd_logit only where it is on.
    """
    switches = ["kd_fea", "kd_l1", "kd_cst"]
    if any(row.kd_logit for row in rows):
        switches.append("kd_logit")
    figures = {"AP": "AP", "AP50": "AP50", "AP75": "AP75"}
    figures |= {n: t for n, t in CROWDPOSE.items() if any(getattr(r, n) is not None for r in rows)}
    titles = ["scheme", *switches, "gcn", "seeds", *figures.values(), "error %"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for group in _by_scheme(rows):
        first = group[0]
        cells = [
            first.scheme,
            *("yes" if getattr(first, name) else "no" for name in switches),
            first.gcn,
            str(len(group)),
            *(_percent([getattr(row, name) for row in group]) for name in figures),
            _spread([row.error for row in group]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the deviation of one value is 0."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _percent(values: Sequence[float | None]) -> str:
    """Shares as percent; a dash where there is nothing to count."""
    known = [100 * value for value in values if value is not None]
    return _spread(known) if known else "-"


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f} ± {deviation:.2f}" if len(values) > 1 else f"{mean:.2f}"


def _csv_record(row: Row) -> dict[str, object]:
    record = dataclasses.asdict(row)
    return {
        name: f"{value:.6g}" if isinstance(value, float) else value
        for name, value in record.items()
    }


def _by_scheme(rows: Sequence[Row]) -> list[list[Row]]:
    names = dict.fromkeys(row.scheme for row in rows)
    return [[row for row in rows if row.scheme == name] for name in names]


def _draw(rows: Sequence[Row], path: Path) -> None:
    """AP and error of every scheme: mean, standard deviation, and each seed as a dot."""
    require_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _by_scheme(rows)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("AP", 100.0, "AP"), ("error", 1.0, "joint error, % of sqrt(area)"))
    for axes, (name, factor, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for place, group in enumerate(groups):
            values = [factor * getattr(row, name) for row in group]
            mean, deviation = mean_and_deviation(values)
            axes.errorbar([place], [mean], yerr=[deviation], fmt="_", color="black", capsize=6)
            axes.plot([place] * len(values), values, ".", color="tab:blue", alpha=0.7)
        axes.set_xticks(range(len(groups)), [group[0].scheme for group in groups])
        axes.set_xlabel("scheme")
        axes.set_ylabel(label)
    seeds = max(len(group) for group in groups)
    figure.suptitle(f"mean, standard deviation and values over {seeds} seed(s)", fontsize=9)
    figure.savefig(path, dpi=120)
