"""Pose scores against a loop written from the formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_bench.accuracy.oks import SIMCC_JOINT_THRESHOLD, pose_scores
from cfpose_sdk.errors import InputError


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.sampled_from([None, 0.01, 0.2, 0.9]))
def test_equals_the_loop(seed: int, people: int, threshold: float | None) -> None:
    rng = np.random.default_rng(seed)
    boxes, joints = rng.random(people), rng.random((people, 14)) ** 3
    expected = []
    for box, scores in zip(boxes, joints, strict=True):
        taken = [s for s in scores if threshold is None or s > threshold]
        expected.append(box * (sum(taken) / len(taken) if taken else 0.0))
    np.testing.assert_allclose(pose_scores(boxes, joints, threshold), expected, atol=1e-15)


def test_the_threshold_itself_does_not_count_and_no_joint_scores_zero() -> None:
    joints = [[SIMCC_JOINT_THRESHOLD, 0.5], [0.0, SIMCC_JOINT_THRESHOLD]]
    found = pose_scores([0.8, 0.9], joints, SIMCC_JOINT_THRESHOLD)
    assert found.tolist() == pytest.approx([0.4, 0.0])


def test_shapes_must_agree() -> None:
    for boxes, joints in (([1.0], np.ones((2, 3))), ([1.0, 1.0], [1.0, 1.0])):
        with pytest.raises(InputError, match="rescoring"):
            pose_scores(boxes, joints)
