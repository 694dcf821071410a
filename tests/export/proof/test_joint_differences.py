"""The figures that every report of a proof takes from the one comparator."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cfpose_export.proof.compare import JointDifferences, Values, compare_joints, joined

COUNT, JOINTS = 5, 4
ALL = np.ones((COUNT, JOINTS), dtype=bool)


def poses(distance: np.ndarray, confidence: float = 0.5, variance: float = 1.0) -> Values:
    """Keypoints that far to the right of zero."""
    return {
        "keypoints": np.stack([distance, np.zeros_like(distance)], axis=-1),
        "confidence": np.full(distance.shape, confidence),
        "covariance": np.broadcast_to(variance * np.eye(2), (*distance.shape, 2, 2)),
    }


def test_figures_of_known_differences() -> None:
    distance = np.arange(COUNT * JOINTS, dtype=np.float64).reshape(COUNT, JOINTS)
    compared = distance >= 10
    zero = poses(np.zeros_like(distance))
    joints = compare_joints(zero, poses(distance, 0.75, 1.5), compared)
    assert (joints.crops, joints.joints) == (COUNT, 10)
    assert (joints.mean_px, joints.max_px) == (14.5, 19.0)
    assert joints.p99_px == pytest.approx(10 + 0.99 * 9)
    assert joints.confidence_max == joints.confidence_p99 == 0.25
    assert joints.spread_max == joints.spread_median == 0.5
    higher = compare_joints(zero, poses(distance), compared, percentile="higher")
    assert higher.p99_px == 19.0


def test_a_model_without_covariance() -> None:
    distance = np.ones((COUNT, JOINTS))
    bare = {name: value for name, value in poses(distance).items() if name != "covariance"}
    joints = compare_joints(bare, poses(distance), ALL)
    assert joints.spread_max is None
    assert joints.spread_median is None


def test_nothing_to_compare() -> None:
    zero = poses(np.zeros((COUNT, JOINTS)))
    joints = compare_joints(zero, zero, ~ALL)
    assert (joints.crops, joints.joints) == (COUNT, 0)
    figures = (joints.mean_px, joints.p99_px, joints.max_px, joints.confidence_max)
    assert all(math.isnan(figure) for figure in figures)


def test_nan_fails_every_bound() -> None:
    distance = np.zeros((COUNT, JOINTS))
    distance[0, 0] = math.nan
    zero = poses(np.zeros_like(distance))
    assert math.isnan(compare_joints(zero, poses(distance), ALL).max_px)
    far = compare_joints(zero, poses(distance), ALL, percentile="higher", nan_is_far=True)
    assert far.max_px == far.p99_px == math.inf


def test_runs_are_joined_by_name() -> None:
    runs = [{"a": np.zeros((n, 2)), "b": np.ones((n, 1))} for n in (0, 1, 3)]
    assert {name: len(value) for name, value in joined(runs).items()} == {"a": 4, "b": 4}
    assert set(joined(runs, ("b", "missing"))) == {"b"}


def test_boxes_are_compared_likewise() -> None:
    boxes = JointDifferences(2, np.array([0.5, 1.5]), np.array([0.1, 0.0]))
    assert (boxes.joints, boxes.max_px, boxes.confidence_max) == (2, 1.5, 0.1)
    assert boxes.spread_max is None
