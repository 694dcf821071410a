"""Stage losses. B crops, K joints, `weight` (B, K) is 0 where no target exists.

Of several processes each has as many crops, but not as many labelled joints: these they count
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from cfpose_training.config import LabelConfig
from cfpose_training.nets.decode import full_precision
from cfpose_training.processes import shared_count
from cfpose_training.targets import gaussian_target, smoothed_target, softmax_gaussian_target


def simcc_loss(
    logits_xy: tuple[Tensor, Tensor],
    xy: Tensor,
    weight: Tensor,
    split_ratio: float,
    config: LabelConfig,
) -> Tensor:
    """KL of SimCC logits (B, K, bins_x), (B, K, bins_y) to the labels xy (B, K, 2) crop pixels.

    See LabelConfig for the kinds; each is 0 for a batch without labels. The logits come multiplied
    by `softmax_beta`.
    """
    divergence = sum(
        (
            _axis_divergence(full_precision(logits), xy[..., axis], split_ratio, config, axis)
            for axis, logits in enumerate(logits_xy)
        ),
        start=weight.new_zeros(()),
    )
    weighted = divergence * weight
    if config.kind == "smoothed":  # NMTCritierion: sum over joints, mean over crops
        return weighted.sum() / len(weight)
    if config.kind == "gaussian_mean":  # KLDiscretLoss: mean over crops, mean over joints
        return weighted.mean()
    return weighted.sum() / shared_count(weight.sum())


def _axis_divergence(
    logits: Tensor, coordinate: Tensor, split_ratio: float, config: LabelConfig, axis: int
) -> Tensor:
    """(B, K) divergence along one axis."""
    bins, sigma = logits.shape[-1], config.sigma_xy[axis]
    if config.kind == "smoothed":
        target = smoothed_target(coordinate, bins, split_ratio, config.epsilon)
    elif config.kind == "gaussian_softmax":
        beta = config.softmax_beta
        target = softmax_gaussian_target(coordinate, bins, split_ratio, sigma, beta)
    else:
        normalise = config.kind == "gaussian"
        target = gaussian_target(coordinate, bins, split_ratio, sigma, normalise=normalise)
    pointwise = F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="none")
    return pointwise.mean(dim=-1) if config.kind == "gaussian_mean" else pointwise.sum(dim=-1)


def refinement_loss(
    poses: Sequence[Tensor],
    target: Tensor,
    weight: Tensor,
    output_weights: tuple[float, float, float],
) -> Tensor:
    """Eq. (7): weighted mean L1 of the three refined poses (B, K, 2) in [-1, 1] to the target."""
    labelled = shared_count(weight.sum()) * 2
    return sum(
        (
            factor * ((pose - target).abs() * weight.unsqueeze(-1)).sum() / labelled
            for factor, pose in zip(output_weights, poses, strict=True)
        ),
        start=weight.new_zeros(()),
    )
