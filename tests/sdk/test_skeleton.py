"""Skeletons of a user's own, read from a COCO category."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton

# as in COCO's own files: limbs count from 1
COCO_LIMBS = [
    [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9],
    [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7],
]  # fmt: skip


def test_cocos_category_gives_cocos_skeleton() -> None:
    category = {"id": 1, "keypoints": list(COCO_17.keypoints), "skeleton": COCO_LIMBS}
    found = Skeleton.from_coco_category(category, oks_sigmas=COCO_17.oks_sigmas)
    assert found == COCO_17


def test_crowdposes_names_give_its_pairs() -> None:
    found = Skeleton.from_coco_category({"keypoints": CROWDPOSE_14.keypoints})
    assert found.flip_pairs == CROWDPOSE_14.flip_pairs
    assert found.limbs == ()


def test_absent_sigmas_are_the_mean_of_cocos() -> None:
    found = Skeleton.from_coco_category({"keypoints": ["nose", "tail"]})
    assert found.oks_sigmas == pytest.approx([np.mean(COCO_17.oks_sigmas)] * 2, abs=5e-4)


def test_pairs_by_either_form_of_name_whatever_the_order() -> None:
    names = ["paw_right", "nose", "right_ear", "paw_left", "left_ear", "leftover"]
    found = Skeleton.from_coco_category({"keypoints": names})
    assert found.flip_pairs == ((3, 0), (4, 2))
    assert found.flip_order.tolist() == [3, 1, 4, 0, 2, 5]


def test_the_files_own_tables_win_over_names_and_arguments_over_both() -> None:
    category: dict[str, Any] = {
        "keypoints": ["left_a", "right_a", "b", "c"],
        "skeleton": [[1, 3], [2, 4]],
        "oks_sigmas": [0.1, 0.2, 0.3, 0.4],
        "flip_pairs": [[2, 3]],
    }
    found = Skeleton.from_coco_category(category)
    assert found.limbs == ((0, 2), (1, 3))
    assert (found.flip_pairs, found.oks_sigmas) == (((2, 3),), (0.1, 0.2, 0.3, 0.4))
    found = Skeleton.from_coco_category(category, flip_pairs=[], oks_sigmas=[0.5] * 4)
    assert (found.flip_pairs, found.oks_sigmas) == ((), (0.5,) * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": ["left_a", "b"]}, r"left_a has no counterpart.*flip_pairs"),
        ({"keypoints": ["b", "a_right"]}, "a_right has no counterpart"),
        ({"keypoints": None}, "needs keypoints"),
        ({"keypoints": []}, "non-empty"),
        ({"keypoints": ["a", "a"]}, "unique"),
        ({"skeleton": [[0, 1]]}, r"limbs must join.*\(-1, 0\)"),
        ({"skeleton": [[1, 3]]}, r"limbs must join.*\(0, 2\)"),
        ({"skeleton": [1, 2]}, "needs keypoints"),
        ({"oks_sigmas": [0.1]}, "2 positive numbers"),
        ({"oks_sigmas": ["x", "y"]}, "needs keypoints"),
        ({"flip_pairs": [[0, 2]]}, "flip_pairs must join"),
    ],
)
def test_what_is_malformed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Skeleton.from_coco_category({"keypoints": ["a", "b"], **change})


def test_what_is_no_category_is_refused() -> None:
    with pytest.raises(InputError, match="needs keypoints"):
        Skeleton.from_coco_category([])  # type: ignore[arg-type]
