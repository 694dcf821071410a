"""What a finished pose model's spec says of held-out people: confidence, covariance, figures."""

from __future__ import annotations

import dataclasses

import numpy as np

from cfpose_bench.reliability import squared_sigmas
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
    network: RefinedPoseNet, spec: ModelSpec, dev: DevelopmentSet | None, *, worse_views: int = 0
) -> ModelSpec:
    """The spec with confidence and covariance fitted, and figures measured, on held-out photos.

    With `worse_views`, the fit sees everybody as often in a worse picture as in the photo itself.
    The figures are those of the photos.
    """
    if dev is None:
        return spec
    predictions, coarse = dev.predict(network), dev.predict(network.pose)
    worse = [dev.predict(network, worse=seed) for seed in range(worse_views)]
    views = [predictions] * max(1, worse_views) + worse
    judged = [good_joints(view, dev.people, spec.skeleton.oks_sigmas) for view in views]
    calibration = fit_calibration(*(np.concatenate(parts) for parts in zip(*judged, strict=True)))
    labelled = dev.people.joints[..., 2] > 0
    truth = dev.people.joints[..., :2][labelled]
    joints = [
        (view.xy[labelled], view.covariance[labelled], calibrate(score, calibration), truth)
        for view, (score, _) in zip(views, judged, strict=True)
        if view.covariance is not None
    ]
    scale, power = fit_covariance(*(np.concatenate(parts) for parts in zip(*joints, strict=True)))
    scale = round(scale, 4)
    (xy, raw, confidence, _), (score, good) = joints[0], judged[0]
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
