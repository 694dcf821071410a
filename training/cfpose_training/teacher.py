"""What a frozen teacher says of a batch of crops, and how sure it is."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from cfpose_sdk.spec import ModelSpec
from cfpose_training.flip_test import average_logits, unmirror_logits
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.pose_net import PoseNet, PoseOutput


@torch.no_grad()
def ask_teacher(
    teacher: PoseNet, images: Tensor, spec: ModelSpec, *, flip: bool, bf16: bool = False
) -> PoseOutput:
    """The teacher's answer to normalised crops (B, 3, H, W); it carries no gradient.

    With `flip` its logits are those of the mean probability of the crops and their mirror images.
    The maps are those of the crops themselves: the student is compared in its own view. With `bf16`
    it computes in bfloat16, and its answer is in bfloat16.
    """
    # the run's own autocast stays as it is where bf16 is not asked for
    with torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext():
        direct: PoseOutput = teacher(images)
        if not flip:
            return direct
        mirrored: PoseOutput = teacher(images.flip(3))
    x_logits, y_logits = average_logits(direct[:2], unmirror_logits(mirrored[:2], spec))
    return direct._replace(x_logits=x_logits, y_logits=y_logits)


@torch.no_grad()
def confidence_weights(answer: PoseOutput, spec: ModelSpec, counted: Tensor) -> Tensor:
    """(B, K) raw scores of the teacher's joints over their mean where `counted` (B, K) is > 0.

    The mean weight of counted joints is 1, so the size of a loss does not depend on the switch.
    """
    x_logits, y_logits = answer[:2]
    _, score = decode_simcc(x_logits, y_logits, spec.split_ratio, spec.decode)
    taken = (counted > 0).to(score.dtype)
    mean = (score * taken).sum() / taken.sum().clamp(min=1)
    return score / mean.clamp(min=torch.finfo(score.dtype).tiny)
