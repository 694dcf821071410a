"""Confidence that means what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cfpose_bench.accuracy.fits import SHARES
from cfpose_sdk.errors import TrainingError
from cfpose_sdk.keypoints import calibrate
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.data.people import People
from cfpose_training.pose.calibration import (
    calibration_error,
    fit_calibration,
    fit_covariance,
    good_joints,
)
from cfpose_training.pose.evaluation import Predictions


def test_the_fit_finds_the_curve_that_made_the_outcomes() -> None:
    rng = np.random.default_rng(0)
    score = rng.uniform(0.01, 0.99, 60_000)
    truth = (0.7, 1.2)
    good = rng.random(len(score)) < calibrate(score, truth)
    assert fit_calibration(score, good) == pytest.approx(truth, abs=0.04)
    assert calibration_error(score, good, truth) < 0.01
    assert calibration_error(score, good, (1.0, -2.0)) > 0.2


def test_perfectly_separated_scores_stay_finite() -> None:
    slope, intercept = fit_calibration(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]) > 0)
    assert slope > 1
    assert math.isfinite(slope)
    assert math.isfinite(intercept)


def test_nothing_to_fit_on_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no labelled development joints"):
        fit_calibration(np.zeros(0), np.zeros(0) > 0)


def test_good_means_a_joint_oks_of_one_half() -> None:
    joints = np.zeros((1, 17, 3))
    joints[0, :, 2] = 2
    joints[0, 16, 2] = 0  # unlabelled: not counted
    people = People((), (), np.zeros(1, int), np.zeros((1, 4)), joints, np.array([5000.0]),
                    np.ones(1), np.ones(1, int), np.ones((1, 17)))  # fmt: skip
    reach = [2 * s * math.sqrt(2 * math.log(2) * 5000) for s in COCO_17.oks_sigmas]
    xy = np.zeros((1, 17, 2))
    xy[0, :, 0] = [r * (0.999 if k % 2 else 1.001) for k, r in enumerate(reach)]
    predictions = Predictions(xy, np.linspace(0, 1, 17)[None])
    score, good = good_joints(predictions, people, COCO_17.oks_sigmas)
    assert score.tolist() == np.linspace(0, 1, 17)[:16].tolist()
    assert good.tolist() == [k % 2 == 1 for k in range(16)]


def test_the_covariance_scale_is_the_one_that_spread_the_joints() -> None:
    """Also when one joint in ten is off by far."""
    rng = np.random.default_rng(1)
    truth, factors = rng.uniform(0, 200, (40_000, 2)), rng.normal(0, 2, (40_000, 2, 2))
    covariance = factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(2)
    drawn = np.linalg.cholesky(2.5 * covariance) @ rng.standard_normal((40_000, 2, 1))
    xy = truth + drawn[..., 0]
    even = np.full(len(xy), 0.5)  # odds of 1: no power changes anything
    assert fit_covariance(xy, covariance, even, truth) == (pytest.approx(2.5, rel=0.03), 0)
    xy[::10] += 150
    scale, _ = fit_covariance(xy, covariance, even, truth)
    # nine joints in ten are Gaussian: 0.9 (1 - exp(-n^2 q)) within n, q = scale / (2 * 2.5)
    grid = np.linspace(2, 4, 2001)
    within = [0.9 * (1 - np.exp(-(n**2) * grid / 5)) for n in (1, 2)]
    gaps = np.maximum(abs(within[0] - SHARES[0][1]), abs(within[1] - SHARES[1][1]))
    assert scale == pytest.approx(grid[gaps.argmin()], rel=0.03)
    assert fit_covariance(truth, covariance, even, truth) == (1, 0)
    with pytest.raises(TrainingError, match="fit the covariance on"):
        fit_covariance(xy[:0], covariance[:0], even[:0], truth[:0])


def test_the_odds_power_is_the_one_that_spread_the_joints() -> None:
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.02, 0.98, 20_000)
    odds = confidence / (1 - confidence)
    xy = rng.standard_normal((20_000, 2)) * np.sqrt(3 * odds**-0.6)[:, None]
    flat = np.tile(np.eye(2), (20_000, 1, 1))
    scale, power = fit_covariance(xy, flat, confidence, np.zeros_like(xy))
    assert power == pytest.approx(0.6, abs=0.051)
    assert scale == pytest.approx(3, rel=0.05)
