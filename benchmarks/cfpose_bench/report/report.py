"""The report of a run (JSON, CSV, tables), and the check of its figures against bounds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cfpose_bench.accuracy.coco import Accuracy
from cfpose_bench.measurement import Timing, environment
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import write_file

SCHEMA = 1
STAGES = ("read", "detect", "crop", "infer", "post", "total")
FACTS = ("model", "boxes", "precision", "provider", "params", "macs", "bytes", "sha256", "versions")
FIGURES = (
    "people_curve", "throughput", "memory_mb", "drift", "ratio", "calibration", "coverage",
    "reference",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The figures of one model under one kind of boxes; None where one was not measured."""

    model: str
    boxes: str  # gt, detector, own, or a file of boxes
    precision: str | None
    provider: str | None  # what truly ran it
    bytes: int | None  # size of the artifact
    accuracy: Accuracy
    latency_ms: Mapping[str, Timing]
    is_peer: bool = False
    unreadable: tuple[str, ...] = ()
    params: int | None = None
    macs: int | None = None  # of one person
    sha256: str | None = None  # of the artifact
    versions: Mapping[str, str] | None = None  # of a peer's own environment
    people_curve: Sequence[Mapping[str, float]] | None = None
    throughput: Sequence[Mapping[str, float]] | None = None
    memory_mb: Mapping[str, float | None] | None = None
    drift: Mapping[str, float | int] | None = None
    ratio: Mapping[str, Any] | None = None  # of times, to the first model's or the reference's
    calibration: Mapping[str, Any] | None = None
    coverage: Mapping[str, Any] | None = None
    reference: bool | None = None  # True for the model that the others drift from
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)  # for the HTML page

    def to_dict(self) -> dict[str, Any]:
        """The model's entry in the report; what was not measured is left out."""
        record: dict[str, Any] = {name: getattr(self, name) or None for name in FACTS}
        record["accuracy"] = self.accuracy.to_dict()
        record["latency_ms"] = {stage: asdict(t) for stage, t in self.latency_ms.items()}
        record |= {name: getattr(self, name) or None for name in FIGURES}
        record["unreadable"] = list(self.unreadable) or None
        return {key: value for key, value in record.items() if value is not None}


def report(protocol: Mapping[str, Any], models: Sequence[Row]) -> dict[str, Any]:
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


def write_csv(record: Mapping[str, Any], path: str | Path) -> None:
    """A report's models as a table: a line each, a column for every single figure."""
    rows = [_flat(model) for model in record["models"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings with their keys joined by dots; lists of records by their first value."""
    flat: dict[str, Any] = {}
    if isinstance(record, Mapping):
        for key, value in record.items():
            if key != "bins":
                flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(record, list) and record and isinstance(record[0], Mapping):
        for entry in record:
            (_, first), *others = entry.items()
            for key, value in others:
                flat |= _flat(value, f"{prefix}.{first}.{key}")
    elif isinstance(record, list):
        flat = {f"{prefix}.{n}": value for n, value in enumerate(record)}
    else:
        flat[prefix] = record
    return flat


def table(models: Sequence[Row]) -> str:
    """The figures for a terminal: accuracy, then the median milliseconds of each stage."""
    is_crowdpose = any(row.accuracy.AP_easy is not None for row in models)
    classes = ("AP_easy", "AP_medium", "AP_hard") if is_crowdpose else ("APM", "APL")
    names = ("AP50", "AP75", *classes, "AR")
    head = ["model", "boxes", "AP", "95 % interval", *names]
    rows = [[*head, *(f"{stage} ms" for stage in STAGES)]]
    for row in models:
        a = row.accuracy
        interval = "-" if a.AP_ci95 is None else f"{a.AP_ci95[0]:.3f} to {a.AP_ci95[1]:.3f}"
        ap, *figures = (_share(getattr(a, name)) for name in ("AP", *names))
        times = [
            f"{row.latency_ms[stage].p50:.1f}" if stage in row.latency_ms else "-"
            for stage in STAGES
        ]
        rows.append([row.model, row.boxes, ap, interval, *figures, *times])
    return _columns(rows, left=(0, 1, 3))


def _share(value: float | None) -> str:
    """Of [0, 1]; "-" where nothing was there to measure it on."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def side_table(models: Sequence[Row]) -> str:
    """What else was measured: tail, speed ratio, cost, size, memory, ECE, coverage, drift."""
    head = ["model", "boxes", "p99 ms", "ratio", "M params", "GMACs", "MB", "RSS MB", "ECE"]
    rows = [[*head, "1 sigma", "2 sigma", "drift px", "delta AP"]]
    for row in models:
        total = row.latency_ms.get("total")
        drift = row.drift or {}
        cells = (
            (total.p99 if total else None, ".1f"),
            ((row.ratio or {}).get("total"), ".2f"),
            (row.params and row.params / 1e6, ".2f"),
            (row.macs and row.macs / 1e9, ".3f"),
            (row.bytes and row.bytes / 1e6, ".1f"),
            ((row.memory_mb or {}).get("peak_rss"), ".0f"),
            ((row.calibration or {}).get("ece"), ".3f"),
            ((row.coverage or {}).get("within_1_sigma"), ".3f"),
            ((row.coverage or {}).get("within_2_sigma"), ".3f"),
            (drift.get("max_px"), ".3g"),
            (drift.get("delta_ap"), "+.4f"),
        )
        rows.append([row.model, row.boxes, *("-" if v is None else f"{v:{f}}" for v, f in cells)])
    return _columns(rows, left=(0, 1))


def _columns(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        padded = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


# what both reports must have been measured under, and what a report without the key means
SAME: Mapping[str, Any] = {
    "dataset": None,
    "images": None,
    "instances": None,
    "preset": None,
    "flip_test": False,
    "joint_threshold": None,
    "evaluator": None,
    "oks_nms_area": "box",
    "detector": None,
    "detector_threshold": None,
    "threads": None,
    "device": "auto",
    "isolation": "a process for each model",
}


@dataclass(frozen=True)
class Bounds:
    """Limits of the figures; None where there is no limit."""

    min_ap: float | None = None
    max_drift: float | None = None  # pixels, of the worst joint
    max_p99_ms: float | None = None  # of a whole photo
    baseline: Path | None = None
    ap_loss: float = 0.005  # against the baseline
    slowdown: float = 1.2  # of a photo's median time, on the baseline's CPU and provider


def reasons(record: Mapping[str, Any], rows: Sequence[Row], bounds: Bounds) -> list[str]:
    """Why the run fails, a sentence each; empty when it passes.

    Peers and the reference are only compared with. Raises InputError when the baseline is no report
    or was taken under another protocol.
    """
    judged = [(row, row.to_dict()) for row in rows if not row.is_peer and not row.reference]
    broken = []
    for row, entry in judged:
        where = f"{row.model} (boxes: {row.boxes})"
        ap, drift = entry["accuracy"].get("AP"), entry.get("drift", {}).get("max_px")
        if bounds.min_ap is not None and (ap is None or ap < bounds.min_ap):
            text = "is undefined, wanted" if ap is None else f"{ap:.3f} is below"
            broken.append(f"{where}: AP {text} {bounds.min_ap}")
        if bounds.max_drift is not None and (drift is None or drift > bounds.max_drift):
            text = "was not measured" if drift is None else f"of a joint is {drift:.3g} px, above"
            broken.append(f"{where}: drift {text} {bounds.max_drift}")
        p99 = entry["latency_ms"].get("total", {}).get("p99")
        if bounds.max_p99_ms is not None and (p99 is None or p99 > bounds.max_p99_ms):
            text = "was not measured" if p99 is None else f"{p99:.1f} ms is above"
            broken.append(f"{where}: p99 of a photo {text} {bounds.max_p99_ms}")
    if bounds.baseline is not None:
        broken += _against(read_report(bounds.baseline), record, [e for _, e in judged], bounds)
    return broken


def _against(
    old: Mapping[str, Any], new: Mapping[str, Any], entries: Sequence[Mapping[str, Any]],
    bounds: Bounds,
) -> list[str]:  # fmt: skip
    sides = [{k: report["protocol"].get(k, absent) for k, absent in SAME.items()}
             for report in (old, new)]  # fmt: skip
    # by kind of boxes: those that one report lacks are reported below
    nms = [report["protocol"].get("oks_nms", {}) for report in (old, new)]
    both = nms[0].keys() & nms[1].keys()
    for side, values in zip(sides, nms, strict=True):
        side["oks_nms"] = {source: values[source] for source in sorted(both)}
    text = ", ".join(f"{k} {sides[0][k]!r} → {sides[1][k]!r}" for k in sides[0]
                     if sides[0][k] != sides[1][k])  # fmt: skip
    if text:
        raise InputError(f"{bounds.baseline} was taken under another protocol ({text})")
    before = {(e["model"], e["boxes"]): e for e in old["models"]}
    same_cpu = old["environment"].get("cpu") == new["environment"].get("cpu")
    broken = []
    for entry in entries:
        past = before.get((entry["model"], entry["boxes"]))
        where = f"{entry['model']} (boxes: {entry['boxes']})"
        if past is None:
            broken.append(f"{where}: is not in the baseline {bounds.baseline}")
            continue
        was, now = past["accuracy"].get("AP"), entry["accuracy"].get("AP")
        if was is not None and (now is None or now < was - bounds.ap_loss):
            text = "undefined" if now is None else f"{now:.3f}"
            broken.append(f"{where}: AP fell from {was:.3f} to {text}")
        was, now = (e["latency_ms"].get("total", {}).get("p50") for e in (past, entry))
        alike = same_cpu and past.get("provider") == entry.get("provider")
        if alike and was and now and now > was * bounds.slowdown:
            broken.append(f"{where}: a photo takes {now:.1f} ms, it took {was:.1f}")
    return broken


def read_report(path: Path) -> dict[str, Any]:
    """A report of an earlier run. Raises InputError on anything else."""
    try:
        record = json.loads(path.read_bytes())
        if record["schema"] != 1 or not isinstance(record["models"], list):
            raise ValueError(f"schema {record['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no report of cfpose-bench ({error!r})") from error
    return dict(record)
