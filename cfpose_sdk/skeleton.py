"""Further keypoint sets of the field: Halpe's 26 and COCO-WholeBody's 133.

Names, order and sigmas: Halpe-FullBody (Fang et al., TPAMI 2022), with the sigmas that mmpose
evaluates it by; COCO-WholeBody (Jin et al., ECCV 2020), with those of its authors' evaluation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.errors import InputError

Pair = tuple[int, int]
DEFAULT_OKS_SIGMA = 0.067  # the mean of COCO's 17


@dataclass(frozen=True)
class Skeleton:
    """A keypoint set of K joints; all indices are 0-based.

    Raises InputError when the tables contradict each other.
    """

    keypoints: tuple[str, ...]  # K names, in channel order
    limbs: tuple[Pair, ...]  # joints that are linked; drawn, and the edges of the refiner's graph
    flip_pairs: tuple[Pair, ...]  # (left, right) joints that swap when the image is mirrored
    oks_sigmas: tuple[float, ...]  # K; COCO's per-joint constants (half of its k_i)

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if count == 0 or len(set(self.keypoints)) != count:
            raise InputError(f"keypoint names must be non-empty and unique, got {self.keypoints}")
        if len(self.oks_sigmas) != count or not all(
            s > 0 and math.isfinite(s) for s in self.oks_sigmas
        ):
            raise InputError(
                f"oks_sigmas must hold {count} positive numbers, one a keypoint, "
                f"got {self.oks_sigmas}"
            )
        for label, pairs in (("limbs", self.limbs), ("flip_pairs", self.flip_pairs)):
            for a, b in pairs:
                if not (0 <= a < count and 0 <= b < count) or a == b:
                    raise InputError(
                        f"{label} must join two different joints in 0..{count - 1}, got {(a, b)}"
                    )
        flipped = [joint for pair in self.flip_pairs for joint in pair]
        if len(set(flipped)) != len(flipped):
            raise InputError(f"a joint may stand in one flip pair only, got {self.flip_pairs}")

    def __len__(self) -> int:
        return len(self.keypoints)

    @classmethod
    def from_coco_category(
        cls,
        category: Mapping[str, Any],
        *,
        oks_sigmas: Sequence[float] | None = None,
        flip_pairs: Sequence[Pair] | None = None,
    ) -> Skeleton:
        """A skeleton from a `categories` entry of a COCO keypoint file.

        `keypoints` gives the names, `skeleton` the limbs (1-based, as in COCO; may be absent).
        What is not passed is read from the entry's `oks_sigmas` and `flip_pairs` (0-based), where
        it has them; else every sigma is 0.067, the mean of COCO's 17, and names pair that differ in
        their side: `left_x` and `right_x`, `xLeft` and `xRight`, `l_x` and `r_x`, `x.L` and `x.R`.
        Raises InputError when a table is malformed, or when a left joint has no right one.
        """
        try:
            names = tuple(str(name) for name in category["keypoints"])
            limbs = tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ())
            sigmas = oks_sigmas if oks_sigmas is not None else category.get("oks_sigmas")
            pairs = flip_pairs if flip_pairs is not None else category.get("flip_pairs")
            return cls(
                keypoints=names,
                limbs=limbs,
                flip_pairs=_named_pairs(names)
                if pairs is None
                else tuple((int(a), int(b)) for a, b in pairs),
                oks_sigmas=(DEFAULT_OKS_SIGMA,) * len(names)
                if sigmas is None
                else tuple(float(sigma) for sigma in sigmas),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"a COCO category needs keypoints (names), skeleton (pairs from 1), and, where "
                f"given, oks_sigmas and flip_pairs (pairs from 0), got {str(category)[:200]}"
            ) from error

    @property
    def flip_order(self) -> NDArray[np.intp]:
        """(K,) index that reorders joints after mirroring: `mirrored[flip_order]`."""
        order = np.arange(len(self), dtype=np.intp)
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return order


# sides in names: left_wrist, Wrist-Left, leftWrist; l_wrist, wrist.R, LWrist
_WORD = re.compile(r"(?<![A-Za-z])(?i:left|right)(?![a-z])|(?<=[a-z])(?:Left|Right)(?![a-z])")
_LETTER = re.compile(r"(?<![A-Za-z0-9])[LlRr](?![A-Za-z0-9])|^[LR](?=[A-Z][a-z])")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def _mirrored_name(name: str) -> str:
    """The joint's name on the other side; the same where it names no side."""

    def swap(match: re.Match[str]) -> str:
        side, other = match[0], _OTHER_SIDE[match[0].lower()]
        return other.upper() if side.isupper() else other.title() if side.istitle() else other

    return _WORD.sub(swap, name) if _WORD.search(name) else _LETTER.sub(swap, name)


def _named_pairs(names: tuple[str, ...]) -> tuple[Pair, ...]:
    """(left, right) joints by name. Raises InputError for one without its counterpart."""
    index = {name: i for i, name in enumerate(names)}
    pairs = []
    alone = []
    for name in names:
        other = _mirrored_name(name)
        if other != name and other in index:
            side = _WORD.search(name) or _LETTER.search(name)
            if side is not None and side[0].lower() in ("left", "l"):
                pairs.append((index[name], index[other]))
        elif _WORD.search(name):
            alone.append(name)
    if alone:
        raise InputError(
            f"{', '.join(sorted(alone))} has no counterpart on the other side; pass flip_pairs"
        )
    return tuple(pairs)


COCO_17 = Skeleton(
    keypoints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
        "left_wrist", "right_wrist", "left_hip", "right_hip",
        "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    limbs=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    oks_sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
        0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip
CROWDPOSE_14 = Skeleton(
    keypoints=(
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist",
        "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
        "left_ankle", "right_ankle", "top_head", "neck",
    ),
    limbs=(
        (10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 1), (0, 2), (1, 3),
        (2, 4), (3, 5), (12, 13), (1, 13), (0, 13),
    ),
    flip_pairs=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    oks_sigmas=(
        0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
        0.087, 0.087, 0.089, 0.089, 0.079, 0.079,
    ),
)  # fmt: skip
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
