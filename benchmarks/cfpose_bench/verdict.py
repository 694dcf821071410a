"""Whether a report passes: the bounds of a CI job, and a comparison with an older report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfpose_bench.report import Measured
from cfpose_sdk.errors import InputError

# what both reports must have been measured under, and what a report without the key means
SAME: Mapping[str, Any] = {
    "dataset": None,
    "images": None,
    "instances": None,
    "preset": None,
    "flip_test": False,
    "joint_threshold": None,
    "oks_nms_area": "box",
    "detector": None,
    "detector_threshold": None,
    "threads": None,
    "device": "auto",
    "isolation": "a process for each model",
}


@dataclass(frozen=True)
class Bounds:
    """What may not be crossed; None is no bound."""

    min_ap: float | None = None
    max_drift: float | None = None  # pixels, of the worst joint
    max_p99_ms: float | None = None  # of a whole photo
    baseline: Path | None = None
    ap_loss: float = 0.005  # against the baseline
    slowdown: float = 1.2  # of a photo's median time, on the baseline's CPU and provider


def reasons(record: Mapping[str, Any], rows: Sequence[Measured], bounds: Bounds) -> list[str]:
    """Why the run fails, a sentence each; empty when it passes.

    Peers and the reference are only compared with. Raises InputError when the baseline is no report
    or was taken under another protocol.
    """
    judged = [(row, row.to_dict()) for row in rows if not row.is_peer and not row.reference]
    found = []
    for row, entry in judged:
        where = f"{row.model} (boxes: {row.boxes})"
        ap, away = entry["accuracy"].get("AP"), entry.get("drift", {}).get("max_px")
        if bounds.min_ap is not None and (ap is None or ap < bounds.min_ap):
            said = "is undefined, wanted" if ap is None else f"{ap:.3f} is below"
            found.append(f"{where}: AP {said} {bounds.min_ap}")
        if bounds.max_drift is not None and (away is None or away > bounds.max_drift):
            said = "was not measured" if away is None else f"of a joint is {away:.3g} px, above"
            found.append(f"{where}: drift {said} {bounds.max_drift}")
        p99 = entry["latency_ms"].get("total", {}).get("p99")
        if bounds.max_p99_ms is not None and (p99 is None or p99 > bounds.max_p99_ms):
            said = "was not measured" if p99 is None else f"{p99:.1f} ms is above"
            found.append(f"{where}: p99 of a photo {said} {bounds.max_p99_ms}")
    if bounds.baseline is not None:
        found += _against(_read(bounds.baseline), record, [e for _, e in judged], bounds)
    return found


def _against(
    old: Mapping[str, Any], new: Mapping[str, Any], entries: Sequence[Mapping[str, Any]],
    bounds: Bounds,
) -> list[str]:  # fmt: skip
    sides = [{k: report["protocol"].get(k, absent) for k, absent in SAME.items()}
             for report in (old, new)]  # fmt: skip
    # by kind of boxes: those that one report lacks are told of below
    nms = [report["protocol"].get("oks_nms", {}) for report in (old, new)]
    both = nms[0].keys() & nms[1].keys()
    for side, values in zip(sides, nms, strict=True):
        side["oks_nms"] = {source: values[source] for source in sorted(both)}
    told = ", ".join(f"{k} {sides[0][k]!r} → {sides[1][k]!r}" for k in sides[0]
                     if sides[0][k] != sides[1][k])  # fmt: skip
    if told:
        raise InputError(f"{bounds.baseline} was taken under another protocol ({told})")
    before = {(e["model"], e["boxes"]): e for e in old["models"]}
    same_cpu = old["environment"].get("cpu") == new["environment"].get("cpu")
    found = []
    for entry in entries:
        past = before.get((entry["model"], entry["boxes"]))
        where = f"{entry['model']} (boxes: {entry['boxes']})"
        if past is None:
            found.append(f"{where}: is not in the baseline {bounds.baseline}")
            continue
        was, now = past["accuracy"].get("AP"), entry["accuracy"].get("AP")
        if was is not None and (now is None or now < was - bounds.ap_loss):
            told = "undefined" if now is None else f"{now:.3f}"
            found.append(f"{where}: AP fell from {was:.3f} to {told}")
        was, now = (e["latency_ms"].get("total", {}).get("p50") for e in (past, entry))
        alike = same_cpu and past.get("provider") == entry.get("provider")
        if alike and was and now and now > was * bounds.slowdown:
            found.append(f"{where}: a photo takes {now:.1f} ms, it took {was:.1f}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
        if record["schema"] != 1 or not isinstance(record["models"], list):
            raise ValueError(f"schema {record['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no report of cfpose-bench ({error!r})") from error
    return dict(record)
