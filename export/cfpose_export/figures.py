"""How far one graph is from another on the same crops, in pixels, OKS, confidence and logits."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from cfpose_export.graph import LOGITS, with_outputs
from cfpose_export.proof_crops import Crops, ProofSet
from cfpose_export.spread import spread_gap
from cfpose_sdk.backends import open_backend
from cfpose_sdk.errors import InputError
from cfpose_sdk.spec import ModelSpec

BATCH = 16
Values = Mapping[str, NDArray[np.float32]]


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
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(
    how: str, expected: Values, got: Values, proof: ProofSet, spec: ModelSpec, floor: float
) -> Figures:
    """Figures of `got` against `expected`, both with POSE_OUTPUTS and LOGITS; `floor`: confidence.

    Values that are not finite are counted, and make the pixel figures infinite.
    """
    if len(expected["keypoints"]) != len(proof.crops) or len(got["keypoints"]) != len(proof.crops):
        raise InputError(
            f"{len(proof.crops)} crops, but {len(expected['keypoints'])} expected and "
            f"{len(got['keypoints'])} given poses"
        )
    compared = expected["confidence"] >= floor
    distance = _finite(np.linalg.norm(got["keypoints"] - expected["keypoints"], axis=2))
    sure = _finite(np.abs(got["confidence"] - expected["confidence"]))[compared]
    near = distance[compared]
    oks = _oks(distance, compared, proof.areas, spec.skeleton.oks_sigmas)
    spread = None
    if "covariance" in expected and "covariance" in got:
        spread = spread_gap(expected["covariance"], got["covariance"])[compared]
    flips = 0
    if spec.decode == "argmax":
        moved = _finite(np.abs(got["coarse"] - expected["coarse"])) * spec.split_ratio
        flips = int((moved > 0.5).sum())
    return Figures(
        how=how,
        crops=len(distance),
        joints=int(compared.sum()),
        mean_px=_or_nan(np.mean, near),
        p99_px=_or_nan(lambda v: np.quantile(v, 0.99, method="higher"), near),
        max_px=_or_nan(np.max, near),
        oks_mean=_or_nan(np.mean, oks),
        oks_min=_or_nan(np.min, oks),
        confidence_p99=_or_nan(lambda v: np.quantile(v, 0.99, method="higher"), sure),
        confidence_max=_or_nan(np.max, sure),
        logit_max=max(float(_finite(np.abs(got[n] - expected[n])).max()) for n in LOGITS),
        nonfinite=sum(int((~np.isfinite(got[n])).sum()) for n in expected),
        bin_flips=flips,
        spread_max=None if spread is None else _or_nan(np.max, spread),
        spread_median=None if spread is None else _or_nan(np.median, spread),
    )


def _finite(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """NaN counts as infinitely far."""
    return np.where(np.isnan(values), np.inf, values).astype(np.float64)


def _oks(
    distance: NDArray[np.float64],
    compared: NDArray[np.bool_],
    areas: NDArray[np.float64],
    sigmas: Sequence[float],
) -> NDArray[np.float64]:
    """(M,) OKS of the crops with a compared joint; formula as in cfpose_bench.accuracy."""
    variance = (2 * np.asarray(sigmas)) ** 2
    similar = np.exp(-(distance**2) / (2 * variance * areas[:, None]))
    some = compared.any(axis=1)
    total = np.where(compared, similar, 0.0).sum(axis=1)[some]
    oks: NDArray[np.float64] = total / compared.sum(axis=1)[some]
    return oks


def _or_nan(statistic: object, values: NDArray[np.float64]) -> float:
    assert callable(statistic)
    return float(statistic(values)) if values.size else math.nan
