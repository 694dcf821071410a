"""The flip test: a network sees each crop and its mirror image, and the two answers are averaged.

As in SimCC's evaluation: the mirrored x vector is reversed, left and right joints are swapped, the
vector is shifted, and the probabilities of both views are averaged (SimDR).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.decode import decode_simcc, full_precision
from cfpose_training.nets.pose_net import PoseOutput, RefinedPoseNet


def flip_test(network: nn.Module, images: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Pose (B, K, 2) in crop pixels and raw score (B, K) of normalised crops (B, 3, H, W).

    `network` is a PoseNet, or a RefinedPoseNet: there the averaged coarse pose is refined in both
    views, and the two refined poses are averaged. (The paper is silent on it.)
    """
    mirrored = images.flip(3)
    pose = network.pose if isinstance(network, RefinedPoseNet) else network
    assert isinstance(pose, nn.Module)
    direct, other = pose(images), pose(mirrored)
    x_logits, y_logits = average_logits(direct, other, spec)
    coarse, score = decode_simcc(x_logits, y_logits, spec.split_ratio, spec.decode)
    if not isinstance(network, RefinedPoseNet):
        return coarse, score
    order = _flip_order(spec, images.device)
    there = network.refiner(other.taps, mirror_xy(coarse, spec), score[:, order])[-1]
    here = network.refiner(direct.taps, coarse, score)[-1]
    return (here + mirror_xy(there, spec)) / 2, score


def mirror_xy(xy: Tensor, spec: ModelSpec) -> Tensor:
    """(B, K, 2) of a crop ↔ of its mirror image: x → W − 1 − x, left and right joints swapped."""
    swapped = xy[:, _flip_order(spec, xy.device)]
    return torch.stack([spec.size_wh[0] - 1 - swapped[..., 0], swapped[..., 1]], dim=-1)


def unmirror_logits(output: PoseOutput, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Logits (B, K, bins) of mirrored crops → of the crops themselves.

    A joint at pixel x lies at W − 1 − x in the mirror image. Its bin there, reversed, is k − 1 bins
    (k a pixel) right of bin k · x, so the vector moves left by that much; its end repeats. Exact
    where k is whole; else the two nearest shifts are interpolated.
    """
    order = _flip_order(spec, output.x_logits.device)
    reversed_x = output.x_logits[:, order].flip(2)
    shift = spec.split_ratio - 1
    whole = int(shift // 1)
    part = shift - whole
    x_logits = _shifted_left(reversed_x, whole)
    if part:
        x_logits = (1 - part) * x_logits + part * _shifted_left(reversed_x, whole + 1)
    return x_logits, output.y_logits[:, order]


def average_logits(
    direct: PoseOutput, mirrored: PoseOutput, spec: ModelSpec
) -> tuple[Tensor, Tensor]:
    """Logits (B, K, bins) whose softmax is the mean of two views' probabilities.

    `mirrored` is what the network says of the mirrored crops.
    """
    averaged = []
    for one, two in zip(direct[:2], unmirror_logits(mirrored, spec), strict=True):
        views = (F.log_softmax(full_precision(logits), dim=2) for logits in (one, two))
        # in logarithms: finite where the mean itself would underflow
        averaged.append(torch.logaddexp(*views) - math.log(2))
    return averaged[0], averaged[1]


def _shifted_left(values: Tensor, bins: int) -> Tensor:
    """(B, K, n) moved by whole bins, negative to the right; the last value at the end repeats."""
    count = values.shape[2]
    index = torch.arange(count, device=values.device).add(bins).clamp(0, count - 1)
    return values[:, :, index]


def _flip_order(spec: ModelSpec, device: torch.device) -> Tensor:
    return torch.from_numpy(spec.skeleton.flip_order).to(device)
