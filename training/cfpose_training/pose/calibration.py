"""Fit a finished model's confidence and covariance on held-out people, and measure its figures.

Confidence is the probability that a joint lies within its OKS-good distance: a per-joint OKS of at
least 0.5, which is d ≤ 2σ · sqrt(2 ln 2 · area), with COCO's σ and the annotated area.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.accuracy.fits import fit_confidence, fit_spread
from cfpose_bench.accuracy.reliability import squared_sigmas
from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import TrainingError
from cfpose_sdk.keypoints import calibrate, widen
from cfpose_sdk.oks import good_distance
from cfpose_sdk.spec import ModelSpec
from cfpose_training.data.people import People
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions

BINS = 15  # of the calibration error


def good_joints(
    predictions: Predictions, people: People, oks_sigmas: tuple[float, ...]
) -> tuple[Float64, NDArray[np.bool_]]:
    """Raw scores (M,) of all labelled joints, and whether each lies within its good distance."""
    distance = np.linalg.norm(predictions.xy - people.joints[:, :, :2], axis=-1)
    reach = good_distance(people.areas, oks_sigmas)
    labelled = people.joints[:, :, 2] > 0
    return predictions.score[labelled], (distance <= reach)[labelled]


def fit_calibration(score: Float64, good: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, intercept), as of `fit_confidence`. Raises TrainingError without scores."""
    if not len(score):
        raise TrainingError("there are no labelled development joints to fit the confidence on")
    return fit_confidence(score, good)


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
    return fit_spread(xy - truth, covariance, confidence)


def measured_spec(
    network: PoseNet | RefinedPoseNet, spec: ModelSpec, dev: DevelopmentSet | None
) -> ModelSpec:
    """The spec with confidence and covariance fitted, and figures measured, on held-out photos."""
    if dev is None:
        return spec
    predictions = dev.predict(network)
    score, good = good_joints(predictions, dev.people, spec.skeleton.oks_sigmas)
    calibration = fit_calibration(score, good)
    labelled = dev.people.joints[..., 2] > 0
    assert predictions.covariance is not None
    xy, truth = predictions.xy[labelled], dev.people.joints[..., :2][labelled]
    confidence, raw = calibrate(score, calibration), predictions.covariance[labelled]
    scale, power = fit_covariance(xy, raw, confidence, truth)
    scale = round(scale, 4)
    sigmas = np.sqrt(squared_sigmas(xy, scale * widen(raw, confidence, power), truth))
    metrics = {"dev_AP": dev.accuracy(predictions).AP}
    if isinstance(network, RefinedPoseNet):
        metrics["dev_AP_coarse"] = dev.accuracy(dev.predict(network.pose)).AP
    metrics |= {
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
