"""What several looks at a person agree on: positions, how sure they are, which joints are kept.

A look is one model's prediction in one view.

All nearness is OKS of single joints: exp(-d² / (2 s² k²)) with k = 2σ and s² the person's area, as
COCO's evaluation has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from cfpose_sdk.arrays import Bools, Float64
from cfpose_sdk.errors import InputError
from cfpose_sdk.oks import joint_oks, oks_variance

Average = Literal["mean", "median"]
_LEAST_SCORE = 1e-6  # so that looks without any score count alike
_LEAST_SPREAD_PX = 0.1  # no look is surer of a place than that


@dataclass(frozen=True)
class LabelRules:
    """Which joints of which people become labels.

    `min_score`, `min_agreement`: a joint's mean score over the looks, and the mean OKS between its
    positions in them. `min_joints`: so many kept joints make a person. `box_margin`: a joint may
    lie so far outside its box, in longer sides. `max_offset`: the middle of the kept joints may lie
    so far from the box's, in its sides; farther out it is somebody else's pose. `neighbour_oks`: a
    pose nearer to another person of the photo is that person's. `given_oks`: filling needs this
    mean OKS with the given joints.
    Raises InputError when a value is out of range.
    """

    min_score: float = 0.3
    min_agreement: float = 0.8
    min_joints: int = 8
    box_margin: float = 0.1
    max_offset: float = 0.25
    neighbour_oks: float = 0.5
    given_oks: float = 0.6
    average: Average = "median"

    def __post_init__(self) -> None:
        for name in ("min_score", "min_agreement", "neighbour_oks", "given_oks"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.min_joints < 1:
            raise InputError(f"min_joints must be 1 or more, got {self.min_joints}")
        for name in ("box_margin", "max_offset"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.average not in ("mean", "median"):
            raise InputError(f"average must be mean or median, got {self.average!r}")

    def as_dict(self) -> dict[str, float | str]:
        """Names and values, for a record."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class Consensus:
    """The looks at N people combined: positions, scores, and how well the looks agree."""

    xy: Float64  # (N, K, 2) photo pixels
    score: Float64  # (N, K) mean over the looks, in [0, 1]
    agreement: Float64  # (N, K) mean OKS between two looks, in [0, 1]; 1 of a single one
    spread: Float64  # (N, K) RMS distance of the looks from xy, in multiples of s · k

    def __len__(self) -> int:
        return len(self.xy)


def consensus(
    looks: Float64,
    areas: Float64,
    sigmas: Sequence[float],
    average: Average = "median",
) -> Consensus:
    """(L, N, K, 4) x, y, score, spread → their consensus; (N,) areas of the people in pixels².

    `mean` weighs a look at a joint with its score and its precision, score / spread²; `median` is
    that of x and of y.
    """
    points, score = looks[..., :2], looks[..., 2]
    if average == "mean":
        spread = np.maximum(looks[..., 3:], _LEAST_SPREAD_PX)
        weight = np.maximum(score, _LEAST_SCORE)[..., None] / spread**2
        xy = (points * weight).sum(axis=0) / weight.sum(axis=0)
    else:
        xy = np.median(points, axis=0)
    count = len(looks)
    pairs = [(a, b) for a in range(count) for b in range(a)]
    between = [joint_oks(points[a], points[b], areas, sigmas) for a, b in pairs]
    agreement = np.mean(between, axis=0) if between else np.ones(score.shape[1:])
    squared = ((points - xy) ** 2).sum(axis=-1).mean(axis=0)
    return Consensus(
        xy=xy,
        score=score.mean(axis=0),
        agreement=agreement,
        spread=np.sqrt(squared / oks_variance(areas, sigmas)),
    )


def kept_joints(
    combined: Consensus, boxes: Float64, size_wh: tuple[int, int], rules: LabelRules
) -> Bools:
    """(N, K): score and agreement high enough, in the photo, not far outside the (N, 4) xyxy box.

    No joint of a person is kept when the kept ones lie off the middle of the box.
    """
    margin = rules.box_margin * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)[:, None]
    low = np.maximum(boxes[:, :2] - margin, 0)[:, None]
    high = np.minimum(boxes[:, 2:] + margin, np.array(size_wh))[:, None]
    inside = ((combined.xy >= low) & (combined.xy < high)).all(axis=-1)
    reliable = (combined.score >= rules.min_score) & (combined.agreement >= rules.min_agreement)
    kept: Bools = reliable & inside
    first = np.where(kept[..., None], combined.xy, np.inf).min(axis=1, initial=np.inf)
    last = np.where(kept[..., None], combined.xy, -np.inf).max(axis=1, initial=-np.inf)
    shown = kept.any(axis=1)
    middle, span = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offset = np.abs((first[shown] + last[shown]) / 2 - middle[shown]) / span[shown]
    kept[shown] &= (offset <= rules.max_offset).all(axis=1)[:, None]
    return kept


def shared_oks(
    pose: Float64, shown: Bools, others: Float64, others_shown: Bools, area: float,
    sigmas: Sequence[float],
) -> Float64:  # fmt: skip
    """(M,) mean OKS of a pose (K, 2) with M others over the joints that both show; 0 without any.

    `shown` (K,), `others_shown` (M, K); `area` in pixels² of the person that the pose is of.
    """
    oks = joint_oks(pose[None], others, np.full(len(others), area), sigmas)
    shared = shown[None] & others_shown
    total: Float64 = (oks * shared).sum(axis=-1) / np.maximum(1, shared.sum(axis=-1))
    return total


def chosen_people(
    combined: Consensus,
    kept: Bools,
    areas: Float64,
    neighbours: Float64,
    sigmas: Sequence[float],
    rules: LabelRules,
) -> list[int]:
    """Which of the N people of one photo get labels: indices, in order.

    `kept` (N, K), `neighbours` (M, K, 3) labelled x, y, v. A pose close to a neighbour's, or to one
    with a higher mean score, is left out: the labeller looked at another person.
    """
    mean_score = np.where(kept, combined.score, 0).sum(axis=1) / np.maximum(1, kept.sum(axis=1))
    others, shown = [*neighbours[..., :2]], [*(neighbours[..., 2] > 0)]
    chosen = []
    for person in np.argsort(-mean_score, kind="stable"):
        if kept[person].sum() < rules.min_joints:
            continue
        if others:
            overlap = shared_oks(
                combined.xy[person], kept[person], np.array(others), np.array(shown),
                float(areas[person]), sigmas,
            )  # fmt: skip
            if overlap.max() > rules.neighbour_oks:
                continue
        others.append(combined.xy[person])
        shown.append(kept[person])
        chosen.append(int(person))
    return sorted(chosen)
