"""Stage 1 with a teacher: L_s1 = L_KL + gamma (alpha L_fea + beta (L1 + L_cst))."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import DistillConfig, LabelConfig
from cfpose_training.data import Batch
from cfpose_training.distill_losses import (
    decay,
    feature_loss,
    logit_loss,
    pose_l1,
    soft_pose,
    structure_loss,
)
from cfpose_training.losses import simcc_loss
from cfpose_training.nets.pose_net import PoseNet, PoseOutput
from cfpose_training.stages import Normalise, Stage

TEACHER_FIELDS = ("skeleton", "size_wh", "split_ratio", "mean_rgb", "std_rgb")


def check_teacher(teacher: ModelSpec, student: ModelSpec) -> None:
    """Raise TrainingError unless both read the same crops and speak of the same bins."""
    for name in TEACHER_FIELDS:
        theirs, ours = getattr(teacher, name), getattr(student, name)
        if theirs != ours:
            if name == "skeleton":
                theirs, ours = theirs.keypoints, ours.keypoints
            raise TrainingError(
                f"the teacher {teacher.name} has {name} {theirs}, "
                f"the student {student.name} has {ours}; train a teacher with this recipe"
            )


class AlignedStudent(nn.Module):
    """The student, and the 1x1 convolution that lifts its 1/4 map to the teacher's channels.

    The convolution is trained and resumed with the student; checkpoints hold the student alone.
    """

    def __init__(self, student: PoseNet, align: nn.Conv2d | None) -> None:
        super().__init__()
        self.student = student
        self.align = align

    def forward(self, images: Tensor) -> tuple[PoseOutput, Tensor | None]:
        output = self.student(images)
        return output, None if self.align is None else self.align(output.taps.quarter)


class DistillStage(Stage):
    """The student on labels and on what a frozen teacher says of the same crops.

    The teacher is in eval mode always and gets no gradient; `limb_weights` (E,) belong to the
    spec's limbs. Raises TrainingError when the teacher's spec does not fit.
    """

    trainable: AlignedStudent
    limb_weights: Tensor

    def __init__(
        self,
        network: PoseNet,
        spec: ModelSpec,
        labels: LabelConfig,
        config: DistillConfig,
        teacher: PoseNet,
        teacher_spec: ModelSpec,
        limb_weights: Tensor,
    ) -> None:
        super().__init__()
        check_teacher(teacher_spec, spec)
        widths = network.backbone.config.width, teacher.backbone.config.width
        self.trainable = AlignedStudent(network, nn.Conv2d(*widths, 1) if config.kd_fea else None)
        self.teacher = teacher.requires_grad_(False).eval()
        self.normalise = Normalise(spec.mean_rgb, spec.std_rgb)
        self.register_buffer("limb_weights", limb_weights.float(), persistent=False)
        self.spec = spec
        self.labels = labels
        self.config = config
        self.gamma = 1.0

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def set_epoch(self, epoch: int, epochs: int) -> None:
        self.gamma = decay(epoch, epochs)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = self.normalise(batch["crops"])
        with torch.no_grad():
            teacher = self.teacher(images)
        output, aligned = self.trainable(images)
        kl = simcc_loss(
            (output.x_logits, output.y_logits),
            batch["xy"],
            batch["weight"],
            self.spec.split_ratio,
            self.labels,
        )
        terms = self._terms(output, aligned, teacher)
        config = self.config
        factors = {
            "fea": config.alpha,
            "l1": config.beta,
            "cst": config.beta * config.cst_ratio,
            "logit": config.logit_weight,
        }
        distilled = sum((factors[name] * term for name, term in terms.items()), kl.new_zeros(()))
        named = {name: term.detach() for name, term in terms.items()}
        return {"loss": kl + self.gamma * distilled, "kl": kl.detach(), **named}

    def _terms(
        self, output: PoseOutput, aligned: Tensor | None, teacher: PoseOutput
    ) -> dict[str, Tensor]:
        """The teacher's terms that are switched on, before their factors."""
        config, terms = self.config, dict[str, Tensor]()
        logits, teacher_logits = output[:2], teacher[:2]
        if aligned is not None:
            terms["fea"] = feature_loss(aligned, teacher.taps.quarter, config.fea_reduction)
        if config.kd_l1 or config.kd_cst:
            pose, teacher_pose = (
                soft_pose(pair, self.spec.split_ratio, config.tau)
                for pair in (logits, teacher_logits)
            )
            if config.kd_l1:
                terms["l1"] = pose_l1(pose, teacher_pose)
            if config.kd_cst:
                limbs = self.spec.skeleton.limbs
                terms["cst"] = structure_loss(
                    pose, teacher_pose, limbs, self.limb_weights, config.cst_form
                )
        if config.kd_logit:
            terms["logit"] = logit_loss(logits, teacher_logits, config.logit_temperature)
        return terms
