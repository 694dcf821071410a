"""The report as one HTML page, without scripts or downloads, readable on a phone."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_bench.accuracy.reliability import Judged
from cfpose_bench.data.dataset import KeypointDataset
from cfpose_bench.report.report import STAGES, Row
from cfpose_sdk.errors import ImageError, require
from cfpose_sdk.files import write_file
from cfpose_sdk.media.draw import draw_poses
from cfpose_sdk.media.image import read_image
from cfpose_sdk.skeleton import Skeleton

SIZE_INCHES = (4.4, 3.2)  # small, so that text stays readable on a phone
RECALLS = np.linspace(0, 1, 101)
OKS = np.linspace(0.5, 0.95, 10)


def plots(rows: Sequence[Row]) -> dict[str, str]:
    """title -> SVG of every plot that the rows have figures for."""
    require("matplotlib", extra="bench", why="the plots of --html")
    drawn = {
        "Time of a photo": _latency(rows),
        "AP against time": _trade(rows),
        "Time by people a photo": _people(rows),
        "Reliability of the confidence (expected calibration error)": _reliability(rows),
    }
    drawn |= {f"Precision and recall: {r.model}, boxes {r.boxes}": _precision(r) for r in rows}
    return {title: svg for title, svg in drawn.items() if svg is not None}


def _latency(rows: Sequence[Row]) -> str | None:
    """Share of photos done by a time."""
    figure, axes = _figure("ms a photo (logarithmic)", "share of photos")
    for row in rows:
        values = np.sort(row.details.get("total_ms", []))
        if len(values):
            axes.step(values, np.arange(1, len(values) + 1) / len(values), label=_label(row))
    axes.set_xscale("log")
    return _svg(figure, axes, "latency")


def _trade(rows: Sequence[Row]) -> str | None:
    figure, axes = _figure("median ms a photo", "AP")
    for row in rows:
        total = row.latency_ms.get("total")
        if total is not None and not np.isnan(row.accuracy.AP):
            low, high = row.accuracy.AP_ci95 or (row.accuracy.AP, row.accuracy.AP)
            bars = [[max(0, row.accuracy.AP - low)], [max(0, high - row.accuracy.AP)]]
            axes.errorbar([total.p50], [row.accuracy.AP], yerr=bars, fmt="o", label=_label(row))
    axes.set_xlim(left=0)
    return _svg(figure, axes, "trade")


def _people(rows: Sequence[Row]) -> str | None:
    figure, axes = _figure("people a photo", "median ms, without reading")
    shown = set()
    for row in rows:
        if row.people_curve and row.model not in shown:
            shown.add(row.model)
            points = [(p["people"], p["p50"]) for p in row.people_curve]
            axes.plot(*zip(*points, strict=True), marker="o", label=row.model)
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, "people")


def _reliability(rows: Sequence[Row]) -> str | None:
    figure, axes = _figure("predicted confidence", "share of good joints")
    drawn = False
    for row in rows:
        if row.calibration:
            bins, drawn = row.calibration["bins"], True
            confidence = [b["confidence"] for b in bins]
            label = f"{_label(row)} ({row.calibration['ece']:.2f})"
            axes.plot(confidence, [b["good"] for b in bins], marker=".", label=label)
    if drawn:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    return _svg(figure, axes, "reliability") if drawn else None


def _precision(row: Row) -> str | None:
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


def _label(row: Row) -> str:
    return f"{row.model}, {row.boxes}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


STYLE = """
:root{color-scheme:light}
body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;padding:1rem;max-width:76rem;color:#1b1f24;
background:#fff;overflow-wrap:anywhere}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;overflow-wrap:normal}
th,td{padding:.3rem .55rem;border-bottom:1px solid #d8dee4;text-align:right;white-space:nowrap}
th:first-child,td:first-child,.text td,.text th{text-align:left}.text td{white-space:normal}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));gap:1rem}
figure{margin:0}figcaption{font-size:.85rem;margin:.2rem 0}
svg{width:100%;height:auto}img{max-width:100%;height:auto}
.bad{background:#ffebe9;padding:.6rem 1rem}.good{background:#dafbe1;padding:.6rem 1rem}
"""
# column -> the path of its figure in a model's record, and how it is written
COLUMNS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "AP": (("accuracy", "AP"), ".3f"),
    "AP50": (("accuracy", "AP50"), ".3f"),
    "AP75": (("accuracy", "AP75"), ".3f"),
    "APM": (("accuracy", "APM"), ".3f"),
    "APL": (("accuracy", "APL"), ".3f"),
    "AP easy": (("accuracy", "AP_easy"), ".3f"),
    "AP medium": (("accuracy", "AP_medium"), ".3f"),
    "AP hard": (("accuracy", "AP_hard"), ".3f"),
    "AR": (("accuracy", "AR"), ".3f"),
    **{f"{stage} ms": (("latency_ms", stage, "p50"), ".1f") for stage in STAGES},
    "total p90": (("latency_ms", "total", "p90"), ".1f"),
    "total p99": (("latency_ms", "total", "p99"), ".1f"),
    "time ratio": (("ratio", "total"), ".2f"),
    "ECE": (("calibration", "ece"), ".3f"),
    "1 sigma": (("coverage", "within_1_sigma"), ".3f"),
    "2 sigma": (("coverage", "within_2_sigma"), ".3f"),
    "drift max px": (("drift", "max_px"), ".3g"),
    "drift p99 px": (("drift", "p99_px"), ".3g"),
    "delta AP": (("drift", "delta_ap"), "+.4f"),
    "parameters": (("params",), ",d"),
    "MACs": (("macs",), ",d"),
    "bytes": (("bytes",), ",d"),
    "RSS MB": (("memory_mb", "peak_rss"), ".0f"),
    "GPU MB": (("memory_mb", "gpu"), ".0f"),
}


def write_page(
    record: Mapping[str, Any],
    rows: Sequence[Row],
    dataset: KeypointDataset,
    path: str | Path,
    reasons: Sequence[str] = (),
) -> None:
    """Write the page of a report and its rows. Raises InputError when the place is not writable."""
    write_file(path, page(record, rows, dataset, reasons))


def page(
    record: Mapping[str, Any],
    rows: Sequence[Row],
    dataset: KeypointDataset,
    reasons: Sequence[str] = (),
) -> str:
    """The page's text. Every figure's cell holds its unrounded value as `data-value`."""
    protocol = record["protocol"]
    title = f"cfpose-bench: {protocol['dataset']}"
    body = [f"<h1>{_e(title)}</h1>", _summary(protocol, reasons), _models(record["models"])]
    body.append('<h2>Plots</h2><div class="grid">')
    body += [
        f"<figure><figcaption>{_e(name)}</figcaption>{svg}</figure>"
        for name, svg in plots(rows).items()
    ]
    body.append("</div>")
    body += [_worst(row, dataset) for row in rows[:1] if row.details.get("worst")]
    body.append(_facts("Protocol", protocol))
    body.append(_facts("Machine and versions", record["environment"]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_e(title)}</title><style>{STYLE}</style></head>\n'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _summary(protocol: Mapping[str, Any], reasons: Sequence[str]) -> str:
    text = (
        f"<p>{protocol['images']} photos, {protocol['instances']} people, boxes: "
        f"{_e(protocol['boxes'])}. Times are wall time of one photo with all its people; the "
        f"columns are medians.</p>"
    )
    if reasons:
        items = "".join(f"<li>{_e(reason)}</li>" for reason in reasons)
        text += f'<div class="bad"><strong>Failed</strong><ul>{items}</ul></div>'
    return text


def _models(models: Sequence[Mapping[str, Any]]) -> str:
    values = [{name: _at(model, keys) for name, (keys, _) in COLUMNS.items()} for model in models]
    shown = [name for name in COLUMNS if any(row[name] is not None for row in values)]
    head = "".join(f"<th>{_e(name)}</th>" for name in ("model", "boxes", *shown))
    lines = []
    for n, (model, row) in enumerate(zip(models, values, strict=True)):
        cells = "".join(_cell(n, name, row[name]) for name in shown)
        lines.append(f"<tr><td>{_e(model['model'])}</td><td>{_e(model['boxes'])}</td>{cells}</tr>")
    return (
        f'<h2>Models</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(n: int, name: str, value: Any) -> str:
    if value is None:
        return "<td>-</td>"
    keys, style = COLUMNS[name]
    where = ".".join((str(n), *keys))
    return f'<td data-key="{where}" data-value="{value!r}">{value:{style}}</td>'


def _at(record: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _worst(row: Row, dataset: KeypointDataset) -> str:
    figures = []
    for person in row.details["worst"]:
        try:
            picture = worst_case(person, dataset, row.details["skeleton"])
        except ImageError:
            continue
        data = base64.b64encode(picture).decode()
        name = dataset.photos[person.image_id].name
        figures.append(
            f'<figure><img alt="annotated and predicted joints" '
            f'src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{_e(name)}: OKS {person.oks:.2f}</figcaption></figure>"
        )
    return (
        f"<h2>Worst people of {_e(row.model)}, boxes {_e(row.boxes)}</h2><p>White rings are the "
        f'annotated joints.</p><div class="grid">{"".join(figures)}</div>'
    )


def worst_case(person: Judged, dataset: KeypointDataset, skeleton: Skeleton) -> bytes:
    """JPEG of one person's surroundings with the annotated and the predicted joints."""
    image: NDArray[np.uint8] = read_image(dataset.photos[person.image_id])
    if person.xy is not None and person.confidence is not None:
        image = draw_poses(
            image,
            person.xy[None],
            person.confidence[None],
            np.array([person.box]),
            skeleton,
            threshold=0.0,
        )
    x1, y1, x2, y2 = person.box
    margin = 0.25 * max(x2 - x1, y2 - y1)
    height, width = image.shape[:2]
    left, top = int(np.clip(x1 - margin, 0, width - 1)), int(np.clip(y1 - margin, 0, height - 1))
    right, bottom = (
        int(np.clip(x2 + margin, left + 1, width)),
        int(np.clip(y2 + margin, top + 1, height)),
    )
    part: NDArray[Any] = image[top:bottom, left:right]
    scale = 320 / max(part.shape[:2])
    part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for x, y, seen in person.truth:
        if seen > 0:
            centre = (round((x - left) * scale), round((y - top) * scale))
            cv2.circle(part, centre, 4, (255, 255, 255), 2, cv2.LINE_AA)
    return bytes(cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


def _facts(title: str, record: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_e(str(key))}</td><td>{_e(_plain(value))}</td></tr>"
        for key, value in record.items()
    )
    return f'<h2>{_e(title)}</h2><div class="wide"><table class="text">{rows}</table></div>'


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return "none" if value is None else str(value)


def _e(text: str) -> str:
    return html.escape(str(text))
