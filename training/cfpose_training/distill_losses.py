"""Distillation losses of stage 1, eq. (1)-(3). B crops, K joints, E limbs.

Poses are soft-argmax poses in crop pixels. Every loss but the mean form of `feature_loss` is summed
over what one crop holds and averaged over crops, as the label-smoothed KL is; the paper's alpha and
beta mean something on that scale only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cfpose_sdk.skeleton import Pair
from cfpose_training.nets.decode import full_precision, soft_argmax

LENGTH_EPSILON = 1e-6  # px², keeps the gradient of a limb of length 0 finite


def decay(epoch: int, epochs: int) -> float:
    """Eq. (3): gamma(t) = 1 - (t - 1) / T, epoch t from 1."""
    return 1 - (epoch - 1) / epochs


def feature_loss(student: Tensor, teacher: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """Eq. (1): squared difference of maps (B, C, h, w); mean over crops of its sum, or its mean."""
    squared = (full_precision(student) - full_precision(teacher)).square()
    return squared.mean() if reduction == "mean" else squared.sum() / len(squared)


def soft_pose(logits_xy: tuple[Tensor, Tensor], split_ratio: float, tau: float) -> Tensor:
    """(B, K, bins_x) and (B, K, bins_y) logits → (B, K, 2) crop pixels, differentiable."""
    return torch.stack([soft_argmax(logits, split_ratio, tau) for logits in logits_xy], dim=-1)


def pose_l1(student: Tensor, teacher: Tensor, joint_weights: Tensor | None = None) -> Tensor:
    """Eq. (2), first term: L1 of poses (B, K, 2), over all joints, labelled or not.

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
    """Eq. (2), second term: weighted L1 of limb lengths of poses (B, K, 2); weights (E,).

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


def logit_loss(
    student_xy: tuple[Tensor, Tensor], teacher_xy: tuple[Tensor, Tensor], temperature: float
) -> Tensor:
    """T² KL(teacher || student) of the bins softened by T, over both axes and all joints.

    Hinton et al., "Distilling the Knowledge in a Neural Network"; on SimCC bins as in DWPose.
    """
    total = student_xy[0].new_zeros((), dtype=full_precision(student_xy[0]).dtype)
    for student, teacher in zip(student_xy, teacher_xy, strict=True):
        log_student = F.log_softmax(full_precision(student) / temperature, dim=-1)
        log_teacher = F.log_softmax(full_precision(teacher) / temperature, dim=-1)
        total = total + F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return total * temperature**2 / len(student_xy[0])


def _limb_vectors(poses: Tensor, limbs: Sequence[Pair]) -> Tensor:
    """(B, K, 2) → (B, E, 2)."""
    ends = _limb_ends(limbs, poses.device)
    return poses[:, ends[:, 0]] - poses[:, ends[:, 1]]


def _limb_ends(limbs: Sequence[Pair], device: torch.device) -> Tensor:
    """(E, 2) indices of joints."""
    return torch.tensor(limbs, device=device, dtype=torch.long).reshape(-1, 2)


def _lengths(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(dim=-1) + LENGTH_EPSILON).sqrt()
