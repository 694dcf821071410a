"""SimCC head: coordinate classification along x and along y.

Li et al., "SimCC: a Simple Coordinate Classification Perspective for Human Pose Estimation",
ECCV 2022. Parameter names are those of the reference implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SimCCHead(nn.Module):
    """Fused 1/4 map (B, C, H/4, W/4) → logits (B, K, bins_x) and (B, K, bins_y).

    A 1x1 convolution gives one map a joint; two linear layers, shared by all joints, classify the
    flattened map into bins.
    """

    def __init__(
        self, channels: int, keypoints: int, size_wh: tuple[int, int], bins_xy: tuple[int, int]
    ) -> None:
        super().__init__()
        self.cells_hw = size_wh[1] // 4, size_wh[0] // 4
        cells = self.cells_hw[0] * self.cells_hw[1]
        self.final_layer = nn.Conv2d(channels, keypoints, 1)
        self.mlp_head_x = nn.Linear(cells, bins_xy[0])
        self.mlp_head_y = nn.Linear(cells, bins_xy[1])

    @torch.no_grad()
    def init_as_marginals(self) -> None:
        """Start the linear layers as the sums of a heatmap along its rows and columns.

        A peak in a joint's map then means a position from the first step on, so early training is
        that of a heatmap network. Each cell excites the bins within about one cell of it.
        """
        height, width = self.cells_hw
        for axis, layer in enumerate((self.mlp_head_x, self.mlp_head_y)):
            cells = torch.arange((width, height)[axis], dtype=torch.float32)
            bins = torch.arange(layer.out_features) * (len(cells) / layer.out_features)
            bump = torch.exp(-((bins[:, None] - cells) ** 2) / 2)
            spread = (bump[:, None, :], bump[:, :, None])[axis].expand(-1, height, width)
            layer.weight.copy_(spread.reshape(layer.out_features, -1))
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Multiply the logits by a factor, for good: both linear layers take it in."""
        for layer in (self.mlp_head_x, self.mlp_head_y):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)

    def forward(self, quarter: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.final_layer(quarter).flatten(2)
        return self.mlp_head_x(maps), self.mlp_head_y(maps)
