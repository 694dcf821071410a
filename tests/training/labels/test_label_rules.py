"""Rules of labelling in closed form: what looks agree on, which joints and people are kept."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfpose_sdk.skeleton import COCO_17
from cfpose_training.labels.rules import LabelRules, chosen_people, consensus, kept_joints

SIGMAS = np.array(COCO_17.oks_sigmas)


@given(
    distance=st.floats(0, 60),
    scores=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    spreads=st.tuples(st.floats(0.2, 20), st.floats(0.2, 20)),
    area=st.floats(100, 1e5),
)
def test_two_looks_agree_as_their_distance_says(
    distance: float,
    scores: tuple[float, float],
    spreads: tuple[float, float],
    area: float,
) -> None:
    looks = np.zeros((2, 1, 17, 4))
    looks[1, ..., 0] = distance
    looks[:, 0, :, 2] = np.array(scores)[:, None]
    looks[:, 0, :, 3] = np.array(spreads)[:, None]
    found = consensus(looks, np.array([area]), COCO_17.oks_sigmas, "mean")
    first, second = scores[0] / spreads[0] ** 2, scores[1] / spreads[1] ** 2
    place = distance * second / (first + second)
    np.testing.assert_allclose(found.xy[0], [[place, 0]] * 17, atol=1e-9)
    np.testing.assert_allclose(found.score[0], sum(scores) / 2)
    variance = area * (2 * SIGMAS) ** 2
    np.testing.assert_allclose(found.agreement[0], np.exp(-(distance**2) / (2 * variance)))
    rms = np.sqrt((place**2 + (distance - place) ** 2) / 2)
    np.testing.assert_allclose(found.spread[0], rms / np.sqrt(variance), atol=1e-9)


def test_the_median_leaves_a_stray_view_aside_and_one_view_agrees_with_itself() -> None:
    looks = np.zeros((5, 1, 17, 4))
    looks[4, ..., :2] = 900
    found = consensus(looks, np.array([1000.0]), COCO_17.oks_sigmas)  # the median
    assert not found.xy.any()
    np.testing.assert_allclose(found.agreement, 6 / 10)  # of ten pairs, those without the stray one
    single = consensus(looks[4:], np.array([1000.0]), COCO_17.oks_sigmas, "mean")
    np.testing.assert_allclose(single.xy, 900)  # though it has no score
    assert (single.agreement == 1).all()
    assert not single.spread.any()


def test_of_two_equal_poses_the_surer_one_stays() -> None:
    looks = np.zeros((1, 3, 17, 4))
    looks[0, :, :, 0] = np.arange(17) * 10
    looks[0, :, :, 2] = [[0.5], [0.9], [0.7]]
    looks[0, 2, :, 1] = 300
    areas, nobody = np.full(3, 4000.0), np.zeros((0, 17, 3))
    found, rules = (
        consensus(looks, areas, COCO_17.oks_sigmas),
        LabelRules(box_margin=0, max_offset=1),
    )
    boxes = np.array([[0, 0, 400, 400.0]] * 3)
    kept = kept_joints(found, boxes, (400, 400), rules)
    assert kept.all()
    assert chosen_people(found, kept, areas, nobody, COCO_17.oks_sigmas, rules) == [1, 2]
    kept[1, 4:] = False  # too few joints to be anybody
    assert chosen_people(found, kept, areas, nobody, COCO_17.oks_sigmas, rules) == [0, 2]
    boxes[:, 2] = 100
    outside = ~kept_joints(found, boxes, (400, 400), LabelRules(max_offset=1))[0]
    assert outside.tolist() == [10 * joint >= 140 for joint in range(17)]
    assert not kept_joints(found, boxes, (50, 400), rules)[0, 5:].any()  # outside the photo


def test_a_pose_off_the_middle_of_its_box_is_somebody_elses() -> None:
    looks = np.zeros((1, 1, 17, 4))
    looks[0, 0, :, 0] = np.linspace(30, 70, 17)
    looks[0, 0, :, 1] = np.linspace(45, 55, 17)
    looks[0, 0, :, 2] = 0.9
    looks[0, 0, 0, 2] = 0.1  # not kept, so its place does not count
    looks[0, 0, 0, :2] = 200
    found = consensus(looks, np.array([5000.0]), COCO_17.oks_sigmas)
    middle = (32.5 + 70) / 2  # of the kept ones, in a box 100 wide
    for left, kept in ((middle - 74, True), (middle - 76, False), (middle - 26, True)):
        boxes = np.array([[left, 0, left + 100, 100.0]])
        assert kept_joints(found, boxes, (999, 999), LabelRules()).sum() == 16 * kept
