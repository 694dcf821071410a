"""Ids over time, on people whose ways are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_sdk.errors import InputError
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.streaming.tracking import Tracker, TrackOptions, carried_boxes

# a standing person of 100 px: COCO's 17 joints around the middle of the body
FIGURE = np.array(
    [(0, -44), (2, -46), (-2, -46), (5, -45), (-5, -45), (12, -30), (-12, -30), (16, -14),
     (-16, -14), (15, 0), (-15, 0), (8, 2), (-8, 2), (8, 25), (-8, 25), (8, 48), (-8, 48)],
    dtype=np.float32,
)  # fmt: skip
AROUND = np.array([-20, -50, 20, 52], dtype=np.float32)


def scene(
    *places: tuple[float, float], confidence: float = 0.9, size_wh: tuple[int, int] = (640, 480)
) -> Poses:
    """People standing at the given places."""
    middles = np.array(places, dtype=np.float32).reshape(-1, 2)
    return Poses(
        xy=middles[:, None] + FIGURE,
        confidence=np.full((len(middles), 17), confidence),
        boxes=np.tile(middles, 2) + AROUND,
        box_scores=np.full(len(middles), 0.8),
        skeleton=COCO_17,
        image_size_wh=size_wh,
    )


def ids(tracker: Tracker, *places: tuple[float, float]) -> list[int]:
    tracked = tracker.update(scene(*places)).ids
    assert tracked is not None
    return [int(number) for number in tracked]


def test_ids_follow_the_person_and_not_the_position_in_the_list() -> None:
    tracker = Tracker()
    assert ids(tracker, (100, 100), (300, 100)) == [1, 2]
    assert ids(tracker, (303, 101), (102, 99)) == [2, 1]
    assert ids(tracker, (500, 100), (105, 98), (306, 102)) == [3, 1, 2]
    assert ids(tracker) == []


@pytest.mark.parametrize("speed", [3, 6, 10])
@pytest.mark.parametrize("apart_y", [0, 12])
def test_people_who_cross_keep_their_ids(speed: int, apart_y: int) -> None:
    tracker = Tracker()
    rng = np.random.default_rng(speed)
    for step in range(50):
        x = 250 + speed * (step - 25)
        people = np.array([(x, 200), (500 - x, 200 + apart_y)]) + rng.normal(0, 0.7, (2, 2))
        order = [0, 1] if step == 0 else rng.permutation(2).tolist()
        found = ids(tracker, *((float(x), float(y)) for x, y in people[order]))
        if apart_y or abs(2 * x - 500) > 2:  # else one lies on the other: nobody can tell
            assert found == [n + 1 for n in order]


def test_people_who_change_places_between_two_frames_keep_their_ids() -> None:
    tracker = Tracker()
    for step in range(20):
        x = 250 + 30 * (step - 9.5)  # 15 px before the middle, then 15 px behind it
        order = [0, 1] if step % 2 == 0 else [1, 0]
        people = [(x, 200.0), (500 - x, 200.0)]
        assert ids(tracker, *(people[n] for n in order)) == [n + 1 for n in order]


def test_a_person_behind_another_for_a_while_comes_out_with_the_old_id() -> None:
    tracker = Tracker()
    for step in range(40):
        x = 100 + 8 * step
        hidden = 15 <= step < 22  # behind the one who stands
        found = ids(tracker, (260, 200), *([] if hidden else [(x, 200)]))
        assert found == ([1] if hidden else [1, 2])


@pytest.mark.parametrize(("away", "same"), [(0, True), (4, True), (5, True), (6, False)])
def test_leaving_and_returning(away: int, same: bool) -> None:
    tracker = Tracker(TrackOptions(max_gap=5))
    for _ in range(3):
        assert ids(tracker, (100, 100)) == [1]
    for _ in range(away):
        assert ids(tracker) == []
    assert ids(tracker, (104, 100)) == ([1] if same else [2])


@given(st.lists(st.lists(st.tuples(st.integers(30, 600), st.integers(60, 420)), max_size=5),
                max_size=12))  # fmt: skip
def test_ids_are_unique_in_a_frame_and_never_used_again(
    frames: list[list[tuple[int, int]]],
) -> None:
    tracker = Tracker(TrackOptions(max_gap=1))
    last_seen: dict[int, int] = {}
    highest = 0
    for number, places in enumerate(frames):
        found = ids(tracker, *places)
        assert len(set(found)) == len(found) == len(places)
        for one in found:
            if one in last_seen:
                assert number - last_seen[one] <= 2  # at most one frame away
            else:
                assert one > highest
            last_seen[one] = number
        highest = max([highest, *found])


def test_a_tracker_forgets() -> None:
    tracker = Tracker(TrackOptions(max_gap=3))
    for step in range(50):
        ids(tracker, (10 + 13 * (step % 2) * 30, 10 + 9 * step))
    assert len(tracker._tracks) <= 8


def test_unsure_joints_do_not_count() -> None:
    tracker = Tracker()
    ids(tracker, (100, 100))
    faint = scene((102, 100), confidence=0.05)  # the box alone has to do
    assert tracker.update(faint).ids == [1]


def test_bad_options() -> None:
    for options in ({"max_gap": -1}, {"min_similarity": 0}, {"min_similarity": 1.1}):
        with pytest.raises(InputError, match=next(iter(options))):
            TrackOptions(**options)  # type: ignore[arg-type]


def test_carried_boxes_cover_the_person() -> None:
    found = carried_boxes(scene((100, 100), (300, 200)))
    assert len(found) == 2
    np.testing.assert_allclose(found.scores, 0.8)
    # 32 x 96 px of joints and 15 % on each side
    np.testing.assert_allclose(found.boxes[0], [84 - 4.8, 54 - 14.4, 116 + 4.8, 148 + 14.1],
                               atol=0.5)  # fmt: skip


def test_carried_boxes_do_not_grow() -> None:
    poses = scene((100, 100))
    first = carried_boxes(poses)
    again = carried_boxes(dataclasses.replace(poses, boxes=first.boxes))
    np.testing.assert_array_equal(first.boxes, again.boxes)


def test_what_fades_or_leaves_or_doubles_is_dropped() -> None:
    poses = scene((100, 100), (300, 200), (900, 100), (301, 200))
    confidence = poses.confidence.copy()
    confidence[0, 3:] = 0.1  # three joints left
    confidence[3] = 0.95  # the more confident of the two on one person
    poses = dataclasses.replace(
        poses, confidence=confidence, box_scores=np.array([0.9, 0.8, 0.7, 0.6])
    )
    found = carried_boxes(poses)
    np.testing.assert_allclose(found.scores, [0.6])
    assert len(carried_boxes(scene())) == 0
