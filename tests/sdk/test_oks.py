"""OKS, against its formula written out and COCO's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_sdk.oks import GOOD_OKS, good_distance, joint_oks, mean_oks, oks_at, oks_variance
from cfpose_sdk.skeleton import COCO_17


@given(
    distance=st.floats(0, 500),
    area=st.floats(1, 1e5),
    sigma=st.floats(0.02, 0.2),
    turn=st.floats(0, 6),
)
def test_a_joint_is_the_formula(distance: float, area: float, sigma: float, turn: float) -> None:
    here = np.array([[3.0, -4.0]])
    there = here + distance * np.array([math.cos(turn), math.sin(turn)])
    expected = math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2))
    assert joint_oks(here, there, area, [sigma])[0] == pytest.approx(expected, abs=1e-9)
    assert oks_at([distance**2], area, [sigma])[0] == pytest.approx(expected, abs=1e-9)


def test_poses_broadcast_against_each_other() -> None:
    rng = np.random.default_rng(3)
    poses, areas = rng.uniform(0, 200, (4, 17, 2)), rng.uniform(100, 9000, (4, 4))
    every = joint_oks(poses[:, None], poses[None], areas, COCO_17.oks_sigmas)
    assert every.shape == (4, 4, 17)
    one = joint_oks(poses[1], poses[2], areas[1, 2], COCO_17.oks_sigmas)
    np.testing.assert_allclose(every[1, 2], one)
    assert (every[range(4), range(4)] == 1).all()


def test_at_the_good_distance_a_joint_is_just_found() -> None:
    areas = np.array([50.0, 4000.0])
    distance = good_distance(areas, COCO_17.oks_sigmas)
    assert distance.shape == (2, 17)
    np.testing.assert_allclose(oks_at(distance**2, areas, COCO_17.oks_sigmas), GOOD_OKS)
    np.testing.assert_allclose(oks_variance(areas, [0.1])[:, 0], areas * 0.04)


def test_the_mean_is_over_the_joints_that_count() -> None:
    joints = np.array([[1.0, 0.5, np.nan], [0.2, 0.4, 0.6], [1.0, 1.0, 1.0]])
    counted = np.array([[True, True, False], [False, False, True], [False, False, False]])
    np.testing.assert_allclose(mean_oks(joints, counted), [0.75, 0.6, 0.0])
