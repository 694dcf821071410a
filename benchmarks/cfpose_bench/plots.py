"""A report's curves as inline SVG, drawn by matplotlib; no fonts or files are fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfpose_bench.report import Measured
from cfpose_sdk.errors import require

SIZE_INCHES = (4.4, 3.2)  # small, so that text stays readable on a phone
RECALLS = np.linspace(0, 1, 101)
OKS = np.linspace(0.5, 0.95, 10)


def plots(rows: Sequence[Measured]) -> dict[str, str]:
    """title -> SVG of every plot that the rows have figures for."""
    require("matplotlib", extra="bench", why="the plots of --html")
    found = {
        "Time of a photo": _latency(rows),
        "AP against time": _trade(rows),
        "Time by people a photo": _people(rows),
        "Reliability of the confidence (expected calibration error)": _reliability(rows),
    }
    found |= {f"Precision and recall: {r.model}, boxes {r.boxes}": _precision(r) for r in rows}
    return {title: svg for title, svg in found.items() if svg is not None}


def _latency(rows: Sequence[Measured]) -> str | None:
    """Share of photos done by a time."""
    figure, axes = _figure("ms a photo (logarithmic)", "share of photos")
    for row in rows:
        values = np.sort(row.details.get("total_ms", []))
        if len(values):
            axes.step(values, np.arange(1, len(values) + 1) / len(values), label=_label(row))
    axes.set_xscale("log")
    return _svg(figure, axes, "latency")


def _trade(rows: Sequence[Measured]) -> str | None:
    figure, axes = _figure("median ms a photo", "AP")
    for row in rows:
        total = row.latency_ms.get("total")
        if total is not None and not np.isnan(row.accuracy.AP):
            low, high = row.accuracy.AP_ci95 or (row.accuracy.AP, row.accuracy.AP)
            bars = [[max(0, row.accuracy.AP - low)], [max(0, high - row.accuracy.AP)]]
            axes.errorbar([total.p50], [row.accuracy.AP], yerr=bars, fmt="o", label=_label(row))
    axes.set_xlim(left=0)
    return _svg(figure, axes, "trade")


def _people(rows: Sequence[Measured]) -> str | None:
    figure, axes = _figure("people a photo", "median ms, without reading")
    shown = set()
    for row in rows:
        if row.people_curve and row.model not in shown:
            shown.add(row.model)
            points = [(p["people"], p["p50"]) for p in row.people_curve]
            axes.plot(*zip(*points, strict=True), marker="o", label=row.model)
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, "people")


def _reliability(rows: Sequence[Measured]) -> str | None:
    figure, axes = _figure("confidence said", "share of good joints")
    drawn = False
    for row in rows:
        if row.calibration:
            bins, drawn = row.calibration["bins"], True
            said = [b["confidence"] for b in bins]
            label = f"{_label(row)} ({row.calibration['ece']:.2f})"
            axes.plot(said, [b["good"] for b in bins], marker=".", label=label)
    if drawn:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    return _svg(figure, axes, "reliability") if drawn else None


def _precision(row: Measured) -> str | None:
    """One curve an OKS threshold, .50 the darkest."""
    if row.accuracy.precision is None:
        return None
    figure, axes = _figure("recall", "precision")
    for n, (oks, curve) in enumerate(zip(OKS, row.accuracy.precision, strict=True)):
        axes.plot(RECALLS, curve, color=(0.1, 0.25 + 0.06 * n, 0.45 + 0.05 * n), linewidth=1.2,
                  label=f"{oks:.2f}" if n % 3 == 0 else None)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return _svg(figure, axes, f"pr-{_slug(_label(row))}", title="OKS")


def _figure(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Any, axes: Any, name: str, *, title: str | None = None) -> str | None:
    """The figure as an <svg> whose ids begin with `name`; None when nothing is drawn."""
    if not axes.lines and not axes.containers:
        return None
    import matplotlib

    if title is None:  # below the axes: with many models it would hide their curves
        columns = 2 if len(axes.get_legend_handles_labels()[1]) > 1 else 1
        figure.legend(loc="outside lower center", fontsize=6, ncols=columns)
    else:
        axes.legend(loc="upper right", fontsize=7, title=title)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=none)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def _label(row: Measured) -> str:
    return f"{row.model}, {row.boxes}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
