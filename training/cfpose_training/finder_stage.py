"""The finder's training stage: focal loss on the centre heat, GIoU on the boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cfpose_training.data import Batch
from cfpose_training.nets.finder import FinderNet, sides_to_boxes
from cfpose_training.stages import Normalise, Stage

BOX_LOSS_WEIGHT = 5.0  # TTFNet


class FinderStage(Stage):
    """Heat and box losses of a FinderNet; batches as FinderDataset makes them."""

    def __init__(self, network: FinderNet) -> None:
        super().__init__()
        self.trainable = network
        self.normalise = Normalise()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.trainable(self.normalise(batch["image"]))
        people = (batch["heat"] == 1).sum().clamp(min=1)
        heat = focal_loss(output.heat_logits, batch["heat"], batch["heat_weight"]) / people
        overlap = giou(sides_to_boxes(output.sides), batch["box"])
        box = ((1 - overlap) * batch["box_weight"]).sum() / people
        return {"loss": heat + BOX_LOSS_WEIGHT * box, "heat": heat.detach(), "box": box.detach()}


def focal_loss(logits: Tensor, heat: Tensor, weight: Tensor) -> Tensor:
    """Penalty-reduced focal loss of (B, h, w) maps, summed (CenterNet, eq. 1; α = 2, β = 4)."""
    positive = (heat == 1).float()
    probability = torch.sigmoid(logits)
    hit = (1 - probability) ** 2 * F.logsigmoid(logits) * positive
    miss = probability**2 * (1 - heat) ** 4 * F.logsigmoid(-logits) * (1 - positive)
    return -((hit + miss) * weight).sum()


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] of xyxy boxes (B, 4, h, w), cell by cell (Rezatofighi, 2019)."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=1)
    area = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    union = area[0] + area[1] - intersection
    hull_low = torch.minimum(first[:, :2], second[:, :2])
    hull_high = torch.maximum(first[:, 2:], second[:, 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(dim=1)
    return intersection / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)
