"""How far two graphs' covariances are apart, joint by joint."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
    right, found = expected.astype(np.float64), got.astype(np.float64)
    axes = np.arange(2)
    variance, other = right[..., axes, axes], found[..., axes, axes]
    sound = np.isfinite(right).all(axis=(-2, -1)) & np.isfinite(found).all(axis=(-2, -1))
    sound = np.asarray(sound & ((variance > 0) & (other > 0)).all(axis=-1))
    deviation = np.sqrt(np.where(sound[..., None], variance, 1.0))
    scale = deviation[..., :, None] * deviation[..., None, :]
    difference = np.abs(np.where(sound[..., None, None], found - right, 0.0)) / scale
    return np.where(sound, difference.max(axis=(-2, -1)), np.inf)


def spread_problem(
    largest: float | None, allowed: float, median: float | None = None
) -> str | None:
    """What is wrong with the largest `spread_gap` of the compared joints, in words; None: nothing.

    With `median` that is what must keep to `allowed`, and the largest has to be finite alone: where
    a low precision chooses the other of two peaks, a joint's covariance is another one.
    """
    if largest is None:
        return None
    if not math.isfinite(largest):
        return "a covariance is not finite, or has a variance that is not positive"
    found, which = (largest, "") if median is None else (median, " (median)")
    if found <= allowed:
        return None
    return f"covariances differ by {found:.3g} of their deviations{which}, allowed {allowed:g}"
