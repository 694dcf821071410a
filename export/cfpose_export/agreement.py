"""Two runtimes on the same people: how far apart they put the joints."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cfpose_export.spread import allowed_spread, spread_gap, spread_problem
from cfpose_sdk.backends import Backend
from cfpose_sdk.errors import ExportError

MAX_PX = 0.05  # how far any joint of a float32 model may move, in crop pixels
MIN_CONFIDENCE = 0.3  # joints below are not compared
BATCH = 16
Crops = NDArray[np.uint8]


@dataclass(frozen=True)
class Bound:
    """What an Agreement must keep to: the largest distance, or the 99th percentile."""

    figure: Literal["max_px", "p99_px"] = "max_px"
    px: float = MAX_PX
    spread_median: float | None = None  # of the covariances, instead of their largest difference


@dataclass(frozen=True)
class Agreement:
    """Distances in crop pixels over the joints whose reference confidence reached the bound."""

    reference: str  # providers
    candidate: str
    crops: int
    joints: int
    mean_px: float
    p99_px: float
    max_px: float
    confidence_max: float
    spread_max: float | None = None  # covariances, as of `spread_gap`; None: a model has none
    spread_median: float | None = None

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def compare(
    reference: Backend, candidate: Backend, crops: Crops, min_confidence: float
) -> Agreement:
    """Run both on (N, H, W, 3) crops in batches of 0, 1, and then as large as both take."""
    size = min(BATCH, reference.max_batch or BATCH, candidate.max_batch or BATCH)
    parts = [crops[:0], crops[:1], *(crops[n : n + size] for n in range(1, len(crops), size))]
    ours, theirs = ([b.run({"crops": part}) for part in parts] for b in (reference, candidate))

    def gather(outputs: list[dict[str, NDArray[np.float32]]], name: str) -> NDArray[np.float32]:
        return np.concatenate([output[name] for output in outputs])

    sure = gather(ours, "confidence")
    compared = sure >= min_confidence
    far = np.linalg.norm(gather(ours, "keypoints") - gather(theirs, "keypoints"), axis=2)[compared]
    gap = np.abs(sure - gather(theirs, "confidence"))[compared]
    some = far.size > 0
    spread = None
    if all("covariance" in outputs[0] for outputs in (ours, theirs)):
        spread = spread_gap(gather(ours, "covariance"), gather(theirs, "covariance"))[compared]
    return Agreement(
        reference=reference.provider,
        candidate=candidate.provider,
        crops=len(crops),
        joints=int(compared.sum()),
        mean_px=float(far.mean()) if some else math.nan,
        p99_px=float(np.quantile(far, 0.99)) if some else math.nan,
        max_px=float(far.max()) if some else math.nan,
        confidence_max=float(gap.max()) if some else math.nan,
        spread_max=None if spread is None or not some else float(spread.max()),
        spread_median=None if spread is None or not some else float(np.median(spread)),
    )


def judge_agreement(agreement: Agreement, bound: Bound) -> None:
    """Raise ExportError unless joints were compared and keep to the bound; NaN does not."""
    if agreement.joints == 0:
        raise ExportError(
            f"no joint of {agreement.crops} crops is confident enough to be compared; give photos "
            f"of people (--photos), or for an untrained network --min-confidence 0"
        )
    found = getattr(agreement, bound.figure)
    if not found <= bound.px:
        raise ExportError(
            f"{agreement.candidate} is not {agreement.reference}: keypoints differ by "
            f"{found:.3g} px ({bound.figure}), allowed {bound.px:g}"
        )
    allowed, median = allowed_spread(bound.px), None
    if bound.spread_median is not None:
        allowed, median = bound.spread_median, agreement.spread_median
    if problem := spread_problem(agreement.spread_max, allowed, median):
        raise ExportError(f"{agreement.candidate} is not {agreement.reference}: {problem}")
