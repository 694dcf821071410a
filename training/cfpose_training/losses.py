"""The losses of both stages, with the paper's equation numbers. B crops, K joints, E limbs.

    SimCC's label losses  `simcc_loss`
    eq. (1), features     `feature_loss`
    eq. (2), pose         `pose_l1`; its second term, structure (limbs): `structure_loss`
    gamma(t)              `decay`, of eq. (1) and (2) in the loss of stage 1
    eq. (6)-(7), stage 2  `refinement_loss`, on the poses that RefinerStage makes
    not in the paper      `logit_loss`, `refinement_oks_loss`

`weight` (B, K) is 0 where no target exists. All processes have the same number of crops, but not
of labelled joints; where a loss is a mean over labelled joints, they count these together.

The distillation losses compare soft-argmax poses in crop pixels. Each is summed over one crop and
averaged over crops, as the label-smoothed KL is (except `feature_loss` with "mean"). The paper's
alpha and beta fit this scale only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cfpose_sdk.skeleton import Pair
from cfpose_training.config import LabelConfig
from cfpose_training.data.targets import gaussian_target, smoothed_target, softmax_gaussian_target
from cfpose_training.nets.decode import full_precision, soft_argmax
from cfpose_training.processes import shared_count


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
    """Eq. (6)-(7), stage 2: mean L1 of the three refined poses to the target, weighted and added.

    Poses are (B, K, 2) in [-1, 1]; only joints with a weight count. `output_weights` are those of
    the three poses.
    """
    labelled = shared_count(weight.sum()) * 2
    return sum(
        (
            factor * ((pose - target).abs() * weight.unsqueeze(-1)).sum() / labelled
            for factor, pose in zip(output_weights, poses, strict=True)
        ),
        start=weight.new_zeros(()),
    )


LEAST_REACH_PX = 1.0  # a small person's joint is not forgiven less


def refinement_oks_loss(
    poses: Sequence[Tensor],
    target: Tensor,
    weight: Tensor,
    reach: Tensor,
    output_weights: tuple[float, float, float],
) -> Tensor:
    """In the place of eq. (6)-(7): 1 - OKS of each refined joint, averaged, weighted and added.

    Poses and target are (B, K, 2) in crop pixels, reach (B, K) is how far OKS forgives: s k of
    exp(-d² / (2 s² k²)). L1 draws a joint of two possible places between them; this does not.
    """
    sharpness = 0.5 / reach.clamp(min=LEAST_REACH_PX).square()
    labelled = shared_count(weight.sum())
    total = weight.new_zeros(())
    for factor, pose in zip(output_weights, poses, strict=True):
        oks = torch.exp(-sharpness * (pose - target).square().sum(dim=-1))
        total = total + factor * ((1 - oks) * weight).sum() / labelled
    return total


LENGTH_EPSILON = 1e-6  # px², keeps the gradient of a limb of length 0 finite


def decay(epoch: int, epochs: int) -> float:
    """gamma(t) = 1 - (t - 1) / T, the factor of both distillation terms; t from 1."""
    return 1 - (epoch - 1) / epochs


def feature_loss(student: Tensor, teacher: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """Eq. (1), L_fea: squared difference of the student's and the teacher's maps (B, C, h, w).

    "sum": summed over a crop, averaged over crops; "mean": averaged over all, as the paper prints.
    """
    squared = (full_precision(student) - full_precision(teacher)).square()
    return squared.mean() if reduction == "mean" else squared.sum() / len(squared)


def soft_pose(logits_xy: tuple[Tensor, Tensor], split_ratio: float, tau: float) -> Tensor:
    """(B, K, bins_x) and (B, K, bins_y) logits → (B, K, 2) crop pixels, differentiable."""
    return torch.stack([soft_argmax(logits, split_ratio, tau) for logits in logits_xy], dim=-1)


def pose_l1(student: Tensor, teacher: Tensor, joint_weights: Tensor | None = None) -> Tensor:
    """Eq. (2), first term, L1: difference of poses (B, K, 2), over all joints, labelled or not.

    `joint_weights` (B, K): of each joint's two coordinates.
    """
    difference = (student - teacher).abs()
    if joint_weights is not None:
        difference = difference * joint_weights.unsqueeze(-1)
    return difference.sum() / len(student)


def structure_loss(
    student: Tensor,
    teacher: Tensor,
    limbs: Sequence[Pair],
    weights: Tensor,
    form: Literal["length", "vector"] = "length",
    joint_weights: Tensor | None = None,
) -> Tensor:
    """Eq. (2), second term, L_cst: weighted L1 of limb lengths of poses (B, K, 2); weights (E,).

    `vector` compares the limbs themselves, so their direction counts too. With `joint_weights`
    (B, K) a limb also weighs as the lighter of its ends: it is known no better.
    """
    limbs_student, limbs_teacher = _limb_vectors(student, limbs), _limb_vectors(teacher, limbs)
    if form == "vector":
        difference = (limbs_student - limbs_teacher).abs().sum(dim=-1)
    else:
        difference = (_lengths(limbs_student) - _lengths(limbs_teacher)).abs()
    if joint_weights is not None:
        weights = weights * joint_weights[:, _limb_ends(limbs, student.device)].amin(dim=2)
    return (difference * weights).sum() / len(student)


def logit_loss(student_xy: tuple[Tensor, Tensor], teacher_xy: tuple[Tensor, Tensor]) -> Tensor:
    """KL(teacher || student) of the bins, over both axes and all joints, as in DWPose."""
    total = student_xy[0].new_zeros((), dtype=full_precision(student_xy[0]).dtype)
    for student, teacher in zip(student_xy, teacher_xy, strict=True):
        log_student = F.log_softmax(full_precision(student), dim=-1)
        log_teacher = F.log_softmax(full_precision(teacher), dim=-1)
        total = total + F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return total / len(student_xy[0])


def _limb_vectors(poses: Tensor, limbs: Sequence[Pair]) -> Tensor:
    """(B, K, 2) → (B, E, 2)."""
    ends = _limb_ends(limbs, poses.device)
    return poses[:, ends[:, 0]] - poses[:, ends[:, 1]]


def _limb_ends(limbs: Sequence[Pair], device: torch.device) -> Tensor:
    """(E, 2) indices of joints."""
    return torch.tensor(limbs, device=device, dtype=torch.long).reshape(-1, 2)


def _lengths(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(dim=-1) + LENGTH_EPSILON).sqrt()
