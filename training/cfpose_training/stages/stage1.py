"""Stage 1: the student on labels (L_KL), or on labels and a teacher.

With a teacher the loss is L_s1 = L_KL + gamma (alpha L_fea + beta (L1 + L_cst)), see `losses`.

The weights w_ij of the limbs in the structure loss are a choice: the paper does not define them.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from cfpose_sdk.arrays import Float64
from cfpose_sdk.crops import crop_transforms, transform_points
from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import DistillConfig, LabelConfig, LimbWeights
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.data.people import People
from cfpose_training.losses import (
    decay,
    feature_loss,
    logit_loss,
    pose_l1,
    simcc_loss,
    soft_pose,
    structure_loss,
)
from cfpose_training.nets.decode import full_precision
from cfpose_training.nets.pose_net import (
    Normalise,
    PoseNet,
    PoseOutput,
    with_scaled_logits,
)
from cfpose_training.stages.base import Stage, ask_teacher, confidence_weights


class LabelStage(Stage):
    """Stage 1 on labels alone: the SimCC loss of a PoseNet."""

    def __init__(self, network: PoseNet, spec: ModelSpec, labels: LabelConfig) -> None:
        super().__init__()
        self.trainable = network
        self.normalise = Normalise(spec.mean_rgb, spec.std_rgb)
        self.split_ratio = spec.split_ratio
        self.labels = labels

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.trainable(self.normalise(batch["crops"]))
        output = with_scaled_logits(output, self.labels.softmax_beta)
        loss = simcc_loss(
            (output.x_logits, output.y_logits),
            batch["xy"],
            batch["weight"],
            self.split_ratio,
            self.labels,
        )
        return {"loss": loss, "kl": loss.detach()}


def limb_weights(kind: LimbWeights, spec: ModelSpec, people: People) -> Float64:
    """(E,) weights of mean 1, so that the kind does not change the size of the loss.

    inv_sigma: 1 / (sigma_i + sigma_j) of the OKS sigmas. inv_length and inv_var: one over the mean
    and the variance of the limb's length in unaugmented crops. Raises TrainingError when the
    training people do not show a limb often enough.
    """
    limbs = np.array(spec.skeleton.limbs, dtype=np.intp).reshape(-1, 2)
    if kind == "uniform":
        return np.ones(len(limbs))
    if kind == "inv_sigma":
        raw = 1 / np.array(spec.skeleton.oks_sigmas)[limbs].sum(axis=1)
    else:
        mean, variance = limb_lengths(people, spec)
        measure = mean if kind == "inv_length" else variance
        if not (measure > 0).all():  # nan included
            unseen = [spec.skeleton.limbs[i] for i in np.flatnonzero(~(measure > 0))]
            raise TrainingError(
                f"cst_weights = {kind!r} needs every limb labelled in at least two people; "
                f"too rare are {unseen}: use 'uniform' or 'inv_sigma'"
            )
        raw = 1 / measure
    return np.asarray(raw * len(raw) / raw.sum())


def limb_lengths(people: People, spec: ModelSpec) -> tuple[Float64, Float64]:
    """Mean and variance (E,) of each limb's length in pixels of unaugmented crops.

    Only people with both ends labelled count; nan where there are none.
    """
    transforms = crop_transforms(people.boxes, spec.size_wh, spec.box_scale)
    xy = transform_points(transforms, people.joints[..., :2])
    labelled = people.joints[..., 2] > 0
    mean, variance = [], []
    for a, b in spec.skeleton.limbs:
        seen = labelled[:, a] & labelled[:, b]
        lengths = np.linalg.norm(xy[seen, a] - xy[seen, b], axis=1)
        mean.append(lengths.mean() if len(lengths) else np.nan)
        variance.append(lengths.var() if len(lengths) else np.nan)
    return np.array(mean), np.array(variance)


ALPHA_BATCHES = 20  # the first ones of a run, on which alpha_auto is measured
TEACHER_FIELDS = ("skeleton", "size_wh", "split_ratio", "mean_rgb", "std_rgb")


def check_teacher(teacher: ModelSpec, student: ModelSpec) -> None:
    """Raise TrainingError unless both have the same crops, joints and bins."""
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
    With `auto_alpha` the found alpha is a buffer here, with the two sums that it comes from, so a
    run's saved state carries them and a resumed run takes the same next step.
    """

    alpha: Tensor
    alpha_sums: Tensor  # of the gradient norms of the KL and of L_fea, and the batches so far

    def __init__(self, student: PoseNet, align: nn.Conv2d | None, auto_alpha: float | None) -> None:
        super().__init__()
        self.student = student
        self.align = align
        if auto_alpha is not None:
            self.register_buffer("alpha", torch.tensor(auto_alpha))
            self.register_buffer("alpha_sums", torch.zeros(3))

    def forward(self, images: Tensor) -> tuple[PoseOutput, Tensor | None]:
        output = self.student(images)
        return output, self.aligned(output.taps.quarter)

    def aligned(self, quarter: Tensor) -> Tensor | None:
        """The student's 1/4 map (B, C, h, w) in the teacher's channels; None without L_fea."""
        return None if self.align is None else self.align(quarter)


class Losses(NamedTuple):
    """The KL to the labels and the teacher's terms, before their factors."""

    kl: Tensor
    terms: dict[str, Tensor]


class DistillStage(Stage):
    """The student on labels, and on a frozen teacher's predictions for the same crops.

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
        self.finds_alpha = config.kd_fea and config.alpha_auto > 0
        self.trainable = AlignedStudent(
            network,
            nn.Conv2d(*widths, 1) if config.kd_fea else None,
            config.alpha if self.finds_alpha else None,
        )
        self.teacher = teacher.requires_grad_(False).eval()
        self.normalise = Normalise(spec.mean_rgb, spec.std_rgb)
        self.register_buffer("limb_weights", limb_weights.float(), persistent=False)
        self.spec = spec
        self.labels = labels
        self.config = config
        self.gamma = 1.0
        self.epoch = 1

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def set_epoch(self, epoch: int, epochs: int) -> None:
        self.epoch, self.gamma = epoch, decay(epoch, epochs)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = self.normalise(batch["crops"])
        taught = self.ask(images)
        output, aligned = self.trainable(images)
        kl, terms = self.losses(output, aligned, taught, batch)
        named = {name: term.detach() for name, term in terms.items()}
        if self.finds_alpha:
            if self.training and self.epoch == 1:
                self._find_alpha(kl, terms["fea"], output.taps.quarter)
            named["alpha"] = self.trainable.alpha.clone()
        distilled = sum(self.factored(terms).values(), kl.new_zeros(()))
        return {"loss": kl + self.gamma * distilled, "kl": kl.detach(), **named}

    def epoch_figures(self, batch: Batch) -> dict[str, float]:
        """`grad_kl`, `grad_fea` and so on: see `feature_gradient_norms`."""
        norms = feature_gradient_norms(self, batch)
        return {f"grad_{name}": norm for name, norm in norms.items()}

    def ask(self, images: Tensor) -> PoseOutput:
        """The teacher's predictions for normalised crops (B, 3, H, W)."""
        config = self.config
        return ask_teacher(
            self.teacher, images, self.spec, flip=config.teacher_flip, bf16=config.teacher_bf16
        )

    def losses(
        self, output: PoseOutput, aligned: Tensor | None, taught: PoseOutput, batch: Batch
    ) -> Losses:
        """The KL, and the teacher's terms that are switched on."""
        output = with_scaled_logits(output, self.labels.softmax_beta)
        logits = output.x_logits, output.y_logits
        split_ratio = self.spec.split_ratio
        kl = simcc_loss(logits, batch["xy"], batch["weight"], split_ratio, self.labels)
        config, terms = self.config, dict[str, Tensor]()
        if aligned is not None:
            terms["fea"] = feature_loss(aligned, taught.taps.quarter, config.fea_reduction)
        if config.kd_l1 or config.kd_cst:
            terms |= self._pose_terms(logits, taught)
        if config.kd_logit:
            terms["logit"] = logit_loss(logits, taught[:2])
        return Losses(kl, terms)

    def factored(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's terms times their factors, gamma left out."""
        config = self.config
        factors: dict[str, float | Tensor] = {
            # a copy: the next measurement changes the buffer before this batch's backward pass
            "fea": self.trainable.alpha.clone() if self.finds_alpha else config.alpha,
            "l1": config.beta,
            "cst": config.beta,
            "logit": config.logit_weight,
        }
        return {name: factors[name] * term for name, term in terms.items()}

    def _pose_terms(self, logits: tuple[Tensor, Tensor], taught: PoseOutput) -> dict[str, Tensor]:
        config, terms = self.config, dict[str, Tensor]()
        pose, teacher_pose = (
            soft_pose(pair, self.spec.split_ratio, config.tau) for pair in (logits, taught[:2])
        )
        weights = None
        if config.teacher_confidence:
            everywhere = torch.ones_like(teacher_pose[..., 0])
            weights = confidence_weights(taught, self.spec, everywhere)
        if config.kd_l1:
            terms["l1"] = pose_l1(pose, teacher_pose, weights)
        if config.kd_cst:
            limbs = self.spec.skeleton.limbs
            terms["cst"] = structure_loss(
                pose, teacher_pose, limbs, self.limb_weights, config.cst_form, weights
            )
        return terms

    def _find_alpha(self, kl: Tensor, fea: Tensor, feature: Tensor) -> None:
        """Measure alpha on one more batch, unless it has had enough; see DistillConfig."""
        sums = self.trainable.alpha_sums
        if sums[2] >= ALPHA_BATCHES:
            return
        norms = [_gradient_norm(loss, feature) for loss in (kl, fea)]
        measured = torch.stack([*norms, torch.ones_like(norms[0])]).to(sums.dtype)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(measured)  # every process: its part of the batch
            measured[2] = 1
        sums.add_(measured)
        if sums[1] > 0:
            self.trainable.alpha.copy_(self.config.alpha_auto * sums[0] / sums[1])


def feature_gradient_norms(stage: DistillStage, batch: Batch) -> dict[str, float]:
    """Gradient norm of each loss at the student's 1/4 map F, the map that L_fea compares.

    L2 norm over the batch of the gradient with respect to F (B, C, h, w): `kl` of the KL, and of
    each teacher's term as it enters the total, factors and gamma included. In the stage's mode, in
    the dtype of its weights. Parameters' `.grad`, buffers and random generators stay as they are.
    """
    trainable = stage.trainable
    # batch norm moves its statistics in training mode: let it move copies
    buffers = {name: buffer.clone() for name, buffer in trainable.named_buffers()}
    with torch.no_grad():
        images = stage.normalise(batch["crops"])
        taught = stage.ask(images)
        output, _ = functional_call(trainable, buffers, (images,))
    with torch.enable_grad():
        feature = output.taps.quarter.detach().requires_grad_()
        x_logits, y_logits = trainable.student.head(feature)
        output = output._replace(x_logits=x_logits, y_logits=y_logits)
        kl, terms = stage.losses(output, trainable.aligned(feature), taught, batch)
        factored = stage.factored(terms)
        norms = {"kl": _gradient_norm(kl, feature)}
        norms |= {n: stage.gamma * _gradient_norm(loss, feature) for n, loss in factored.items()}
    return {name: float(norm) for name, norm in norms.items()}


def _gradient_norm(loss: Tensor, feature: Tensor) -> Tensor:
    """L2 norm of a loss's gradient with respect to a map of its graph, which is kept."""
    (gradient,) = torch.autograd.grad(loss, feature, retain_graph=True, materialize_grads=True)
    norm: Tensor = torch.linalg.vector_norm(full_precision(gradient))
    return norm
