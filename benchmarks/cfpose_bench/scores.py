"""The score of a pose, by which the evaluation ranks it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfpose_sdk.errors import InputError

SIMCC_JOINT_THRESHOLD = 0.01  # the reference SimCC's; 0.2 is the value for heatmaps


def pose_scores(
    box_scores: ArrayLike, joint_scores: ArrayLike, threshold: float | None = None
) -> NDArray[np.float64]:
    """(N,) box score × mean of the joint scores (N, K) above `threshold`; 0 where none is.

    Without a threshold all joints count. Raises InputError when the shapes differ. Source: the
    rescoring of Simple Baselines, HRNet and SimCC.
    """
    boxes = np.asarray(box_scores, dtype=np.float64)
    joints = np.asarray(joint_scores, dtype=np.float64)
    if joints.ndim != 2 or boxes.shape != joints.shape[:1]:
        raise InputError(
            f"rescoring needs (N,) box scores and (N, K) joint scores, got {boxes.shape} and "
            f"{joints.shape}"
        )
    taken = np.ones_like(joints) if threshold is None else (joints > threshold).astype(np.float64)
    counts = np.maximum(taken.sum(axis=1), 1)
    scores: NDArray[np.float64] = boxes * (joints * taken).sum(axis=1) / counts
    return scores
