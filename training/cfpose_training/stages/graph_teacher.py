"""Stage 1 under a teacher that is a heat-map graph: L = L_KL + gamma (L_logit + L_1).

The teacher sees the student's own crop, resized to its input. Its heat maps, sharpened and summed
along rows and along columns, are soft labels over the student's bins. Both terms are means over the
joints that the teacher sees, each weighing as sure as it is of it.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.heatmap_graph import HeatmapGraph
from cfpose_training.config import DistillConfig, LabelConfig
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.losses import decay, simcc_loss, soft_pose
from cfpose_training.nets.decode import full_precision
from cfpose_training.nets.pose_net import Normalise, PoseNet, with_scaled_logits
from cfpose_training.processes import shared_count
from cfpose_training.stages.base import Stage

SHARPNESS = 5  # power of the heat: a Gaussian of 2 cells becomes one of 0.9
FLOOR = 1e-4  # of a marginal: what an unsure map leaves undecided
SURE = (0.2, 0.7)  # peaks from which a joint weighs something, and all


class Taught(NamedTuple):
    """What a graph says of B crops."""

    x_logits: Tensor  # (B, K, bins_x) log probabilities
    y_logits: Tensor  # (B, K, bins_y)
    weight: Tensor  # (B, K) in [0, 1]


class GraphTeacher:
    """A heat-map graph that answers in the bins of a student of another crop size.

    Raises TrainingError when its joints are not the student's, or its crop is of other proportions.
    """

    def __init__(self, graph: HeatmapGraph, spec: ModelSpec) -> None:
        (width, height), (own_width, own_height) = spec.size_wh, graph.size_wh
        if spec.skeleton.keypoints != graph.skeleton.keypoints:
            raise TrainingError(
                f"the teacher {graph.name} knows {graph.skeleton.keypoints}, the student "
                f"{spec.name} has {spec.skeleton.keypoints}; train a teacher with this recipe"
            )
        if width * own_height != height * own_width:
            raise TrainingError(
                f"the teacher {graph.name} takes crops of {graph.size_wh}, the student {spec.name} "
                f"of {spec.size_wh}; choose a size_wh of the same proportions"
            )
        self.graph, self.spec = graph, spec

    def ask(self, crops: Tensor) -> Taught:
        """Its answer to the student's crops (B, H, W, 3) uint8 BGR; it carries no gradient."""
        pixels = crops.cpu().numpy()
        resized = [
            cv2.resize(crop, self.graph.size_wh, interpolation=cv2.INTER_LINEAR) for crop in pixels
        ]
        heat = torch.from_numpy(self.graph.heat(np.stack(resized))).to(crops.device)
        low, high = SURE
        weight = ((heat.amax(dim=(2, 3)) - low) / (high - low)).clamp(0, 1)
        sharp = heat.clamp_min(0) ** SHARPNESS
        along = sharp.sum(dim=2), sharp.sum(dim=3)
        x_logits, y_logits = (
            bin_log_probabilities(marginal, bins, pixels, self.graph.stride)
            for marginal, bins, pixels in zip(
                along, self.spec.bins_xy, self.spec.size_wh, strict=True
            )
        )
        return Taught(x_logits, y_logits, weight)


def bin_log_probabilities(marginal: Tensor, bins: int, pixels: int, stride: float) -> Tensor:
    """(B, K, cells) masses along an axis → (B, K, bins) log probabilities.

    The student's axis has `pixels` pixels in its crop, a cell `stride` of the teacher's; the
    logarithm of the masses is read at the places of the student's bins, linearly between the
    cells, and normalised.
    """
    cells = marginal.shape[2]
    place = torch.arange(bins, device=marginal.device) * (pixels / bins)  # student's pixels
    # resizing keeps the edges of pixels where they are, not their middles
    place = ((place + 0.5) * (cells * stride / pixels) - 0.5) / stride
    place = place.clamp(0, cells - 1)
    low = place.floor().long().clamp(max=cells - 2)
    share = place - low
    logs = torch.log(marginal + FLOOR)
    read = logs[..., low] * (1 - share) + logs[..., low + 1] * share
    return torch.log_softmax(read, dim=2)


class GraphTeacherStage(Stage):
    """The student on labels and on what a graph says of the same crops.

    Of DistillConfig it takes `kd_logit` with `logit_weight`, and `kd_l1` with `beta`. Raises
    TrainingError for a term that needs the teacher's maps or limbs.
    """

    trainable: PoseNet

    def __init__(
        self,
        network: PoseNet,
        spec: ModelSpec,
        labels: LabelConfig,
        config: DistillConfig,
        teacher: GraphTeacher,
    ) -> None:
        super().__init__()
        other = ("kd_fea", "kd_cst", "teacher_flip", "teacher_confidence", "teacher_bf16")
        if asked := [name for name in other if getattr(config, name)]:
            raise TrainingError(
                f"a heat-map graph teaches bins and poses, and [distill] switches {asked} on; set "
                f"kd_logit and kd_l1 alone, or give a checkpoint as the teacher"
            )
        self.trainable = network
        self.teacher = teacher
        self.normalise = Normalise(spec.mean_rgb, spec.std_rgb)
        self.spec, self.labels, self.config = spec, labels, config
        self.gamma = 1.0

    def set_epoch(self, epoch: int, epochs: int) -> None:
        self.gamma = decay(epoch, epochs)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        taught = self.teacher.ask(batch["crops"])
        if "upright" in batch:  # on its head the teacher takes left for right, and is sure of it
            taught = taught._replace(weight=taught.weight * batch["upright"].unsqueeze(1))
        output = self.trainable(self.normalise(batch["crops"]))
        output = with_scaled_logits(output, self.labels.softmax_beta)
        logits = full_precision(output.x_logits), full_precision(output.y_logits)
        split_ratio, config = self.spec.split_ratio, self.config
        kl = simcc_loss(logits, batch["xy"], batch["weight"], split_ratio, self.labels)
        terms: dict[str, Tensor] = {}
        if config.kd_logit:
            terms["logit"] = bin_divergence(logits, taught)
        if config.kd_l1:
            terms["l1"] = pose_distance(logits, taught, split_ratio, config.tau)
        factors = {"logit": config.logit_weight, "l1": config.beta}
        distilled = sum((factors[name] * term for name, term in terms.items()), kl.new_zeros(()))
        named = {name: term.detach() for name, term in terms.items()}
        return {"loss": kl + self.gamma * distilled, "kl": kl.detach(), **named}


def bin_divergence(logits: tuple[Tensor, Tensor], taught: Taught) -> Tensor:
    """KL(teacher || student) of both axes, mean over the joints by their weights."""
    each = taught.weight.new_zeros(taught.weight.shape)
    for own, theirs in zip(logits, taught[:2], strict=True):
        log_own = F.log_softmax(own, dim=2)
        each = each + F.kl_div(log_own, theirs, reduction="none", log_target=True).sum(dim=2)
    return (each * taught.weight).sum() / shared_count(taught.weight.sum())


def pose_distance(
    logits: tuple[Tensor, Tensor], taught: Taught, split_ratio: float, tau: float
) -> Tensor:
    """L1 of the soft poses in crop pixels, |x| + |y|, mean over the joints by their weights."""
    own = soft_pose(logits, split_ratio, tau)
    theirs = soft_pose((taught.x_logits, taught.y_logits), split_ratio, tau)
    distance = (own - theirs).abs().sum(dim=2) * taught.weight
    return distance.sum() / shared_count(taught.weight.sum())
