"""Calibration of confidence and covariance, and the people with the largest errors.

Confidence is to be the probability that a joint lies within its OKS-good distance: a per-joint OKS
of at least 0.5, d ≤ 2σ · sqrt(2 ln 2 · area), the definition that confidence is calibrated to.
Covariance is to be that of a joint's error: of a Gaussian's, 39.3 % lie within 1 sigma, 86.5 %
within 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.data.annotations import is_counted
from cfpose_bench.data.dataset import KeypointDataset, Photos
from cfpose_sdk.arrays import Float64
from cfpose_sdk.oks import good_distance, oks_at
from cfpose_sdk.skeleton import Skeleton

BINS = 15


@dataclass(frozen=True)
class Judged:
    """One counted person and the pose that fits best, if the photo has any."""

    image_id: int
    box: tuple[float, float, float, float]  # xyxy
    truth: Float64  # (K, 3): x, y, visibility
    oks: float  # 0 without a pose
    xy: Float64 | None = None  # (K, 2)
    confidence: Float64 | None = None  # (K,)
    good: NDArray[np.bool_] | None = None  # (K,)
    covariance: Float64 | None = None  # (K, 2, 2), pixels²; None where the model gives none


def judge(photos: Photos, dataset: KeypointDataset, skeleton: Skeleton) -> list[Judged]:
    """Every counted person of the dataset with the pose of highest OKS in the photo."""
    judged = []
    for person in dataset.annotations["annotations"]:
        if person["image_id"] not in photos or not is_counted(person):
            continue
        truth = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
        x, y, w, h = person["bbox"]
        box = (x, y, x + w, y + h)
        poses = photos[person["image_id"]]
        if poses is None or len(poses) == 0:
            judged.append(Judged(person["image_id"], box, truth, 0.0))
            continue
        labelled = truth[:, 2] > 0
        distance = np.linalg.norm(poses.xy - truth[:, :2], axis=-1)  # (N, K)
        area = person["area"] + np.spacing(1)
        oks = oks_at(distance**2, area, skeleton.oks_sigmas)[:, labelled].mean(axis=1)
        best = int(oks.argmax())
        reach = good_distance(area, skeleton.oks_sigmas)
        covariance = poses.covariance
        judged.append(
            Judged(
                person["image_id"], box, truth, float(oks[best]), poses.xy[best].astype(np.float64),
                poses.confidence[best].astype(np.float64), distance[best] <= reach,
                None if covariance is None else covariance[best].astype(np.float64),
            )
        )  # fmt: skip
    return judged


def calibration(judged: list[Judged]) -> dict[str, Any] | None:
    """Expected calibration error over equal bins of confidence, with the bins themselves.

    `ece` = Σ n_b |mean confidence − share of good joints| / Σ n_b, over labelled joints of people
    who got a pose. None without any.
    """
    scores, good = [np.zeros(0)], [np.zeros(0, bool)]
    for person in judged:
        if person.confidence is not None and person.good is not None:
            labelled = person.truth[:, 2] > 0
            scores.append(person.confidence[labelled])
            good.append(person.good[labelled])
    score, right = np.concatenate(scores), np.concatenate(good)
    if not len(score):
        return None
    index = np.minimum((score * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for b in range(BINS):
        inside = index == b
        if n := int(inside.sum()):
            confidence, share = float(score[inside].mean()), float(right[inside].mean())
            bins.append({"confidence": confidence, "good": share, "joints": n})
            error += n * abs(confidence - share)
    return {"ece": error / len(score), "joints": len(score), "bins": bins}


def coverage(judged: list[Judged]) -> dict[str, Any] | None:
    """Shares of joints within 1 and 2 sigma of the truth by their covariance.

    Over labelled joints of people who got a pose. `left_out` counts those of them without a finite
    covariance, `joints` the others. None where no pose carries covariances.
    """
    posed = [person for person in judged if person.xy is not None]
    if all(person.covariance is None for person in posed):
        return None
    truth = np.array([person.truth for person in posed])  # (P, K, 3)
    absent = np.full((truth.shape[1], 2, 2), np.nan)
    given = [absent if person.covariance is None else person.covariance for person in posed]
    labelled, covariance = truth[..., 2] > 0, np.array(given)
    finite = labelled & np.isfinite(covariance).all(axis=(2, 3))
    shares: dict[str, Any] = {}
    if finite.any():
        xy = np.array([person.xy for person in posed])
        squared = squared_sigmas(xy[finite], covariance[finite], truth[finite][:, :2])
        shares = {f"within_{n}_sigma": float((squared <= n**2).mean()) for n in (1, 2)}
    return {**shares, "joints": int(finite.sum()), "left_out": int((labelled & ~finite).sum())}


def squared_sigmas(xy: Float64, covariance: Float64, truth: Float64) -> Float64:
    """(M,) squared Mahalanobis distances of joints (M, 2) from the truth under finite (M, 2, 2).

    Infinite where a matrix is not positive definite: nothing lies within an ellipse without area.
    """
    squared = np.full(len(xy), np.inf)
    proper = (covariance[:, 0, 0] > 0) & (np.linalg.det(covariance) > 0)
    error = (xy - truth)[proper][:, :, None]
    squared[proper] = (error * np.linalg.solve(covariance[proper], error)).sum(axis=(1, 2))
    return squared
