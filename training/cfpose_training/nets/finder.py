"""The finder: our anchor-free person detector at stride 8, with a second look at its boxes.

Every cell scores whether a person's centre lies there and regresses the distances to the four
sides of the box. Centre heat and box supervision follow TTFNet (Liu et al., AAAI 2020).

A BoxRefiner may then correct the picked boxes: a centre has to know how far away a person ends; a
grid over the box and a little around it sees it. After Cascade R-CNN's second stage (Cai and
Vasconcelos, CVPR 2018), with the points of RoIAlign (He et al., ICCV 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_training.nets.efficientnet import EfficientNetLite, map_channels
from cfpose_training.nets.hrnet import BasicBlock, conv_bn

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
        cells = (points - 0.5) / self.stride
        # axis by axis, not divided by a tensor of both: the exporter would freeze the map's sides
        x = cells[:, :, 0] / (features.shape[3] - 1) * 2 - 1
        y = cells[:, :, 1] / (features.shape[2] - 1) * 2 - 1
        x = x.unsqueeze(2).expand(-1, -1, grid, -1)
        y = y.unsqueeze(3).expand(-1, -1, -1, grid)
        places = torch.stack([x, y], dim=4).reshape(batch, people, grid * grid, 2)
        values = F.grid_sample(features, places, align_corners=True)  # (B, C, M, G * G)
        return values.transpose(1, 2).reshape(batch, people, features.shape[1] * grid * grid)


STRIDE = 8
TOP_K = 100  # candidates that leave the graph
PRIOR = 0.01  # initial heat, so that empty cells do not drown the first steps


@dataclass(frozen=True)
class FinderNetConfig:
    """Body and widths.

    `plain`: level l of 1/4, 1/8, 1/16, 1/32, 1/64 has `channels[l]` channels and `blocks[l]`
    residual blocks. `efficientnet-lite0` has widths of its own and ends at 1/32; its stem and
    first `frozen` blocks do not learn.
    """

    body: Literal["plain", "efficientnet-lite0"] = "plain"
    channels: tuple[int, int, int, int, int] = (24, 48, 96, 128, 128)
    blocks: tuple[int, int, int, int, int] = (1, 2, 2, 2, 1)
    head_channels: int = 64
    frozen: int = 0
    box_grid: int = 0  # points a side of the second look at each box; 0: there is none


class FinderOutput(NamedTuple):
    """Maps at stride 8."""

    heat_logits: Tensor  # (B, h, w)
    sides: Tensor  # (B, 4, h, w) positive distances left, top, right, bottom, in pixels
    features: Tensor  # (B, C, h, w) that both heads read


class PlainBody(nn.Module):
    """Normalised RGB images → maps at 1/8, 1/16, 1/32, 1/64, from a plain residual net."""

    def __init__(self, config: FinderNetConfig) -> None:
        super().__init__()
        widths = config.channels
        self.stem = conv_bn(3, widths[0], 3, stride=2)
        self.levels = nn.ModuleList()
        incoming = widths[0]
        for width, blocks in zip(widths, config.blocks, strict=True):
            self.levels.append(
                nn.Sequential(
                    conv_bn(incoming, width, 3, stride=2),
                    *(BasicBlock(width) for _ in range(blocks)),
                )
            )
            incoming = width

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.levels[0](self.stem(images))
        maps = []
        for level in self.levels[1:]:
            x = level(x)
            maps.append(x)
        return maps


class FinderNet(nn.Module):
    """Normalised RGB letterboxes (B, 3, H, W) → FinderOutput. H and W are multiples of
    `multiple`.
    """

    def __init__(self, config: FinderNetConfig) -> None:
        super().__init__()
        self.config = config
        head = config.head_channels
        self.body: nn.Module
        widths: Sequence[int]
        if config.body == "plain":
            self.body = PlainBody(config)
            widths = config.channels[1:]
        else:
            self.body = EfficientNetLite("lite0", config.frozen)
            _, *widths = map_channels("lite0")
        self.laterals = nn.ModuleList(conv_bn(width, head, 1) for width in widths)
        self.smooths = nn.ModuleList(conv_bn(head, head, 3) for _ in widths[:-1])
        self.heat = nn.Sequential(conv_bn(head, head, 3), nn.Conv2d(head, 1, 1))
        self.box = nn.Sequential(conv_bn(head, head, 3), nn.Conv2d(head, 4, 1))
        self.box_refiner: BoxRefiner | None = None
        if config.box_grid:
            self.box_refiner = BoxRefiner(head, config.box_grid, STRIDE)
        # heat starts at PRIOR everywhere
        nn.init.constant_(self.heat[-1].bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    @property
    def multiple(self) -> int:
        """What the sides of a letterbox are multiples of, in pixels: those of the coarsest cell."""
        return 32 if isinstance(self.body, EfficientNetLite) else 64

    def forward(self, images: Tensor) -> FinderOutput:
        maps = self.body(images)
        if isinstance(self.body, EfficientNetLite):
            maps = maps[1:]  # no lateral reads the 1/4 map
        merged = self.laterals[-1](maps[-1])
        for index in reversed(range(len(maps) - 1)):
            up = F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = self.smooths[index](self.laterals[index](maps[index]) + up)
        heat = self.heat(merged).float().squeeze(1)
        sides = torch.exp(self.box(merged).float().clamp(max=6.0)) * STRIDE
        return FinderOutput(heat, sides, merged)

    def find(self, images: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Boxes and scores as `pick_people` gives them, the boxes corrected by a second look."""
        output = self(images)
        boxes, scores = pick_people(output, top_k)
        if self.box_refiner is not None:
            boxes = self.box_refiner(output.features, boxes)
        return boxes, scores


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(2, h, w) x and y of the cells in letterbox coordinates.

    A stride-8 cell i is centred on pixel 8 * i, which is 8 * i + 0.5 in box coordinates, where
    pixel 0 spans [0, 1).
    """
    y = torch.arange(height, device=device, dtype=torch.float32) * STRIDE + 0.5
    x = torch.arange(width, device=device, dtype=torch.float32) * STRIDE + 0.5
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


def sides_to_boxes(sides: Tensor) -> Tensor:
    """(B, 4, h, w) distances → (B, 4, h, w) xyxy boxes in letterbox pixels."""
    centres = cell_centres(sides.shape[2], sides.shape[3], sides.device)
    return torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], dim=1)


def candidates(size_wh: tuple[int, int]) -> int:
    """How many boxes leave a graph for letterboxes of this width and height."""
    return min(TOP_K, (size_wh[0] // STRIDE) * (size_wh[1] // STRIDE))


def pick_people(output: FinderOutput, top_k: int) -> tuple[Tensor, Tensor]:
    """Local maxima of the heat: boxes (B, M, 4) xyxy and scores (B, M), by falling score; M is
    `top_k`, of which there are cells enough.

    A cell that is no maximum of its 3x3 neighbourhood scores 0; else the fourth root of its heat.
    The order is the heat's. The root lets a pose's joints say more in box score x confidence, and
    ranks poses better (training/results).
    """
    heat = torch.sigmoid(output.heat_logits)
    highest = F.max_pool2d(heat.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    peaks = torch.where(heat >= highest, heat, torch.zeros_like(heat)).flatten(1)
    scores, cells = torch.topk(peaks, top_k, dim=1)
    boxes = sides_to_boxes(output.sides).flatten(2).transpose(1, 2)
    picked = torch.gather(boxes, 1, cells.unsqueeze(-1).expand(-1, -1, 4))
    return picked, torch.sqrt(torch.sqrt(scores))
