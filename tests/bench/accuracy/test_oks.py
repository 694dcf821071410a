"""OKS and its suppression against loops written from the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_bench.accuracy.oks import oks_matrix, oks_nms
from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton

SIGMAS = COCO_17.oks_sigmas


def slow_oks(
    a: np.ndarray, b: np.ndarray, area: float, sigmas: tuple[float, ...] = SIGMAS
) -> float:
    terms = [
        math.exp(-((xa - xb) ** 2 + (ya - yb) ** 2) / (2 * area * (2 * sigma) ** 2))
        for (xa, ya), (xb, yb), sigma in zip(a, b, sigmas, strict=True)
    ]
    return sum(terms) / len(terms)


def slow_nms(
    poses: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    limit: float,
    sigmas: tuple[float, ...] = SIGMAS,
) -> list[int]:
    left = sorted(range(len(poses)), key=lambda i: -scores[i])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [
            i
            for i in left
            if slow_oks(poses[best], poses[i], (areas[best] + areas[i]) / 2, sigmas) <= limit
        ]
    return kept


def near_repeats(
    seed: int, count: int, joints: int = 17
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses around a few places, so that some pairs are above the threshold and some below."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 300, (3, joints, 2))
    poses = places[rng.integers(0, 3, count)] + rng.normal(0, 6, (count, joints, 2))
    return poses, rng.permutation(count) / max(count, 1), rng.uniform(2e3, 2e4, count)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 12),
    st.sampled_from([0.3, 0.5, 0.7, 0.9]),
    st.sampled_from([COCO_17, CROWDPOSE_14]),
)
def test_nms_equals_the_slow_one(seed: int, count: int, limit: float, skeleton: Skeleton) -> None:
    poses, scores, areas = near_repeats(seed, count, len(skeleton))
    sigmas = skeleton.oks_sigmas
    assert oks_nms(poses, scores, areas, sigmas, limit).tolist() == slow_nms(
        poses, scores, areas, limit, sigmas
    )


def test_the_oracle_cases_hold_repeats() -> None:
    dropped = [
        12 - len(oks_nms(*near_repeats(seed, 12), sigmas=SIGMAS, threshold=0.7))
        for seed in range(20)
    ]
    assert 0 < np.mean(dropped) < 11


def test_matrix_is_symmetric_with_a_unit_diagonal() -> None:
    poses, _, areas = near_repeats(5, 7)
    oks = oks_matrix(poses, areas, SIGMAS)
    np.testing.assert_allclose(np.diag(oks), 1.0)
    np.testing.assert_allclose(oks, oks.T)
    assert oks[2, 3] == pytest.approx(slow_oks(poses[2], poses[3], (areas[2] + areas[3]) / 2))


def test_the_same_pose_twice_is_kept_once_the_better_one() -> None:
    pose = np.random.default_rng(0).uniform(0, 100, (17, 2))
    far = pose + 500
    kept = oks_nms([pose, pose, far], [0.4, 0.6, 0.5], [1e4, 1e4, 1e4], SIGMAS)
    assert kept.tolist() == [1, 2]
    assert oks_nms(np.zeros((0, 17, 2)), [], [], SIGMAS).tolist() == []


@pytest.mark.parametrize("skeleton", [COCO_17, CROWDPOSE_14])
def test_by_default_a_pose_goes_when_its_oks_is_above_09(skeleton: Skeleton) -> None:
    """All joints shifted by s have the closed form OKS mean exp(−s² / (2 · area · (2σ)²))."""
    area, sigmas = 120.0 * 90.0, np.array(skeleton.oks_sigmas)

    def oks(shift: float) -> float:
        return float(np.exp(-(shift**2) / (2 * area * (2 * sigmas) ** 2)).mean())

    low, high = 0.0, 100.0
    for _ in range(60):  # oks falls with the shift
        middle = (low + high) / 2
        low, high = (middle, high) if oks(middle) > 0.9 else (low, middle)
    pose = np.random.default_rng(3).uniform(0, 100, (len(skeleton), 2))
    for shift, kept in ((low - 1e-6, [1]), (high + 1e-6, [1, 0])):
        poses = [pose + np.array([shift, 0.0]), pose]
        assert oks_nms(poses, [0.4, 0.6], [area] * 2, skeleton.oks_sigmas).tolist() == kept


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError, match="2 poses, 1 scores and 2 areas"):
        oks_nms(np.zeros((2, 17, 2)), [1.0], [1.0, 1.0], SIGMAS)
