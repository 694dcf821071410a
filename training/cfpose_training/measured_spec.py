"""What a finished pose model's spec says of held-out people: confidence, covariance, figures."""

from __future__ import annotations

import dataclasses

import numpy as np

from cfpose_bench.accuracy.reliability import squared_sigmas
from cfpose_sdk.keypoints import calibrate, widen
from cfpose_sdk.spec import ModelSpec
from cfpose_training.calibration import (
    calibration_error,
    fit_calibration,
    fit_covariance,
    good_joints,
)
from cfpose_training.evaluation import DevelopmentSet
from cfpose_training.nets.pose_net import RefinedPoseNet


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
