"""How exactly people place each joint, from people whom two annotators labelled.

Source: COCO's keypoint evaluation, whose sigmas are the root of the mean of d² / s² over people who
were labelled twice; d is the distance of the two positions, s² the area.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cfpose_sdk.boxes import iou_matrix
from cfpose_training.skeletons import known_sigmas

Labelled = list[tuple[np.ndarray[Any, Any], list[float]]]  # a person's joints (K, 3), and xywh box
FEWEST = 10  # people in whom both placed a joint, below which its sigma stays
SAME_IOU = 0.5  # of two boxes of one person
LEAST_SIGMA = 0.01  # annotators who begin from one another's work agree too well


def spread_sigmas(pairs: Iterable[tuple[Labelled, Labelled]], names: Sequence[str]) -> list[float]:
    """A sigma of each joint, from the people of photos that two annotators labelled.

    A joint that fewer than ten people have twice keeps the sigma of its name (`known_sigmas`). []
    where that is so for all.
    """
    squares: list[list[float]] = [[] for _ in names]
    for first, second in pairs:
        for a, b in _same_people(first, second):
            (one, box), (other, other_box) = first[a], second[b]
            area = (box[2] * box[3] + other_box[2] * other_box[3]) / 2
            both = (one[:, 2] > 0) & (other[:, 2] > 0)
            distance = ((one[:, :2] - other[:, :2]) ** 2).sum(axis=1) / area
            for joint in np.flatnonzero(both):
                squares[joint].append(float(distance[joint]))
    if all(len(of_joint) < FEWEST for of_joint in squares):
        return []
    return [
        sigma if len(of_joint) < FEWEST
        else round(float(np.sqrt(np.mean(of_joint)).clip(LEAST_SIGMA, 1)), 4)
        for sigma, of_joint in zip(known_sigmas(names), squares, strict=True)
    ]  # fmt: skip


def _same_people(first: Labelled, second: Labelled) -> list[tuple[int, int]]:
    """Places of the same person in both: boxes that overlap most, each taken once."""
    corners = [np.array([box for _, box in people]).reshape(-1, 4) for people in (first, second)]
    for boxes in corners:
        boxes[:, 2:] += boxes[:, :2]
    overlap = iou_matrix(*corners)
    same = []
    while overlap.size and overlap.max() >= SAME_IOU:
        a, b = np.unravel_index(overlap.argmax(), overlap.shape)
        same.append((int(a), int(b)))
        overlap[a], overlap[:, b] = 0, 0
    return same
