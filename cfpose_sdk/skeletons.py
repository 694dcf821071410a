"""Further keypoint sets of the field: Halpe's 26 and COCO-WholeBody's 133.

Names, order and sigmas: Halpe-FullBody (Fang et al., TPAMI 2022), with the sigmas that mmpose
evaluates it by; COCO-WholeBody (Jin et al., ECCV 2020), with those of its authors' evaluation.
"""

from __future__ import annotations

from cfpose_sdk.skeleton import COCO_17, Pair, Skeleton

_BODY = COCO_17.keypoints
_ARMS_AND_FACE: tuple[Pair, ...] = (
    (5, 7), (7, 9), (6, 8), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

HALPE_26 = Skeleton(
    keypoints=(
        *_BODY, "head", "neck", "hip", "left_big_toe", "right_big_toe", "left_small_toe",
        "right_small_toe", "left_heel", "right_heel",
    ),
    limbs=(
        (15, 13), (13, 11), (11, 19), (16, 14), (14, 12), (12, 19), (17, 18), (18, 19),
        (18, 5), (18, 6), *_ARMS_AND_FACE,
        (15, 20), (15, 22), (15, 24), (16, 21), (16, 23), (16, 25),
    ),
    flip_pairs=(*COCO_17.flip_pairs, (20, 21), (22, 23), (24, 25)),
    oks_sigmas=(*COCO_17.oks_sigmas, 0.026, 0.026, 0.066, *(0.079,) * 6),
)  # fmt: skip

_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_FACE, _LEFT_HAND, _RIGHT_HAND = 23, 91, 112  # where their joints begin
# of the 68 points of 300-W: which mirror which, counted within the face
_FACE_PAIRS: tuple[Pair, ...] = (
    *((i, 16 - i) for i in range(8)),  # jaw
    *((17 + i, 26 - i) for i in range(5)),  # brows
    (31, 35), (32, 34),  # nostrils
    (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),  # eyes
    (48, 54), (49, 53), (50, 52), (55, 59), (56, 58),  # lips, outside
    (60, 64), (61, 63), (65, 67),  # and inside
)  # fmt: skip
_FACE_SIGMAS = (
    0.042, 0.043, 0.044, 0.043, 0.040, 0.035, 0.031, 0.025, 0.020, 0.023, 0.029, 0.032, 0.037,
    0.038, 0.043, 0.041, 0.045, 0.013, 0.012, 0.011, 0.011, 0.012, 0.012, 0.011, 0.011, 0.013,
    0.015, 0.009, 0.007, 0.007, 0.007, 0.012, 0.009, 0.008, 0.016, 0.010, 0.017, 0.011, 0.009,
    0.011, 0.009, 0.007, 0.013, 0.008, 0.011, 0.012, 0.010, 0.034, 0.008, 0.008, 0.009, 0.008,
    0.008, 0.007, 0.010, 0.008, 0.009, 0.009, 0.009, 0.007, 0.007, 0.008, 0.011, 0.008, 0.008,
    0.008, 0.010, 0.008,
)  # fmt: skip
_FOOT_SIGMAS = (0.068, 0.066, 0.066, 0.092, 0.094, 0.094)
_HAND_SIGMAS = (
    0.029, 0.022, 0.035, 0.037, 0.047, 0.026, 0.025, 0.024, 0.035, 0.018, 0.024, 0.022, 0.026,
    0.017, 0.021, 0.021, 0.032, 0.020, 0.019, 0.022, 0.031,
)  # fmt: skip


def _hand_names(side: str) -> tuple[str, ...]:
    joints = (f"{side}_hand_{finger}{n}" for finger in _FINGERS for n in range(1, 5))
    return (f"{side}_hand_root", *joints)


def _hand_limbs(first: int) -> tuple[Pair, ...]:
    """From the root along each finger."""
    return tuple(
        (first if n == 0 else first + 4 * finger + n, first + 4 * finger + n + 1)
        for finger in range(5)
        for n in range(4)
    )


COCO_WHOLEBODY_133 = Skeleton(
    keypoints=(
        *_BODY, "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe",
        "right_heel", *(f"face_{n}" for n in range(68)), *_hand_names("left"),
        *_hand_names("right"),
    ),
    limbs=(
        *COCO_17.limbs, (15, 17), (15, 18), (15, 19), (16, 20), (16, 21), (16, 22),
        *_hand_limbs(_LEFT_HAND), *_hand_limbs(_RIGHT_HAND),
    ),
    flip_pairs=(
        *COCO_17.flip_pairs, (17, 20), (18, 21), (19, 22),
        *((_FACE + a, _FACE + b) for a, b in _FACE_PAIRS),
        *((_LEFT_HAND + n, _RIGHT_HAND + n) for n in range(21)),
    ),
    oks_sigmas=(*COCO_17.oks_sigmas, *_FOOT_SIGMAS, *_FACE_SIGMAS, *_HAND_SIGMAS * 2),
)  # fmt: skip
