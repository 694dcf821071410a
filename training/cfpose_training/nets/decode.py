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
from torch.nn import functional

from cfpose_sdk.keypoints import (
    AREA_SHARE,
    MIN_AREA_PX,
    SUBBIN_RADIUS_PX,
    SUBBIN_STEPS,
    WINDOW_STEPS,
)
from cfpose_sdk.spec import Decode

NO_LOGIT = -1e30  # finite, so that no arithmetic on it is undefined


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
    logits = _both_axes(x_logits, y_logits)
    centre, scores = _peaks(logits, split_ratio, decode)
    xy = centre.squeeze(3) / split_ratio
    score = scores.amax(dim=2) if decode == "argmax" else scores.prod(dim=2)
    if windows:
        widths = person_area(xy).sqrt().unsqueeze(1) * xy.new_tensor(windows)
        xy = _windowed_centroids(logits, xy, widths, split_ratio)
    return xy, score


def person_area(xy: Tensor) -> Tensor:
    """(B,) px² of poses (B, K, 2): `cfpose_sdk.keypoints.person_area` in torch."""
    extent = xy.amax(dim=1) - xy.amin(dim=1)
    return (AREA_SHARE * extent.prod(dim=1)).clamp_min(MIN_AREA_PX)


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
    values = _both_axes(x_logits, y_logits)
    if temperature != 1:
        values = values / temperature
    bins = torch.arange(values.shape[3], dtype=values.dtype, device=values.device)
    offset = bins / split_ratio - full_precision(xy).unsqueeze(3)
    moments = (torch.softmax(values, dim=3) * offset.square()).sum(dim=3)
    variances = moments + 1 / (12 * split_ratio**2)
    if isotropy:
        logs = torch.log(variances)
        variances = torch.exp(logs + isotropy * (logs.mean(dim=2, keepdim=True) - logs))
    return variances.unsqueeze(3) * _unit(variances)


def expected_oks(xy: Tensor, covariance: Tensor, oks_sigmas: Sequence[float]) -> Tensor:
    """Raw score (B, K) of xy (B, K, 2) and (B, K, 2, 2): `cfpose_sdk.keypoints.expected_oks`."""
    area = person_area(full_precision(xy))
    squared_k = torch.tensor([(2 * s) ** 2 for s in oks_sigmas], dtype=area.dtype)
    reach = area.unsqueeze(1) * squared_k.to(area.device)
    variances = (covariance * _unit(covariance)).sum(dim=3)
    return torch.rsqrt((1 + variances / reach.unsqueeze(2)).prod(dim=2))


def widen(covariance: Tensor, confidence: Tensor, odds_power: float) -> Tensor:
    """Covariances (B, K, 2, 2) over the odds of the confidence: `cfpose_sdk.keypoints.widen`."""
    if odds_power == 0:
        return covariance
    clipped = full_precision(confidence).clamp(1e-6, 1 - 1e-6)
    factor = torch.exp(-odds_power * (torch.log(clipped) - torch.log(1 - clipped)))
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


def _both_axes(x_logits: Tensor, y_logits: Tensor) -> Tensor:
    """(B, K, bins_x) and (B, K, bins_y) as one (B, K, 2, bins): every operator then runs once.

    The shorter axis gets bins that no softmax sees.
    """
    axes = [full_precision(x_logits), full_precision(y_logits)]
    longest = max(axis.shape[2] for axis in axes)
    padded = [
        functional.pad(axis, (0, longest - axis.shape[2]), value=NO_LOGIT)
        if axis.shape[2] < longest
        else axis
        for axis in axes
    ]
    return torch.stack(padded, dim=2)


def _peaks(logits: Tensor, split_ratio: float, decode: Decode) -> tuple[Tensor, Tensor]:
    """Bins (B, K, 2, 1) and scores (B, K, 2) of (B, K, 2, bins) logits."""
    # dims counted from the front: onnxruntime reduces a negative axis wrongly when there are no
    # people
    mass = torch.softmax(logits, dim=3)
    centre = logits.argmax(dim=3, keepdim=True).to(logits.dtype)
    if decode == "argmax":
        return centre, mass.amax(dim=3)
    # in units of the window's radius
    radius = SUBBIN_RADIUS_PX * split_ratio
    bins = torch.arange(logits.shape[3], dtype=logits.dtype, device=logits.device) / radius
    centre, windowed = centre / radius, mass
    for _ in range(SUBBIN_STEPS):
        # moving by the mean offset, not to the mean bin, keeps float32 exact far from bin 0
        offset = bins - centre
        windowed = mass * (1 - offset.square()).clamp_min(0)
        centre = centre + (windowed * offset).sum(dim=3, keepdim=True) / windowed.sum(
            dim=3, keepdim=True
        )
    return centre * radius, windowed.sum(dim=3)


def _windowed_centroids(
    logits: Tensor, start: Tensor, widths: Tensor, split_ratio: float
) -> Tensor:
    """Mean shift of (B, K, 2) pixels under Gaussian windows of (B, K) pixels."""
    pixels = torch.arange(logits.shape[3], dtype=logits.dtype, device=logits.device) / split_ratio
    sharpness = (math.sqrt(0.5) / widths.clamp_min(1 / split_ratio)).unsqueeze(2).unsqueeze(3)
    centre = start.unsqueeze(3)
    for _ in range(WINDOW_STEPS):
        # the softmax of a sum is the windowed bins and their normalisation in one operator
        offset = pixels - centre
        windowed = torch.softmax(logits - (offset * sharpness).square(), dim=3)
        centre = centre + (windowed * offset).sum(dim=3, keepdim=True)
    return centre.squeeze(3)


def _unit(like: Tensor) -> Tensor:
    """The unit matrix (2, 2), for products: diag_embed and diagonal leave worse in the graph."""
    return torch.tensor([[1, 0], [0, 1]], dtype=like.dtype, device=like.device)
