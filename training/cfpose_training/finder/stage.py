"""The finder's losses: focal loss on the centre heat, GIoU on first and corrected boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cfpose_training.data.crop_dataset import Batch
from cfpose_training.nets.finder import BoxRefiner, FinderNet, FinderOutput, sides_to_boxes
from cfpose_training.nets.pose_net import Normalise
from cfpose_training.processes import shared_count
from cfpose_training.stages.base import Stage

BOX_LOSS_WEIGHT = 5.0  # TTFNet; of the second look too
JITTERED = 5  # boxes a person that the second look learns from, beside the finder's own
JITTER_SIGMA = 0.12  # of their edges, in sides of the box: as the finder's are off
JITTER_LIMIT = 0.3
WORTH_GIOU = 0.3  # a box that overlaps its person less is not corrected


class FinderStage(Stage):
    """Heat and box losses of a FinderNet; batches as FinderDataset makes them."""

    trainable: FinderNet

    def __init__(self, network: FinderNet) -> None:
        super().__init__()
        self.trainable = network
        self.normalise = Normalise()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.trainable(self.normalise(batch["image"]))
        people = shared_count((batch["heat"] == 1).sum())
        heat = focal_loss(output.heat_logits, batch["heat"], batch["heat_weight"]) / people
        overlap = giou(sides_to_boxes(output.sides), batch["box"])
        box = ((1 - overlap) * batch["box_weight"]).sum() / people
        losses = {"heat": heat.detach(), "box": box.detach()}
        loss = heat + BOX_LOSS_WEIGHT * box
        if self.trainable.box_refiner is not None:
            second = self._second_look(self.trainable.box_refiner, output, batch)
            losses["second"], loss = second.detach(), loss + BOX_LOSS_WEIGHT * second
        return {"loss": loss, **losses}

    def _second_look(self, refiner: BoxRefiner, output: FinderOutput, batch: Batch) -> Tensor:
        """Mean 1 − GIoU of the corrected boxes; gradients reach the features, not the proposals."""
        own = sides_to_boxes(output.sides.detach())
        pairs = []
        for picture in range(len(own)):
            centres = batch["heat"][picture] == 1
            truth = batch["box"][picture][:, centres].T
            pairs.append((torch.cat([own[picture][:, centres].T, *_jittered(truth)]), truth))
        most = max(1, *(len(boxes) for boxes, _ in pairs))
        boxes = torch.stack([F.pad(boxes, (0, 0, 0, most - len(boxes))) for boxes, _ in pairs])
        corrected = refiner(output.features, boxes)
        total: Tensor = corrected.sum() * 0
        count = torch.zeros((), device=boxes.device)
        for picture, (proposals, truth) in enumerate(pairs):
            truths = truth.repeat(JITTERED + 1, 1)
            worth = giou(proposals, truths) >= WORTH_GIOU
            boxes_after = corrected[picture, : len(proposals)]
            total = total + (1 - giou(boxes_after[worth], truths[worth])).sum()
            count += worth.sum()
        return total / shared_count(count)


def _jittered(boxes: Tensor) -> list[Tensor]:
    """JITTERED copies of xyxy boxes (P, 4), each edge moved by its own share of the side."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moves = (JITTER_SIGMA * torch.randn(JITTERED, *boxes.shape, device=boxes.device)).clamp(
        -JITTER_LIMIT, JITTER_LIMIT
    )
    return list(boxes + moves * sides)


def focal_loss(logits: Tensor, heat: Tensor, weight: Tensor) -> Tensor:
    """Penalty-reduced focal loss of (B, h, w) maps, summed (CenterNet, eq. 1; α = 2, β = 4)."""
    positive = (heat == 1).float()
    probability = torch.sigmoid(logits)
    hit = (1 - probability) ** 2 * F.logsigmoid(logits) * positive
    miss = probability**2 * (1 - heat) ** 4 * F.logsigmoid(-logits) * (1 - positive)
    return -((hit + miss) * weight).sum()


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] of xyxy boxes (B, 4, ...), one by one (Rezatofighi, 2019)."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=1)
    area = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    union = area[0] + area[1] - intersection
    hull_low = torch.minimum(first[:, :2], second[:, :2])
    hull_high = torch.maximum(first[:, 2:], second[:, 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(dim=1)
    return intersection / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)
