"""The base of every stage, and the predictions of a frozen teacher."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cfpose_sdk.spec import ModelSpec
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.flip import average_logits, unmirror_logits
from cfpose_training.nets.pose_net import PoseNet, PoseOutput


@torch.no_grad()
def ask_teacher(
    teacher: PoseNet, images: Tensor, spec: ModelSpec, *, flip: bool, bf16: bool = False
) -> PoseOutput:
    """The teacher's output for normalised crops (B, 3, H, W), without gradients.

    With `flip` its logits are those of the mean probability of the crops and their mirror images.
    The maps are those of the crops themselves: the student is compared in its own view. With `bf16`
    it computes in bfloat16, and its output is bfloat16.
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
    is_counted = (counted > 0).to(score.dtype)
    mean = (score * is_counted).sum() / is_counted.sum().clamp(min=1)
    return score / mean.clamp(min=torch.finfo(score.dtype).tiny)


class Stage(nn.Module):
    """What the loop trains: `trainable` holds every parameter that the optimiser may touch."""

    trainable: nn.Module

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """The loop calls this when epoch `epoch`, from 1, of `epochs` begins or is resumed."""

    def epoch_figures(self, batch: Batch) -> dict[str, float]:
        """Figures for the log, taken on an epoch's first batch before its step; here none.

        The loop puts back the random state, buffers, gradients and modes that this changes. Every
        process calls it, because the losses count their joints together.
        """
        return {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch; `loss` is what is minimised."""
        raise NotImplementedError
