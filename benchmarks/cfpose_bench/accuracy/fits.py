"""Raw joint scores → confidence, raw covariances → honest ones: fits on annotated joints.

Confidence is the probability that a joint lies within its OKS-good distance (see `reliability`).
Of a Gaussian's errors, 39.3 % lie within 1 sigma and 86.5 % within 2; a covariance is scaled until
the shares of the joints come nearest to that. Shares, not a mean: joints that were taken for
another's are outliers of no Gaussian.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.accuracy.reliability import squared_sigmas
from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.keypoints import widen

SHARES = ((1, 1 - math.exp(-0.5)), (2, 1 - math.exp(-2.0)))  # sigmas → share within
_STEPS = 50  # of Newton's method
_RIDGE = 1e-3  # keeps the fit finite when the scores separate good from bad perfectly
_POWERS = tuple(step / 20 for step in range(21))


def fit_confidence(score: Float64, good: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, intercept) of the logistic regression of `good` (M,) on logit(score) (M,).

    Raises DatasetError without scores.
    """
    if not len(score):
        raise DatasetError("there are no labelled joints to fit the confidence on")
    clipped = np.clip(score, 1e-6, 1 - 1e-6)
    inputs = np.stack([np.log(clipped) - np.log1p(-clipped), np.ones_like(clipped)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (chance - good) + _RIDGE * weights
        curvature = inputs.T @ (inputs * (chance * (1 - chance))[:, None]) + _RIDGE * np.eye(2)
        # a full step may overshoot far from the optimum
        weights -= np.clip(np.linalg.solve(curvature, gradient), -1, 1)
    return float(weights[0]), float(weights[1])


def fit_spread(error: Float64, covariance: Float64, confidence: Float64) -> tuple[float, float]:
    """(scale, odds_power) for errors (M, 2) and raw covariances (M, 2, 2) of one unit.

    The spec's `covariance_scale` and `covariance_odds_power`: of the powers 0 to 1 the one whose
    best scale leaves the smaller gap. Raises DatasetError without joints.
    """
    if not len(error):
        raise DatasetError("there are no labelled joints to fit the covariance on")
    fits = []
    for power in _POWERS:
        wider = widen(covariance, confidence, power)
        scale, gap = fit_scale(squared_sigmas(error, wider, np.zeros_like(error)))
        fits.append((gap, power, scale))
    _, power, scale = min(fits)
    return scale, power


def fit_scale(squared: Float64) -> tuple[float, float]:
    """The best factor on covariances whose squared distances are (M,), and its larger gap.

    The gaps are those of the shares within 1 and 2 sigma to a Gaussian's, from 0 to 1.
    """
    squared = np.sort(squared)
    edges = squared[squared > 0]
    if not len(edges):
        return 1.0, 0.0  # every joint is where it should be: any factor covers them
    scales = np.concatenate([edges, edges / 4])  # where a share changes
    within = [
        np.searchsorted(squared, n**2 * scales, side="right") / len(squared) for n, _ in SHARES
    ]
    gaps = [np.abs(found - share) for found, (_, share) in zip(within, SHARES, strict=True)]
    worst = np.maximum(*gaps)
    best = int(np.argmin(worst))
    return float(scales[best]), float(worst[best])
