"""SimCC bin logits → keypoints, in torch: the twin of `cfpose_sdk.keypoints`.

Used by the training losses and inside the exported graph, so it holds to plain operators (no
NonZero, no data-dependent shape). Half-precision logits are decoded in float32; no operator here
is one that autocast lowers. B = 0 is valid everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cfpose_sdk.keypoints import (
    AREA_SHARE,
    MIN_AREA_PX,
    SUBBIN_RADIUS_PX,
    SUBBIN_STEPS,
    WINDOW_STEPS,
)
from cfpose_sdk.spec import Decode


def decode_simcc(
    x_logits: Tensor,
    y_logits: Tensor,
    split_ratio: float,
    decode: Decode = "subbin",
    windows: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Decode (B, K, bins_x) and (B, K, bins_y) logits as `cfpose_sdk.keypoints.decode_simcc` does.

    Returns xy (B, K, 2) in crop pixels and the raw score (B, K) in [0, 1].
    """
    x, x_score = _decode_axis(x_logits, split_ratio, decode)
    y, y_score = _decode_axis(y_logits, split_ratio, decode)
    score = torch.maximum(x_score, y_score) if decode == "argmax" else x_score * y_score
    xy = torch.stack([x, y], dim=-1)
    if windows:
        widths = person_area(xy).sqrt().unsqueeze(1) * xy.new_tensor(windows)
        axes = [
            _windowed_centroid(logits, xy[:, :, axis], widths, split_ratio)
            for axis, logits in enumerate((x_logits, y_logits))
        ]
        xy = torch.stack(axes, dim=2)
    return xy, score


def person_area(xy: Tensor) -> Tensor:
    """(B,) px² of poses (B, K, 2): `cfpose_sdk.keypoints.person_area` in torch."""
    extent = xy.amax(dim=1) - xy.amin(dim=1)
    return (AREA_SHARE * extent[:, 0] * extent[:, 1]).clamp_min(MIN_AREA_PX)


def covariance(
    x_logits: Tensor,
    y_logits: Tensor,
    xy: Tensor,
    split_ratio: float,
    *,
    temperature: float = 1.0,
    isotropy: float = 0.0,
) -> Tensor:
    """(B, K, 2, 2) crop pixels² of keypoints xy: `cfpose_sdk.keypoints.covariance` in torch."""
    centres = full_precision(xy)
    moments = []
    for axis, logits in enumerate((x_logits, y_logits)):
        values = full_precision(logits)
        if temperature != 1:
            values = values / temperature
        bins = torch.arange(values.shape[2], dtype=values.dtype, device=values.device)
        offset = bins / split_ratio - centres[:, :, axis : axis + 1]
        second = (torch.softmax(values, dim=2) * offset.square()).sum(dim=2)
        moments.append(second + 1 / (12 * split_ratio**2))
    # a product with the unit matrix, not diag_embed: that leaves a scatter in the graph
    unit = torch.tensor([[1, 0], [0, 1]], dtype=moments[0].dtype, device=moments[0].device)
    variances = torch.stack(moments, dim=2)
    if isotropy:
        logs = torch.log(variances)
        variances = torch.exp(logs + isotropy * (logs.mean(dim=2, keepdim=True) - logs))
    return variances.unsqueeze(3) * unit


def expected_oks(xy: Tensor, covariance: Tensor, oks_sigmas: Sequence[float]) -> Tensor:
    """Raw score (B, K) of xy (B, K, 2) and (B, K, 2, 2): `cfpose_sdk.keypoints.expected_oks`."""
    area = person_area(full_precision(xy))
    squared_k = torch.tensor([(2 * s) ** 2 for s in oks_sigmas], dtype=area.dtype)
    reach = area.unsqueeze(1) * squared_k.to(area.device)
    along_x, along_y = 1 + covariance[..., 0, 0] / reach, 1 + covariance[..., 1, 1] / reach
    return 1 / torch.sqrt(along_x * along_y)


def widen(covariance: Tensor, confidence: Tensor, odds_power: float) -> Tensor:
    """Covariances (B, K, 2, 2) over the odds of the confidence: `cfpose_sdk.keypoints.widen`."""
    if odds_power == 0:
        return covariance
    sure = full_precision(confidence).clamp(1e-6, 1 - 1e-6)
    factor = torch.exp(-odds_power * (torch.log(sure) - torch.log(1 - sure)))
    return covariance * factor.unsqueeze(2).unsqueeze(3)


def soft_argmax(logits: Tensor, split_ratio: float, tau: float) -> Tensor:
    """Mean coordinate in crop pixels under softmax(tau * logits): (B, K, bins) → (B, K).

    Differentiable over the whole axis. The paper does not state tau; under label smoothing 1 pulls
    towards the centre of the axis, 2 leaves less than 0.03 px of that.
    """
    values = full_precision(logits)
    bins = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device)
    return (torch.softmax(tau * values, dim=-1) * bins).sum(dim=-1) / split_ratio


def calibrate(score: Tensor, calibration: tuple[float, float]) -> Tensor:
    """Raw score → confidence: sigmoid(slope * logit(score) + intercept) (Platt scaling)."""
    slope, intercept = calibration
    clipped = full_precision(score).clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid(slope * (torch.log(clipped) - torch.log(1 - clipped)) + intercept)


def full_precision(values: Tensor) -> Tensor:
    """float32, or float64 where it already is: coordinates are never kept in half precision."""
    return values if values.dtype == torch.float64 else values.float()


def _decode_axis(logits: Tensor, split_ratio: float, decode: Decode) -> tuple[Tensor, Tensor]:
    """Coordinate in pixels and score of (B, K, bins) logits along one axis."""
    values = full_precision(logits)
    # dim=2, not -1: onnxruntime reduces a negative axis wrongly when there are no people
    mass = torch.softmax(values, dim=2)
    centre = values.argmax(dim=2).to(values.dtype)
    if decode == "argmax":
        return centre / split_ratio, mass.amax(dim=2)
    bins = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device)
    radius = SUBBIN_RADIUS_PX * split_ratio
    near = mass
    for _ in range(SUBBIN_STEPS):
        # moving by the mean offset, not to the mean bin, keeps float32 exact far from bin 0
        offset = bins - centre.unsqueeze(2)
        near = mass * (1 - (offset / radius).square()).clamp_min(0)
        centre = centre + (near * offset).sum(dim=2) / near.sum(dim=2)
    return centre / split_ratio, near.sum(dim=2)


def _windowed_centroid(logits: Tensor, start: Tensor, widths: Tensor, split_ratio: float) -> Tensor:
    """Mean shift of (B, K) coordinates in pixels under Gaussian windows of (B, K) pixels."""
    values = full_precision(logits)
    pixels = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device) / split_ratio
    sharpness = (math.sqrt(0.5) / widths.clamp_min(1 / split_ratio)).unsqueeze(2)
    centre = start
    for _ in range(WINDOW_STEPS):
        # the softmax of a sum is the windowed bins and their normalisation in one operator
        offset = pixels - centre.unsqueeze(2)
        near = torch.softmax(values - (offset * sharpness).square(), dim=2)
        centre = centre + (near * offset).sum(dim=2)
    return centre
