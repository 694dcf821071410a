"""OKS between poses, the suppression of repeated poses, and the score that ranks a pose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import InputError
from cfpose_sdk.oks import joint_oks

OKS_NMS = 0.9


def oks_matrix(keypoints: ArrayLike, areas: ArrayLike, sigmas: Sequence[float]) -> Float64:
    """(N, N) OKS between (N, K, 2) poses in pixels; a pair's area is the mean of its two areas.

    `areas` (N,) in pixels²: those of the person boxes. Source: the rescoring of Simple Baselines
    and HRNet.
    """
    points = np.asarray(keypoints, dtype=np.float64)
    area = np.asarray(areas, dtype=np.float64)
    pair_area = (area[:, None] + area[None]) / 2 + np.spacing(1)
    oks: Float64 = joint_oks(points[:, None], points[None], pair_area, sigmas).mean(axis=-1)
    return oks


def oks_nms(
    keypoints: ArrayLike,
    scores: ArrayLike,
    areas: ArrayLike,
    sigmas: Sequence[float],
    threshold: float = OKS_NMS,
) -> NDArray[np.intp]:
    """Greedy suppression of repeated poses of one photo: kept indices, by falling score.

    keypoints (N, K, 2), scores and areas (N,). A pose is dropped when its OKS with a better one is
    above `threshold`. Raises InputError when the shapes differ.
    """
    points = np.asarray(keypoints, dtype=np.float64).reshape(-1, len(sigmas), 2)
    score, area = np.asarray(scores, dtype=np.float64), np.asarray(areas, dtype=np.float64)
    if not (len(points) == len(score) == len(area)):
        raise InputError(
            f"OKS-NMS needs as many scores and areas as poses, got {len(points)} poses, "
            f"{len(score)} scores and {len(area)} areas"
        )
    oks = oks_matrix(points, area, sigmas)
    kept: list[int] = []
    for index in np.argsort(-score, kind="stable"):
        if not kept or oks[index, kept].max() <= threshold:
            kept.append(int(index))
    return np.array(kept, dtype=np.intp)


def padded_area(sides_wh: ArrayLike, crop_wh: tuple[int, int], scale: float = 1.25) -> Float64:
    """(N,) areas of boxes (N, 2) after they are brought to the crop's aspect and enlarged.

    The area that HRNet's and SimCC's evaluation give their OKS-NMS.
    """
    sides = np.asarray(sides_wh, dtype=np.float64).reshape(-1, 2)
    aspect = crop_wh[0] / crop_wh[1]
    width = np.maximum(sides[:, 0], sides[:, 1] * aspect)
    area: Float64 = width * (width / aspect) * scale**2
    return area


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
    counted = np.ones_like(joints) if threshold is None else (joints > threshold).astype(np.float64)
    counts = np.maximum(counted.sum(axis=1), 1)
    scores: NDArray[np.float64] = boxes * (joints * counted).sum(axis=1) / counts
    return scores
