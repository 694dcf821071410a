"""The drawing shows what it is given, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from cfpose_sdk.errors import InputError
from cfpose_sdk.media.draw import draw_poses
from cfpose_sdk.skeleton import COCO_17

BLACK = np.zeros((200, 160, 3), np.uint8)
BOX = np.array([[10, 10, 110, 190]], np.float32)
LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_ELBOW = 5, 6, 7


def person(**joints: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """xy and confidence with only the named joints seen; the rest is at (80, 100), unseen."""
    xy = np.full((1, 17, 2), (80, 100), np.float32)
    confidence = np.zeros((1, 17), np.float32)
    for name, place in joints.items():
        joint = COCO_17.keypoints.index(name)
        xy[0, joint], confidence[0, joint] = place, 0.9
    return xy, confidence


def draw(
    xy: np.ndarray, confidence: np.ndarray, boxes: np.ndarray = BOX, **o: object
) -> np.ndarray:
    return draw_poses(BLACK, xy, confidence, boxes, COCO_17, threshold=0.3, **o)


def test_a_joint_is_drawn_at_its_pixel() -> None:
    for x, y in [(50.0, 60.0), (50.5, 60.25), (3.0, 197.0)]:
        picture = draw(*person(left_wrist=(x, y))).sum(axis=2).astype(float)
        v, u = np.mgrid[:200, :160]
        if y < 190:  # whole dot inside
            assert (picture * u).sum() / picture.sum() == pytest.approx(x, abs=0.1)
            assert (picture * v).sum() / picture.sum() == pytest.approx(y, abs=0.1)
        assert picture[round(y), round(x)] > 0


@pytest.mark.parametrize("height", [40, 90, 180])
def test_small_dots_are_round(height: int) -> None:
    """Of a disc the mean of x²y² is a third of that of x⁴, of a diamond or a cross a sixth."""
    box = np.array([[10, 10, 10 + height / 2, 10 + height]], np.float32)
    for x, y in [(50.0, 60.0), (50.4, 60.3)]:
        weight = draw(*person(left_wrist=(x, y)), box).max(axis=2).astype(float)
        v, u = np.mgrid[:200, :160]
        squares = (weight * (u - x) ** 2 * (v - y) ** 2).sum()
        assert squares / (weight * (u - x) ** 4).sum() > 0.25
    draw(*person(left_wrist=(-0.4, 199.6), nose=(159.8, 0.2), left_ear=(-9, -9)), box)


def test_sides_have_their_colours() -> None:
    picture = draw(*person(left_wrist=(30, 40), right_wrist=(90, 40), nose=(60, 40)))
    left, right, middle = (picture[40, x].astype(int) for x in (30, 90, 60))
    assert left[2] > left[0]  # orange: more red than blue
    assert right[0] > right[2]
    assert middle.argmax() == 1


def test_limbs_need_both_ends() -> None:
    both = draw(*person(left_shoulder=(30, 50), left_elbow=(90, 50)))
    assert both[50, 60].any()
    one = draw(*person(left_shoulder=(30, 50)))
    assert not one[50, 60].any()


def test_unseen_people_leave_no_mark_and_boxes_are_optional() -> None:
    xy, confidence = person()
    assert not draw(xy, confidence).any()
    boxed = draw(xy, confidence, show_boxes=True)
    assert boxed[10, 60].any()
    assert not boxed[100, 60].any()


def test_lines_grow_with_the_person() -> None:
    joints = person(left_shoulder=(30, 50), left_elbow=(90, 50))
    large = draw_poses(
        np.zeros((2000, 1600, 3), np.uint8), *joints, BOX * 10, COCO_17, threshold=0.3
    )
    small = draw(*joints, BOX / 4)
    width = [(picture[:100, 60].sum(axis=-1) > 0).sum() for picture in (small, large)]
    assert width[0] <= 3
    assert width[1] >= 8


def test_far_and_empty_input_is_harmless() -> None:
    xy, confidence = person(left_shoulder=(1e12, -1e12), left_elbow=(90, 50))
    assert draw(xy, confidence, BOX * 1e9, show_boxes=True)[50, 90].any()
    nobody = draw(xy[:0], confidence[:0], BOX[:0])
    assert nobody is not BLACK
    assert not nobody.any()


def test_people_with_ids_have_colours_of_their_own_and_numbers() -> None:
    xy, confidence = person(left_wrist=(30, 60), right_wrist=(90, 60))
    one, two = (
        draw_poses(BLACK, xy, confidence, BOX, COCO_17, threshold=0.3, ids=np.array([number]))
        for number in (1, 2)
    )
    np.testing.assert_array_equal(one[60, 30], one[60, 90])  # both sides alike
    assert (one[60, 30] != two[60, 30]).any()
    assert one[:40, 5:60].any()  # the number, at the box's corner
    far = draw_poses(BLACK, xy, confidence, BOX * 1e9, COCO_17, threshold=0.3, ids=np.array([1]))
    assert far.shape == BLACK.shape


def test_spread_is_two_standard_deviations_long_and_points_its_way() -> None:
    xy, confidence = person(left_wrist=(80, 100))
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = np.tile(turn @ np.diag([15.0**2, 5.0**2]) @ turn.T, (1, 17, 1, 1))
    bare = draw(xy, confidence)
    picture = draw_poses(BLACK, xy, confidence, BOX, COCO_17, threshold=0.3, covariance=covariance)
    v, u = np.nonzero((picture != bare).any(axis=-1))
    offset = np.stack([u - 80, v - 100], axis=-1) @ turn
    assert np.abs(offset[:, 0]).max() == pytest.approx(30, abs=1.5)
    assert np.abs(offset[:, 1]).max() == pytest.approx(10, abs=1.5)
    np.testing.assert_allclose((offset[:, 0] / 30) ** 2 + (offset[:, 1] / 10) ** 2, 1, atol=0.35)


def test_width_labels_and_colours_can_be_chosen() -> None:
    seen = person(left_shoulder=(30, 50), left_elbow=(90, 50))
    thin, wide = draw(*seen, line_width=1.0), draw(*seen, line_width=12.0)
    assert (wide > 0).any(axis=2).sum() > 4 * (thin > 0).any(axis=2).sum()
    number = np.array([3])
    sides = draw(*seen, ids=number, colours="sides")
    np.testing.assert_array_equal(sides[50, 60], draw(*seen)[50, 60])
    people = draw(*seen, ids=number)
    np.testing.assert_array_equal(people[50, 60], draw(*seen, ids=number, colours="people")[50, 60])
    assert (people[50, 60] != sides[50, 60]).any()
    assert draw(*person(), labels=["0.87"]).any()
    for wrong in ({"line_width": 0.0}, {"line_width": float("nan")}, {"colours": "rainbow"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            draw(*seen, **wrong)
