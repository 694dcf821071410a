"""Fit a finished model's confidence and covariance on held-out people, and measure its figures.

Confidence is the probability that a joint lies within its OKS-good distance: a per-joint OKS of at
least 0.5, which is d ≤ 2σ · sqrt(2 ln 2 · area), with COCO's σ and the annotated area.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.accuracy.reliability import squared_sigmas
from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import TrainingError
from cfpose_sdk.keypoints import calibrate, widen
from cfpose_sdk.oks import good_distance
from cfpose_sdk.spec import ModelSpec
from cfpose_training.data.people import People
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions

NEWTON_STEPS = 50
RIDGE = 1e-3  # keeps the fit finite when the scores separate good from bad perfectly
BINS = 15  # of the calibration error
SIGMA_SHARE = 1 - math.exp(-0.5)  # 39.3 %: of a two-dimensional Gaussian within 1 sigma
TWO_SIGMA_SHARE = 1 - math.exp(-2.0)  # 86.5 %: within 2
ODDS_POWERS = tuple(step / 20 for step in range(21))  # that are tried


def good_joints(
    predictions: Predictions, people: People, oks_sigmas: tuple[float, ...]
) -> tuple[Float64, NDArray[np.bool_]]:
    """Raw scores (M,) of all labelled joints, and whether each lies within its good distance."""
    distance = np.linalg.norm(predictions.xy - people.joints[:, :, :2], axis=-1)
    reach = good_distance(people.areas, oks_sigmas)
    labelled = people.joints[:, :, 2] > 0
    return predictions.score[labelled], (distance <= reach)[labelled]


def fit_calibration(score: Float64, good: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, intercept) of the logistic regression of `good` on logit(score), by Newton's method.

    Raises TrainingError without scores.
    """
    if not len(score):
        raise TrainingError("there are no labelled development joints to fit the confidence on")
    clipped = np.clip(score, 1e-6, 1 - 1e-6)
    inputs = np.stack([np.log(clipped) - np.log1p(-clipped), np.ones_like(clipped)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (probability - good) + RIDGE * weights
        curvature = inputs.T @ (inputs * (probability * (1 - probability))[:, None])
        step = np.linalg.solve(curvature + RIDGE * np.eye(2), gradient)
        weights -= np.clip(step, -1, 1)  # a full step may overshoot far from the optimum
    return float(weights[0]), float(weights[1])


def calibration_error(
    score: Float64, good: NDArray[np.bool_], calibration: tuple[float, float]
) -> float:
    """Expected calibration error: mean |confidence − share of good joints| over equal bins."""
    confidence = calibrate(score, calibration)
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[index == b].sum() - good[index == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / max(1, len(score)))


def fit_covariance(
    xy: Float64, covariance: Float64, confidence: Float64, truth: Float64
) -> tuple[float, float]:
    """(scale, odds_power) of the covariances whose shares of joints within 1 and 2 sigma err least.

    xy and truth (M, 2), covariance (M, 2, 2) as the bins give it, all in one unit of pixels, and
    confidence (M,). The larger of the two gaps to a Gaussian's shares is made as small as it can
    be. Shares, not a mean: joints that were taken for another's are outliers of no Gaussian. Raises
    TrainingError without joints.
    """
    if not len(xy):
        raise TrainingError("there are no labelled development joints to fit the covariance on")
    fits = []
    for power in ODDS_POWERS:
        scale, gap = fit_scale(squared_sigmas(xy, widen(covariance, confidence, power), truth))
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
    gaps = [
        np.abs(np.searchsorted(squared, sigmas**2 * scales, side="right") / len(squared) - share)
        for sigmas, share in ((1, SIGMA_SHARE), (2, TWO_SIGMA_SHARE))
    ]
    worst = np.maximum(*gaps)
    best = int(np.argmin(worst))
    return float(scales[best]), float(worst[best])


def measured_spec(
    network: RefinedPoseNet, spec: ModelSpec, dev: DevelopmentSet | None
) -> ModelSpec:
    """The spec with confidence and covariance fitted, and figures measured, on held-out photos."""
    if dev is None:
        return spec
    predictions, coarse = dev.predict(network), dev.predict(network.pose)
    score, good = good_joints(predictions, dev.people, spec.skeleton.oks_sigmas)
    calibration = fit_calibration(score, good)
    labelled = dev.people.joints[..., 2] > 0
    assert predictions.covariance is not None
    xy, truth = predictions.xy[labelled], dev.people.joints[..., :2][labelled]
    confidence, raw = calibrate(score, calibration), predictions.covariance[labelled]
    scale, power = fit_covariance(xy, raw, confidence, truth)
    scale = round(scale, 4)
    sigmas = np.sqrt(squared_sigmas(xy, scale * widen(raw, confidence, power), truth))
    metrics = {
        "dev_AP": dev.accuracy(predictions).AP,
        "dev_AP_coarse": dev.accuracy(coarse).AP,
        "dev_people": float(len(dev.people)),
        "dev_ECE": calibration_error(score, good, calibration),
        "dev_within_1_sigma": float((sigmas <= 1).mean()),
        "dev_within_2_sigma": float((sigmas <= 2).mean()),
    }
    rounded = {name: round(value, 4) for name, value in metrics.items()}
    return dataclasses.replace(
        spec,
        calibration=calibration,
        covariance_scale=scale,
        covariance_odds_power=power,
        metrics=rounded,
    )
