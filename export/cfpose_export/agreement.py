"""Two runtimes on the same people: how far apart they put the joints."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    return Agreement(
        reference=reference.provider,
        candidate=candidate.provider,
        crops=len(crops),
        joints=int(compared.sum()),
        mean_px=float(far.mean()) if some else math.nan,
        p99_px=float(np.quantile(far, 0.99)) if some else math.nan,
        max_px=float(far.max()) if some else math.nan,
        confidence_max=float(gap.max()) if some else math.nan,
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
