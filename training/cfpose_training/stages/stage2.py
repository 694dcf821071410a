"""Stage 2: train the refiner while the student is frozen (eq. 6-7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from cfpose_sdk.spec import ModelSpec
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.losses import refinement_loss, refinement_oks_loss
from cfpose_training.nets.decode import decode_simcc, person_area
from cfpose_training.nets.igp_gcn import normalise_xy
from cfpose_training.nets.pose_net import Normalise, PoseNet, RefinedPoseNet
from cfpose_training.stages.base import Stage, ask_teacher, confidence_weights


class RefinerStage(Stage):
    """Stage 2: the refiner on a frozen student (eq. 6-7).

    It learns ground truth (scheme 1), or the argmax pose of `teacher`, or both: the teacher's share
    of the loss is `teacher_fraction`. Only labelled joints count, also for the teacher's pose.
    Student and teacher stay in eval mode, so no batch-norm statistic moves. `init_noise_px` is the
    deviation of Gaussian noise on the coarse pose in training. `teacher_flip` averages the
    teacher's output with that of the mirror image; `teacher_confidence` weighs its joints. With
    `loss="oks"` a person's size is that of its coarse pose, as the decoder has it.
    """

    def __init__(
        self,
        network: RefinedPoseNet,
        spec: ModelSpec,
        output_weights: tuple[float, float, float],
        *,
        teacher: PoseNet | None = None,
        teacher_fraction: float = 1.0,
        teacher_flip: bool = False,
        teacher_confidence: bool = False,
        init_noise_px: float = 0.0,
        loss: Literal["l1", "oks"] = "l1",
    ) -> None:
        super().__init__()
        self.student = network.pose.requires_grad_(False)
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.teacher_fraction = 0.0 if teacher is None else teacher_fraction
        self.teacher_flip, self.teacher_confidence = teacher_flip, teacher_confidence
        self.trainable = network.refiner
        self.normalise = Normalise(spec.mean_rgb, spec.std_rgb)
        self.spec = spec
        self.output_weights = output_weights
        self.init_noise_px = init_noise_px
        self.loss = loss

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.student.eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        split_ratio = self.spec.split_ratio
        with torch.no_grad():
            images = self.normalise(batch["crops"])
            output = self.student(images)
            coarse, score = decode_simcc(
                output.x_logits, output.y_logits, split_ratio, self.spec.decode, self.spec.windows
            )
            targets = [(1 - self.teacher_fraction, batch["xy"], batch["weight"])]
            if self.teacher is not None:
                targets.append((self.teacher_fraction, *self._taught(self.teacher, images, batch)))
            if self.training and self.init_noise_px:
                # drawn on the CPU: its generator is what a resumed run restores
                noise = torch.randn(coarse.shape, dtype=coarse.dtype).to(coarse.device)
                coarse = coarse + self.init_noise_px * noise
        refined = self.trainable(output.taps, coarse, score)
        losses = [self._loss(refined, coarse, xy, weight) for _, xy, weight in targets]
        names = (self.loss, f"{self.loss}_teacher")
        named = dict(zip(names, (loss.detach() for loss in losses), strict=False))
        shares = zip(targets, losses, strict=True)
        total = sum((share * loss for (share, *_), loss in shares), losses[0].new_zeros(()))
        return {"loss": total, **named}

    def _taught(self, teacher: PoseNet, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's argmax pose (B, K, 2) and the weights (B, K) of its joints."""
        answer = ask_teacher(teacher, images, self.spec, flip=self.teacher_flip)
        xy, _ = decode_simcc(answer.x_logits, answer.y_logits, self.spec.split_ratio, "argmax")
        weight = batch["weight"]
        if self.teacher_confidence:
            weight = weight * confidence_weights(answer, self.spec, weight)
        return xy, weight

    def _loss(self, poses: Sequence[Tensor], coarse: Tensor, xy: Tensor, weight: Tensor) -> Tensor:
        if self.loss == "oks":
            k = 2 * coarse.new_tensor(self.spec.skeleton.oks_sigmas)
            reach = person_area(coarse).sqrt().unsqueeze(1) * k
            return refinement_oks_loss(poses, xy, weight, reach, self.output_weights)
        size_wh = self.spec.size_wh
        normalised = [normalise_xy(pose, size_wh) for pose in poses]
        return refinement_loss(normalised, normalise_xy(xy, size_wh), weight, self.output_weights)
