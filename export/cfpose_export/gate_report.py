"""What a lower precision must keep to, and what the gate says of a graph."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cfpose_export.culprits import Culprit
from cfpose_export.figures import Figures
from cfpose_export.spread import spread_problem

Precision = Literal["fp16", "bf16", "int8"]
AS_FILE = "the file, onnxruntime CPU"
ROUNDED = "every lowered value rounded, sums in float32"


@dataclass(frozen=True)
class Limits:
    """What a lower precision must keep to, over the joints of float32 confidence ≥ `floor`."""

    p99_px: float  # of the file, as onnxruntime computes it
    rounded_p99_px: float  # when every value is rounded; what a GPU does lies between the two
    oks_mean: float  # of the poses before and after, in the worse of the two
    confidence_p99: float  # likewise
    floor: float = 0.3
    spread_median: float = 0.3  # of the covariances, as of `spread_gap`


# fp16 may cost AP 0.001, the others 0.01. Those two move joints of which the model is unsure by
# many pixels, so that the OKS decides, and the pixel bound only stops what is broken.
LIMITS: Mapping[str, Limits] = {
    "fp16": Limits(
        p99_px=0.25, rounded_p99_px=1.5, oks_mean=0.998, confidence_p99=0.02, spread_median=0.02
    ),
    "bf16": Limits(p99_px=20.0, rounded_p99_px=20.0, oks_mean=0.98, confidence_p99=0.1),
    "int8": Limits(p99_px=20.0, rounded_p99_px=20.0, oks_mean=0.98, confidence_p99=0.1),
}


@dataclass(frozen=True)
class GateReport:
    """What the gate saw."""

    precision: str
    reference_sha256: str  # of the float32 graph
    limits: Limits
    kept: tuple[str, ...]  # modules that stay float32 beyond the default ones
    figures: tuple[Figures, ...]
    problems: tuple[str, ...]  # empty: it passed
    unfit: Mapping[str, str] = field(default_factory=dict)
    culprits: tuple[Culprit, ...] = ()  # worst first; looked for when it failed
    kinds: Mapping[str, int] = field(default_factory=dict)  # crops of each kind
    artifact_sha256: str = ""  # of the file that was written

    def to_json(self) -> str:
        """One JSON object; numbers that are not finite become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2, sort_keys=True) + "\n"

    def summary(self) -> dict[str, Any]:
        """For the artifact's metadata. Rounded, so that another machine writes the same."""
        worst = max(self.figures, key=lambda f: f.p99_px)
        return {
            "reference_sha256": self.reference_sha256,
            "runtime": "onnxruntime CPU",
            "crops": worst.crops,
            "min_confidence": self.limits.floor,
            "p99_px": {f.how: _up(f.p99_px, 2) for f in self.figures},
            "min_mean_oks": _down(min(f.oks_mean for f in self.figures), 3),
            "kept": list(self.kept),
        }


def report_path(path: Path) -> Path:
    """Where the gate's report of an artifact lies: `x.onnx` → `x.gate.json`."""
    return path.with_suffix(".gate.json")


def failure(report: GateReport, *, auto_keep: bool = False) -> str:
    """What a failed report says to a person."""
    text = f"the {report.precision} graph is not the model: " + "; ".join(report.problems)
    if report.culprits:
        text += ". Most of it comes from " + ", ".join(map(str, report.culprits[:3]))
        if not auto_keep:
            text += ". Keep them in float32 with --keep MODULE, or let --auto-keep choose"
    if auto_keep and report.kept:
        text += f". Kept already: {', '.join(report.kept)}"
    return text


def problems_of(figures: Figures, limits: Limits) -> Sequence[str]:
    """Which limits the figures break, in words."""
    if figures.joints == 0:
        return [
            f"no joint of {figures.crops} crops reaches confidence {limits.floor}, so the "
            f"comparison says nothing; give photos of people (--photos)"
        ]
    found = []
    allowed = limits.p99_px if figures.how == AS_FILE else limits.rounded_p99_px
    if figures.nonfinite:
        found.append(f"{figures.nonfinite} numbers are not finite")
    if not figures.p99_px <= allowed:  # NaN fails too
        found.append(f"keypoints drift by {figures.p99_px:.3g} px (p99), allowed {allowed:g}")
    if not figures.oks_mean >= limits.oks_mean:
        found.append(f"mean OKS is {figures.oks_mean:.4f}, expected {limits.oks_mean:g} or more")
    if not figures.confidence_p99 <= limits.confidence_p99:
        found.append(
            f"confidences differ by {figures.confidence_p99:.3g} (p99), "
            f"allowed {limits.confidence_p99:g}"
        )
    spread = spread_problem(figures.spread_max, limits.spread_median, figures.spread_median)
    if spread is not None:
        found.append(spread)
    return [f"{problem} ({figures.how})" for problem in found]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _up(value: float, digits: int) -> float:
    return float(math.ceil(value * 10**digits)) / 10.0**digits


def _down(value: float, digits: int) -> float:
    return float(math.floor(value * 10**digits)) / 10.0**digits
