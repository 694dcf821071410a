"""Object keypoint similarity (OKS): distance of a joint from the truth, relative to person size.

OKS of a joint = exp(-d² / (2 s² k²)): d its distance in pixels, s² the person's area in pixels², k
twice the joint's sigma. Source: the COCO keypoint evaluation.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfpose_sdk.arrays import Bools, Float64

GOOD_OKS = 0.5  # a joint of at least this OKS counts as correct


def oks_variance(areas: ArrayLike, sigmas: ArrayLike) -> Float64:
    """(..., K) s² k² in pixels², for areas (...) in pixels² and (K,) sigmas."""
    area = np.asarray(areas, dtype=np.float64)
    variance: Float64 = area[..., None] * (2 * np.asarray(sigmas, dtype=np.float64)) ** 2
    return variance


def oks_at(squared_px: ArrayLike, areas: ArrayLike, sigmas: ArrayLike) -> Float64:
    """(..., K) OKS of single joints from their squared distances (..., K) in pixels²."""
    oks: Float64 = np.exp(-np.asarray(squared_px) / (2 * oks_variance(areas, sigmas)))
    return oks


def joint_oks(
    first: NDArray[np.floating], second: NDArray[np.floating], areas: ArrayLike, sigmas: ArrayLike
) -> Float64:
    """(..., K) OKS of the single joints of poses (..., K, 2) in pixels, which broadcast."""
    return oks_at(((first - second) ** 2).sum(axis=-1), areas, sigmas)


def mean_oks(joints: Float64, counted: Bools) -> Float64:
    """(...) mean of the joints' OKS (..., K) over those that count; 0 where none does."""
    total = np.where(counted, joints, 0.0).sum(axis=-1)
    mean: Float64 = total / np.maximum(counted.sum(axis=-1), 1)
    return mean


def good_distance(areas: ArrayLike, sigmas: ArrayLike) -> Float64:
    """(..., K) pixels at which a joint's OKS is GOOD_OKS."""
    distance: Float64 = np.sqrt(-2 * math.log(GOOD_OKS) * oks_variance(areas, sigmas))
    return distance
