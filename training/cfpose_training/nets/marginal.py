"""The marginal head: SimCC's bins as the sums of one distribution over the plane.

Each joint has a heat map, and a place where the person in the middle of the crop should have it;
heat far from that place counts less, which is how MoveNet tells people apart. The softmax over the
plane is summed along rows and along columns, so both axes speak of the same peaks. A pair of linear
layers, shared by all joints, brings cells to bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfpose_training.nets.decode import full_precision
from cfpose_training.nets.movenet import Branch

STRIDE = 4  # pixels between cells
FIRST_CELL_PX = (
    1.75  # where cell 0 of MoveNet's maps lies, in pixels whose first has its middle at 0
)
GAIN = 1.15
NEAREST = 1.8  # cells, added to the distance: MoveNet's own decoder divides by distance + 1.8
TINY = 1e-6  # cells², keeps the gradient of a distance of 0 finite


class MarginalHead(nn.Module):
    """1/4 map (B, C, H/4, W/4) → logits (B, K, bins_x) and (B, K, bins_y).

    With heat h and the expected place r of a joint, in cells, the plane is
    m = gain h + prior − power log(|cell − r| + 1.8); the logits along x are L_x(log Σ_rows exp m).
    """

    cells_y: Tensor
    cells_x: Tensor

    def __init__(
        self, channels: int, keypoints: int, size_wh: tuple[int, int], bins_xy: tuple[int, int]
    ) -> None:
        super().__init__()
        self.cells_hw = height, width = size_wh[1] // STRIDE, size_wh[0] // STRIDE
        self.heat = Branch(channels, keypoints)
        # unpadded: it reads 5x5 cells in the middle and answers for the 3x3 inside
        self.regression = Branch(channels, 2 * keypoints, padding=0)
        self.prior = nn.Parameter(torch.zeros(keypoints, height, width))
        self.gain = nn.Parameter(torch.tensor(GAIN))
        self.power = nn.Parameter(torch.tensor(1.0))
        self.mlp_head_x = nn.Linear(width, bins_xy[0])
        self.mlp_head_y = nn.Linear(height, bins_xy[1])
        self.register_buffer("cells_y", torch.arange(height).float(), persistent=False)
        self.register_buffer("cells_x", torch.arange(width).float(), persistent=False)
        self.init_as_marginals()

    @torch.no_grad()
    def init_as_marginals(self) -> None:
        """Start both linear layers as linear interpolation between the cells' log masses."""
        for layer, pixels in zip(
            (self.mlp_head_x, self.mlp_head_y),
            (STRIDE * self.cells_hw[1], STRIDE * self.cells_hw[0]),
            strict=True,
        ):
            layer.weight.copy_(interpolation(layer.in_features, layer.out_features, pixels))
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Multiply the logits by a factor, for good: both linear layers take it in."""
        for layer in (self.mlp_head_x, self.mlp_head_y):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)

    def expected(self, quarter: Tensor) -> tuple[Tensor, Tensor]:
        """Where the person in the middle should have each joint: y and x (B, K), in cells."""
        height, width = self.cells_hw
        top, left = (height - 1) // 2 - 2, (width - 1) // 2 - 2
        moves = self.regression(quarter[..., top : top + 5, left : left + 5])
        # each of the 3x3 cells gives its own distance to the joint; (y, x) of a joint are together
        mean = full_precision(moves).mean(dim=(2, 3)).reshape(-1, len(self.prior), 2)
        return mean[..., 0] + (top + 2), mean[..., 1] + (left + 2)

    def plane(self, quarter: Tensor) -> Tensor:
        """The log of each joint's mass in each cell, up to a constant: (B, K, H/4, W/4)."""
        expected_y, expected_x = self.expected(quarter)
        off_y = (self.cells_y - expected_y.unsqueeze(2)).square().unsqueeze(3)
        off_x = (self.cells_x - expected_x.unsqueeze(2)).square().unsqueeze(2)
        distance = torch.sqrt(off_y + off_x + TINY)
        heat = full_precision(self.heat(quarter))
        return self.gain * heat + self.prior - self.power * torch.log(distance + NEAREST)

    def forward(self, quarter: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(quarter.device.type):
            # logits in ±24 are a tenth off in bfloat16, so autocast ends here
            with torch.autocast(quarter.device.type, enabled=False):
                return self._logits(full_precision(quarter))
        return self._logits(quarter)

    def _logits(self, quarter: Tensor) -> tuple[Tensor, Tensor]:
        plane = self.plane(quarter)
        along_x, along_y = torch.logsumexp(plane, dim=2), torch.logsumexp(plane, dim=3)
        return self.mlp_head_x(along_x), self.mlp_head_y(along_y)


def interpolation(cells: int, bins: int, pixels: int) -> Tensor:
    """(bins, cells) weights that read the value at each bin of an axis `pixels` long.

    Linear between the two nearest cells; beyond the first and the last it is theirs.
    """
    place = (torch.arange(bins) * (pixels / bins) - FIRST_CELL_PX) / STRIDE
    place = place.clamp(0, cells - 1).unsqueeze(1)
    return (1 - (place - torch.arange(cells)).abs()).clamp_min(0)
