"""The comparator: how far keypoints, confidences and covariances of two models differ.

`JointDifferences` holds the figures; every report of a proof takes its own from there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from cfpose_export.graph.rules import LOGITS, with_outputs
from cfpose_export.proof.crops import Crops, ProofSet
from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.oks import mean_oks, oks_at
from cfpose_sdk.spec import ModelSpec

MAX_SPREAD = 0.05  # float32: OpenVINO's are 0.0001 apart, and keypoints may move by 0.05 px


def allowed_spread(max_px: float) -> float:
    """The bound of `spread_gap` where keypoints may move by `max_px`: their moments move along."""
    return max(MAX_SPREAD, max_px)


def spread_gap(expected: NDArray[np.floating], got: NDArray[np.floating]) -> NDArray[np.float64]:
    """Per joint the largest difference of two covariances (..., 2, 2), shape (...).

    An entry's difference counts over the product of the expected standard deviations of its axes,
    so twice the relative error of a standard deviation. Infinite where an entry of either is not
    finite, or a variance is not positive.
    """
    right, other = expected.astype(np.float64), got.astype(np.float64)
    axes = np.arange(2)
    variance, second = right[..., axes, axes], other[..., axes, axes]
    sound = np.isfinite(right).all(axis=(-2, -1)) & np.isfinite(other).all(axis=(-2, -1))
    sound = np.asarray(sound & ((variance > 0) & (second > 0)).all(axis=-1))
    deviation = np.sqrt(np.where(sound[..., None], variance, 1.0))
    scale = deviation[..., :, None] * deviation[..., None, :]
    difference = np.abs(np.where(sound[..., None, None], other - right, 0.0)) / scale
    return np.where(sound, difference.max(axis=(-2, -1)), np.inf)


def spread_problem(
    largest: float | None, allowed: float, median: float | None = None
) -> str | None:
    """Why the largest `spread_gap` of the compared joints breaks its bound; None: it keeps to it.

    With `median` that is what must keep to `allowed`, and the largest has to be finite alone: where
    a low precision chooses the other of two peaks, a joint's covariance is another one.
    """
    if largest is None:
        return None
    if not math.isfinite(largest):
        return "a covariance is not finite, or has a variance that is not positive"
    gap, which = (largest, "") if median is None else (median, " (median)")
    if gap <= allowed:
        return None
    return f"covariances differ by {gap:.3g} of their deviations{which}, allowed {allowed:g}"


Values = Mapping[str, NDArray[Any]]  # outputs of a pose graph, by name
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class JointDifferences:
    """Differences of the compared joints of N crops (or people), and the figures of the reports.

    Figures are NaN when there are none to compare, and where a difference is NaN.
    """

    crops: int  # N, whether a joint of theirs is compared or not
    px: Floats  # (J,) distances of keypoints
    confidence: Floats  # (J,)
    spread: Floats | None = None  # (J,) as of `spread_gap`; None: one of the two has no covariance
    # Of a percentile between two values: "linear" interpolates; "higher", for the gate of lower
    # precisions, takes the larger one, which is not NaN where that is infinite
    percentile: Literal["linear", "higher"] = "linear"

    @property
    def joints(self) -> int:
        """How many are compared."""
        return len(self.px)

    @property
    def mean_px(self) -> float:
        """Mean distance."""
        return _statistic(np.mean, self.px)

    @property
    def p99_px(self) -> float:
        """99th percentile of the distances."""
        return self._p99(self.px)

    @property
    def max_px(self) -> float:
        """Largest distance."""
        return _statistic(np.max, self.px)

    @property
    def confidence_p99(self) -> float:
        """99th percentile of the differences in confidence."""
        return self._p99(self.confidence)

    @property
    def confidence_max(self) -> float:
        """Largest difference in confidence."""
        return _statistic(np.max, self.confidence)

    @property
    def spread_max(self) -> float | None:
        """Largest difference of two covariances; None without covariances."""
        return None if self.spread is None else _statistic(np.max, self.spread)

    @property
    def spread_median(self) -> float | None:
        """Median difference of two covariances; None without covariances."""
        return None if self.spread is None else _statistic(np.median, self.spread)

    def _p99(self, values: Floats) -> float:
        return _statistic(lambda v: np.quantile(v, 0.99, method=self.percentile), values)


def compare_joints(
    expected: Values,
    got: Values,
    compared: NDArray[np.bool_],
    *,
    percentile: Literal["linear", "higher"] = "linear",
    nan_is_far: bool = False,
) -> JointDifferences:
    """The joints of (N, K) `compared`, from the outputs of two models in the same pixels.

    `nan_is_far`: a distance or confidence that is NaN counts as infinitely far.
    """
    px = keypoint_distances(expected, got)
    confidence = np.abs(got["confidence"] - expected["confidence"])
    if nan_is_far:
        px, confidence = nan_as_infinite(px), nan_as_infinite(confidence)
    spread = None
    if "covariance" in expected and "covariance" in got:
        spread = spread_gap(expected["covariance"], got["covariance"])[compared]
    return JointDifferences(len(px), px[compared], confidence[compared], spread, percentile)


def joined(runs: Sequence[Values], names: Collection[str] | None = None) -> Values:
    """The outputs of several runs as one; of `names` those that the runs have, None: all."""
    wanted = runs[0] if names is None else [name for name in names if name in runs[0]]
    return {name: np.concatenate([run[name] for run in runs]) for name in wanted}


def keypoint_distances(expected: Values, got: Values) -> Floats:
    """(N, K) distances of the keypoints, in their pixels."""
    return np.asarray(np.linalg.norm(got["keypoints"] - expected["keypoints"], axis=2))


def nan_as_infinite(values: Floats) -> NDArray[np.float64]:
    """NaN counts as infinitely far."""
    return np.where(np.isnan(values), np.inf, values).astype(np.float64)


def _statistic(statistic: Callable[[Floats], Any], values: Floats) -> float:
    return float(statistic(values)) if values.size else math.nan


MAX_PX = 0.05  # how far any joint of a float32 model may move, in crop pixels
MIN_CONFIDENCE = 0.3  # joints below are not compared
BATCH = 16


@dataclass(frozen=True)
class Bounds:
    """What a proof must keep to."""

    max_px: float = MAX_PX  # keypoint drift of any compared joint
    max_logit: float = 1e-3  # logit difference; judged for argmax, where pixels jump
    max_logit_share: float = 5e-4  # or so much of the largest logit, where that is more
    max_confidence: float = 1e-3  # confidence difference of any compared joint
    min_confidence: float = MIN_CONFIDENCE  # joints below are not compared

    @property
    def max_spread(self) -> float:
        """Covariance difference of any compared joint, as of `spread_gap`."""
        return allowed_spread(self.max_px)


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


def compare_runtimes(
    reference: Backend, candidate: Backend, crops: Crops, min_confidence: float
) -> Agreement:
    """Run both on (N, H, W, 3) crops in batches of 0, 1, and then as large as both take."""
    size = min(BATCH, reference.max_batch or BATCH, candidate.max_batch or BATCH)
    parts = [crops[:0], crops[:1], *(crops[n : n + size] for n in range(1, len(crops), size))]
    ours, theirs = ([b.run({"crops": part}) for part in parts] for b in (reference, candidate))
    return agreement_of(reference, candidate, joined(ours), joined(theirs), min_confidence)


def agreement_of(
    reference: Backend, candidate: Backend, expected: Values, got: Values, min_confidence: float
) -> Agreement:
    """How far `candidate` lies from `reference`, by what both said of the same people.

    Lengths of `expected` and `got` are crop pixels; joints below `min_confidence` are left out.
    """
    joints = compare_joints(expected, got, expected["confidence"] >= min_confidence)
    return Agreement(
        reference=reference.provider,
        candidate=candidate.provider,
        crops=joints.crops,
        joints=joints.joints,
        mean_px=joints.mean_px,
        p99_px=joints.p99_px,
        max_px=joints.max_px,
        confidence_max=joints.confidence_max,
        spread_max=joints.spread_max if joints.joints else None,
        spread_median=joints.spread_median if joints.joints else None,
    )


def judge_agreement(agreement: Agreement, bound: Bound) -> None:
    """Raise ExportError unless joints were compared and keep to the bound; NaN does not."""
    if agreement.joints == 0:
        raise ExportError(
            f"no joint of {agreement.crops} crops is confident enough to be compared; give photos "
            f"of people (--photos), or for an untrained network --min-confidence 0"
        )
    px = getattr(agreement, bound.figure)
    if not px <= bound.px:
        raise ExportError(
            f"{_pair(agreement)}: keypoints differ by "
            f"{px:.3g} px ({bound.figure}), allowed {bound.px:g}"
        )
    allowed, median = allowed_spread(bound.px), None
    if bound.spread_median is not None:
        allowed, median = bound.spread_median, agreement.spread_median
    if problem := spread_problem(agreement.spread_max, allowed, median):
        raise ExportError(f"{_pair(agreement)}: {problem}")


def _pair(agreement: Agreement) -> str:
    """What was compared, in words that hold where one runtime ran both."""
    if agreement.candidate == agreement.reference:
        return f"the file is not its reference (both on {agreement.candidate})"
    return f"{agreement.candidate} is not {agreement.reference}"


@dataclass(frozen=True)
class Figures:
    """Drift over the joints whose float32 confidence reaches a bound. Pixels are crop pixels.

    OKS is that of the two poses of a crop, over those joints, with the person's box as area.
    """

    how: str  # what computed it
    crops: int
    joints: int  # compared
    mean_px: float
    p99_px: float
    max_px: float
    oks_mean: float
    oks_min: float
    confidence_p99: float  # difference
    confidence_max: float
    logit_max: float  # difference, of any joint
    nonfinite: int  # NaN and infinite numbers among the outputs and logits
    bin_flips: int  # coordinates that argmax puts into another bin; 0 for other decoders
    spread_max: float | None = None  # covariances, as of `spread_gap`; None: a graph has none
    spread_median: float | None = None


def run_graph(model: onnx.ModelProto, crops: Crops, names: Sequence[str] = ()) -> Values:
    """Outputs of a graph in onnxruntime on the CPU, and the float32 values called `names`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(with_outputs(model, names), path)
        with open_backend(path, device="cpu") as backend:
            starts = range(0, max(1, len(crops)), BATCH)
            parts = [backend.run({"crops": crops[i : i + BATCH]}) for i in starts]
    return joined(parts)


def compare_graphs(
    how: str, expected: Values, got: Values, proof: ProofSet, spec: ModelSpec, floor: float
) -> Figures:
    """Figures of `got` against `expected`, both with POSE_OUTPUTS; `floor`: confidence.

    Both hold LOGITS as well, where the graph has them: an adopted one does not.

    Values that are not finite are counted, and make the pixel figures infinite.
    """
    if len(expected["keypoints"]) != len(proof.crops) or len(got["keypoints"]) != len(proof.crops):
        raise InputError(
            f"{len(proof.crops)} crops, but {len(expected['keypoints'])} expected and "
            f"{len(got['keypoints'])} given poses"
        )
    compared = expected["confidence"] >= floor
    joints = compare_joints(expected, got, compared, percentile="higher", nan_is_far=True)
    distance = nan_as_infinite(keypoint_distances(expected, got))
    oks = _oks(distance, compared, proof.areas, spec.skeleton.oks_sigmas)
    flips = 0
    if spec.decode == "argmax":
        moved = nan_as_infinite(np.abs(got["coarse"] - expected["coarse"])) * spec.split_ratio
        flips = int((moved > 0.5).sum())
    return Figures(
        how=how,
        crops=joints.crops,
        joints=joints.joints,
        mean_px=joints.mean_px,
        p99_px=joints.p99_px,
        max_px=joints.max_px,
        oks_mean=_statistic(np.mean, oks),
        oks_min=_statistic(np.min, oks),
        confidence_p99=joints.confidence_p99,
        confidence_max=joints.confidence_max,
        logit_max=max(
            (
                float(nan_as_infinite(np.abs(got[n] - expected[n])).max())
                for n in LOGITS
                if n in expected
            ),
            default=0.0,
        ),
        nonfinite=sum(int((~np.isfinite(got[n])).sum()) for n in expected),
        bin_flips=flips,
        spread_max=joints.spread_max,
        spread_median=joints.spread_median,
    )


def _oks(
    distance: NDArray[np.float64],
    compared: NDArray[np.bool_],
    areas: NDArray[np.float64],
    sigmas: Sequence[float],
) -> NDArray[np.float64]:
    """(M,) OKS of the crops with a compared joint."""
    return mean_oks(oks_at(distance**2, areas, sigmas), compared)[compared.any(axis=1)]
