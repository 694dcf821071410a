"""The flip test: average a network's predictions for each crop and for its mirror image.

As in SimCC's evaluation: the mirrored x vector is reversed, left and right joints are swapped, the
vector is shifted, and the probabilities of both views are averaged (SimDR).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.decode import decode_simcc, full_precision
from cfpose_training.nets.pose_net import RefinedPoseNet

Logits = tuple[Tensor, Tensor]  # along x (B, K, bins_x) and along y (B, K, bins_y)
TINY = 1e-37  # a probability that float32 still holds, so that no logarithm is infinite


def flip_test(network: nn.Module, images: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Pose (B, K, 2) in crop pixels and raw score (B, K) of normalised crops (B, 3, H, W).

    `network` is a PoseNet, or a RefinedPoseNet: there the averaged coarse pose is refined in both
    views, and the two refined poses are averaged. (The paper is silent on it.)
    """
    mirrored = images.flip(3)
    pose = network.pose if isinstance(network, RefinedPoseNet) else network
    assert isinstance(pose, nn.Module)
    direct, other = pose(images), pose(mirrored)
    x_logits, y_logits = average_logits(
        (direct.x_logits, direct.y_logits), unmirror_logits((other.x_logits, other.y_logits), spec)
    )
    coarse, score = decode_simcc(x_logits, y_logits, spec.split_ratio, spec.decode, spec.windows)
    if not isinstance(network, RefinedPoseNet):
        return coarse, score
    order = flip_order(spec, images.device)
    there = network.refiner.apply_to(other.taps, mirror_xy(coarse, spec), score[:, order])
    here = network.refiner.apply_to(direct.taps, coarse, score)
    return (here + mirror_xy(there, spec)) / 2, score


def mirror_xy(xy: Tensor, spec: ModelSpec) -> Tensor:
    """(B, K, 2) of a crop ↔ of its mirror image: x → W − 1 − x, left and right joints swapped."""
    swapped = xy[:, flip_order(spec, xy.device)]
    return torch.stack([spec.size_wh[0] - 1 - swapped[..., 0], swapped[..., 1]], dim=-1)


def unmirror_logits(logits: Logits, spec: ModelSpec) -> Logits:
    """x and y logits (B, K, bins) of mirrored crops → of the crops themselves.

    A joint at pixel x lies at W − 1 − x in the mirror image. Its bin there, reversed, is k − 1 bins
    (k a pixel) right of bin k · x, so the vector moves left by that much; its end repeats. Exact
    where k is whole; else the two nearest shifts are interpolated.
    """
    order = flip_order(spec, logits[0].device)
    reversed_x = logits[0][:, order].flip(2)
    shift = spec.split_ratio - 1
    whole = int(shift // 1)
    part = shift - whole
    x_logits = _shifted_left(reversed_x, whole)
    if part:
        x_logits = (1 - part) * x_logits + part * _shifted_left(reversed_x, whole + 1)
    return x_logits, logits[1][:, order]


def average_logits(direct: Logits, other: Logits) -> Logits:
    """Logits of the mean of two views' probabilities (SimDR): the logarithms of that mean."""
    x, y = (
        ((_softmax(one) + _softmax(two)) / 2).clamp_min(TINY).log()
        for one, two in zip(direct, other, strict=True)
    )
    return x, y


def flip_order(spec: ModelSpec, device: torch.device) -> Tensor:
    """(K,) for each joint the one that takes its place in a mirrored image."""
    return torch.from_numpy(spec.skeleton.flip_order).to(device)


def _shifted_left(values: Tensor, bins: int) -> Tensor:
    """(B, K, n) moved by whole bins, negative to the right; the last value at the end repeats."""
    count = values.shape[2]
    index = torch.arange(count, device=values.device).add(bins).clamp(0, count - 1)
    return values[:, :, index]


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(full_precision(logits), dim=2)
