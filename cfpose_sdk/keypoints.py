"""SimCC bin logits → keypoints in crop pixels: the numpy reference of the graph's decoder.

Bin i of an axis stands for the coordinate i / split_ratio, in crop pixels (Li et al., SimCC,
ECCV 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.spec import Decode

# The sub-bin decoder averages within this distance of the peak. Wide enough for the widest label
# in use (sigma 2 px), narrow enough to ignore a second mode.
SUBBIN_RADIUS_PX = 6.0
AREA_SHARE = 0.8  # of a person in the rectangle of its 17 joints: the median of held-out people
MIN_AREA_PX = 1.0
SUBBIN_STEPS = 5  # mean-shift steps from the argmax; for a 2 px wide peak the last moves < 0.002 px
WINDOW_STEPS = 4  # further ones with the wide windows; more of them gain no AP


def decode_simcc(
    x_logits: NDArray[np.floating],
    y_logits: NDArray[np.floating],
    split_ratio: float,
    decode: Decode = "subbin",
    windows: Sequence[float] = (),
) -> tuple[Float64, Float64]:
    """Decode (N, K, bins_x) and (N, K, bins_y) logits.

    Returns xy (N, K, 2) in crop pixels and the raw score (N, K) in [0, 1]. `argmax` scores by the
    larger of the two peak probabilities (SimCC's `validate_simdr`); `subbin` by the probability
    that falls near the peak on both axes.

    With `windows`, ModelSpec's (K,), the keypoint moves on from there to the centroid within a
    Gaussian window as wide as OKS forgives that joint of that person: to a maximum of the OKS that
    the bins let expect. A confident joint stays; where the bins are broad, or have a second peak
    within reach, the keypoint leaves the peak for the middle. The score stays the peak's.
    """
    x, x_score = _decode_axis(x_logits, split_ratio, decode)
    y, y_score = _decode_axis(y_logits, split_ratio, decode)
    score = np.maximum(x_score, y_score) if decode == "argmax" else x_score * y_score
    xy: Float64 = np.stack([x, y], axis=-1)
    if windows:
        widths = np.sqrt(person_area(xy))[:, None] * np.asarray(windows)
        axes = [
            _windowed_centroid(logits, xy[..., axis], widths, split_ratio)
            for axis, logits in enumerate((x_logits, y_logits))
        ]
        xy = np.stack(axes, axis=-1)
    return xy, score


def person_area(xy: NDArray[np.floating]) -> Float64:
    """(N,) px²: areas as COCO means them, from the rectangles around joints (N, K, 2)."""
    points = np.asarray(xy, dtype=np.float64)
    extent: Float64 = (points.max(axis=1) - points.min(axis=1)).prod(axis=-1)
    return np.maximum(AREA_SHARE * extent, MIN_AREA_PX)


def covariance(
    x_logits: NDArray[np.floating],
    y_logits: NDArray[np.floating],
    xy: NDArray[np.floating],
    split_ratio: float,
    scale: float = 1.0,
    *,
    temperature: float = 1.0,
    isotropy: float = 0.0,
) -> Float64:
    """(N, K, 2, 2) covariance in crop pixels² of keypoints xy (N, K, 2), from their bin logits.

    Per axis E[(bin − keypoint)²] under the softmax of the *whole* axis, about the reported
    (refined) keypoint, so that a refiner that disagrees with its distribution widens it; plus the
    variance of a uniform bin, 1 / (12 · split_ratio²), which keeps the matrix positive definite.
    The axes are classified independently, so the matrix is diagonal. `scale` is the spec's
    `covariance_scale`, `temperature` divides the logits, and `isotropy` draws the two variances to
    their geometric mean, which keeps the ellipse's area (the spec's `spread_temperature` and
    `spread_isotropy`). Below 1 a temperature leaves out far bins that hold little, which brings the
    shares of held-out joints within 1 and 2 sigma nearer to a Gaussian's; half an isotropy makes
    their truth likelier there (studies/results/covariance-dev.json).

    Why the whole axis: within the decoder's window the moment cannot grow beyond that window,
    however uncertain the network is, so no one scale fits certain and uncertain joints alike (both
    were measured: studies/results/covariance-dev.json).
    """
    moments = []
    for axis, logits in enumerate((x_logits, y_logits)):
        mass = _softmax(logits, temperature)
        centre = np.asarray(xy, dtype=np.float64)[..., axis, None]
        offset = np.arange(mass.shape[-1]) / split_ratio - centre
        moments.append((mass * offset**2).sum(axis=-1) + 1 / (12 * split_ratio**2))
    round_ = np.sqrt(moments[0] * moments[1]) ** isotropy
    matrices: Float64 = np.zeros((*moments[0].shape, 2, 2))
    matrices[..., 0, 0], matrices[..., 1, 1] = (m ** (1 - isotropy) * round_ for m in moments)
    return matrices * scale


def expected_oks(
    xy: NDArray[np.floating], covariance: NDArray[np.floating], oks_sigmas: Sequence[float]
) -> Float64:
    """(N, K) in [0, 1]: each joint's mean OKS if the truth is normal around xy, in crop pixels.

    E[exp(−d² / 2s²k²)] for a diagonal `covariance` (N, K, 2, 2) is
    1 / √((1 + σx² / s²k²)(1 + σy² / s²k²)), where k is twice the joint's OKS sigma (COCO). The
    person's area s² is estimated from its joints xy (N, K, 2). It tells good joints from bad ones
    better than the mass of the peak does, because it knows how far each may be off
    (training/results).
    """
    reach = person_area(xy)[:, None] * (2 * np.asarray(oks_sigmas)) ** 2
    spread = 1 + np.stack([covariance[..., 0, 0], covariance[..., 1, 1]]) / reach
    oks: Float64 = 1 / np.sqrt(spread.prod(axis=0))
    return oks


def widen(covariance: Float64, confidence: Float64, odds_power: float) -> Float64:
    """Covariances (N, K, 2, 2) divided by the odds of the confidence (N, K) to a power.

    A joint that was mistaken for another person's is far off. The moments of its bins do not show
    that; its confidence does, a little. `odds_power` is the spec's `covariance_odds_power`.
    """
    clipped = np.clip(confidence, 1e-6, 1 - 1e-6)
    factor = np.exp(-odds_power * (np.log(clipped) - np.log1p(-clipped)))
    wider: Float64 = covariance * factor[..., None, None]
    return wider


def calibrate(score: Float64, calibration: tuple[float, float]) -> Float64:
    """Raw score → confidence: sigmoid(slope * logit(score) + intercept) (Platt scaling)."""
    slope, intercept = calibration
    clipped = np.clip(score, 1e-6, 1 - 1e-6)
    logit = np.log(clipped) - np.log1p(-clipped)
    confidence: Float64 = 1 / (1 + np.exp(-(slope * logit + intercept)))
    return confidence


def raw_score(confidence: Float64, calibration: tuple[float, float]) -> Float64:
    """Confidence → raw score: the inverse of `calibrate`, whose slope must not be 0.

    Of float32 confidences it is good to about 1e-6 where they are below 0.9, and to 1e-3 near 1.
    """
    slope, intercept = calibration
    if (slope, intercept) == (1.0, 0.0):
        return np.asarray(confidence, dtype=np.float64)
    clipped = np.clip(np.asarray(confidence, dtype=np.float64), 1e-12, 1 - 1e-12)
    logit = (np.log(clipped) - np.log1p(-clipped) - intercept) / slope
    score: Float64 = 1 / (1 + np.exp(-logit))
    return score


def _decode_axis(
    logits: NDArray[np.floating], split_ratio: float, decode: Decode
) -> tuple[Float64, Float64]:
    """Coordinate in pixels and score of (N, K, bins) logits along one axis."""
    mass = _softmax(logits)
    bins = np.arange(mass.shape[-1], dtype=np.float64)
    # of the logits: softmax may round two unequal ones to one probability
    centre = np.asarray(logits).argmax(axis=-1).astype(np.float64)
    if decode == "argmax":
        return centre / split_ratio, mass.max(axis=-1)
    inside = mass
    for _ in range(SUBBIN_STEPS):
        # an Epanechnikov window: mean shift converges to the same point from neighbouring bins,
        # so a bin that wins by a rounding error does not move the result
        distance = (bins - centre[..., None]) / (SUBBIN_RADIUS_PX * split_ratio)
        inside = mass * np.maximum(0.0, 1.0 - distance**2)
        centre = (inside * bins).sum(axis=-1) / inside.sum(axis=-1)
    return centre / split_ratio, inside.sum(axis=-1)


def _windowed_centroid(
    logits: NDArray[np.floating], start: Float64, widths: Float64, split_ratio: float
) -> Float64:
    """Mean shift of (N, K) coordinates in pixels under Gaussian windows of (N, K) pixels."""
    mass = _softmax(logits)
    pixels = np.arange(mass.shape[-1]) / split_ratio
    widths = np.maximum(widths, 1 / split_ratio)[..., None]  # a narrower one sees no bin
    centre = start
    for _ in range(WINDOW_STEPS):
        inside = mass * np.exp(-0.5 * ((pixels - centre[..., None]) / widths) ** 2)
        centre = (inside * pixels).sum(axis=-1) / inside.sum(axis=-1)
    return centre


def _softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Float64:
    """Probabilities of (..., bins) logits along the last axis."""
    values = np.asarray(logits, dtype=np.float64) / temperature
    mass: Float64 = np.exp(values - values.max(axis=-1, keepdims=True))
    mass /= mass.sum(axis=-1, keepdims=True)
    return mass
