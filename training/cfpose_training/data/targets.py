"""Keypoints → SimCC target distributions and target weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cfpose_training.config import LabelConfig


def label_weights(
    xy: Tensor, bins_xy: tuple[int, int], split_ratio: float, config: LabelConfig
) -> Tensor:
    """(B, K) 0/1: whether a target exists for crop-pixel coordinates (B, K, 2).

    A smoothed label needs its bin inside the crop; a Gaussian one needs its 3-sigma window to
    touch the crop (SimCC's JointsDataset).
    """
    limits = xy.new_tensor(bins_xy)
    bins = xy * split_ratio
    if config.kind == "smoothed":
        inside = (bins.round() >= 0) & (bins.round() < limits)
    else:
        reach = 3 * xy.new_tensor(config.sigma_xy)
        inside = (bins + reach >= 0) & (bins - reach < limits)
    return inside.all(dim=-1).to(xy.dtype)


def smoothed_target(coordinate: Tensor, bins: int, split_ratio: float, epsilon: float) -> Tensor:
    """(B, K) pixels → (B, K, bins): 1 − ε on the nearest bin, ε / (bins − 1) on every other."""
    centre = (coordinate * split_ratio).round().clamp(0, bins - 1).long()
    rest = epsilon / (bins - 1)
    target = coordinate.new_full((*coordinate.shape, bins), rest)
    return target.scatter_(-1, centre.unsqueeze(-1), 1 - epsilon)


def gaussian_target(
    coordinate: Tensor, bins: int, split_ratio: float, sigma_bins: float, *, normalise: bool
) -> Tensor:
    """(B, K) pixels → (B, K, bins): Gaussian density around the unrounded bin position.

    `normalise` makes the bins sum to 1, also where the crop's edge cuts the Gaussian.
    """
    index = torch.arange(bins, dtype=coordinate.dtype, device=coordinate.device)
    distance = (index - (coordinate * split_ratio).unsqueeze(-1)) / sigma_bins
    if normalise:
        return torch.softmax(-(distance**2) / 2, dim=-1)
    return torch.exp(-(distance**2) / 2) / (sigma_bins * math.sqrt(2 * math.pi))


def softmax_gaussian_target(
    coordinate: Tensor, bins: int, split_ratio: float, sigma_bins: float, beta: float
) -> Tensor:
    """(B, K) pixels → (B, K, bins): softmax of beta · exp(−d² / 2σ²), d from the unrounded bin.

    Source: RTMPose, whose Gaussian stands on the nearest bin.
    """
    index = torch.arange(bins, dtype=coordinate.dtype, device=coordinate.device)
    distance = (index - (coordinate * split_ratio).unsqueeze(-1)) / sigma_bins
    return torch.softmax(beta * torch.exp(-(distance**2) / 2), dim=-1)
