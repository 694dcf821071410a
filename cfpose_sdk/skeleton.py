"""Keypoint sets: names, limbs, left/right pairs and OKS sigmas.

Sources: COCO's keypoint annotations and evaluation constants; CrowdPose's annotation format and
evaluation constants (Li et al., CVPR 2019).
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
        it has them; else every sigma is 0.067, the mean of COCO's 17, and `left_x` pairs with
        `right_x`, `x_left` with `x_right`. Raises InputError when a table is malformed, or when
        a left joint has no right one.
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


def _named_pairs(names: tuple[str, ...]) -> tuple[Pair, ...]:
    """(left, right) joints by name. Raises InputError for one without its counterpart."""
    index = {name: i for i, name in enumerate(names)}
    pairs = []
    paired: set[str] = set()
    for name in names:
        other = re.sub(r"^left_|_left$", lambda m: m[0].replace("left", "right"), name)
        if other != name and other in index:
            pairs.append((index[name], index[other]))
            paired |= {name, other}
    sided = {name for name in names if re.search(r"^(left|right)_|_(left|right)$", name)}
    if alone := sorted(sided - paired):
        raise InputError(
            f"{', '.join(alone)} has no counterpart on the other side; pass flip_pairs"
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
