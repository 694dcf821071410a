"""A second look at each box: features on a grid over it and a little around it correct its sides.

A centre has to know how far away a person ends; a grid sees it. After Cascade R-CNN's second stage
(Cai and Vasconcelos, CVPR 2018), with the points of RoIAlign (He et al., ICCV 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REACH = 1.4  # the grid spans this multiple of the box
SIDE_UNIT_PX = 64.0  # the box's size enters as log(√area / this)
MIN_SIDE_PX = 1.0  # of a box as the grid and the corrections take it
WIDTH, HIDDEN = 32, 128
DROPOUT = 0.2


class BoxRefiner(nn.Module):
    """Maps (B, C, h, w) and xyxy boxes (B, M, 4) in letterbox pixels → corrected boxes (B, M, 4).

    `stride`: pixels a cell; cell i is centred on stride * i + 0.5. Corrections are shares of the
    box's width and height. Starts as the identity.
    """

    offsets: Tensor

    def __init__(self, channels: int, grid: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        offsets = (torch.arange(grid) + 0.5) / grid - 0.5
        self.register_buffer("offsets", REACH * offsets, persistent=False)
        self.point = nn.Conv2d(channels, WIDTH, 1)
        self.hidden = nn.Linear(WIDTH * grid * grid + 1, HIDDEN)
        self.sides = nn.Linear(HIDDEN, 4)
        nn.init.zeros_(self.sides.weight)
        nn.init.zeros_(self.sides.bias)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(MIN_SIDE_PX)
        # the point-wise layer is linear, so it may stand before the sampling
        seen = F.relu(self._sample(self.point(features), boxes, size))
        scale = torch.log(size[..., :1] * size[..., 1:] / SIDE_UNIT_PX**2) / 2
        drop = F.dropout(torch.cat([seen, scale], dim=2), DROPOUT, self.training)
        hidden = F.dropout(F.relu(self.hidden(drop)), DROPOUT, self.training)
        corrected: Tensor = boxes + self.sides(hidden) * torch.cat([size, size], dim=2)
        return corrected

    def _sample(self, features: Tensor, boxes: Tensor, size: Tensor) -> Tensor:
        """(B, M, C * G * G) bilinear values on the boxes' grids; 0 outside the map."""
        batch, people, grid = boxes.shape[0], boxes.shape[1], len(self.offsets)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        points = centre.unsqueeze(3) + size.unsqueeze(3) * self.offsets  # (B, M, 2, G)
        last = points.new_tensor([features.shape[3] - 1, features.shape[2] - 1]).reshape(1, 1, 2, 1)
        points = (points - 0.5) / self.stride / last * 2 - 1
        x = points[:, :, 0].unsqueeze(2).expand(-1, -1, grid, -1)
        y = points[:, :, 1].unsqueeze(3).expand(-1, -1, -1, grid)
        places = torch.stack([x, y], dim=4).reshape(batch, people, grid * grid, 2)
        values = F.grid_sample(features, places, align_corners=True)  # (B, C, M, G * G)
        return values.transpose(1, 2).reshape(batch, people, features.shape[1] * grid * grid)
