"""Heads, and the networks joined: backbone and head (PoseNet), and the refiner (RefinedPoseNet).

SimCC's head: Li et al., "SimCC: a Simple Coordinate Classification Perspective for Human Pose
Estimation", ECCV 2022; its parameter names are those of the reference implementation.

The marginal head: SimCC's bins as the sums of one distribution over the plane. Each joint has a
heat map, and a place where the person in the middle of the crop should have it; heat far from that
place counts less, which is how MoveNet tells people apart. The softmax over the plane is summed
along rows and along columns, so both axes speak of the same peaks. A pair of linear layers, shared
by all joints, brings cells to bins.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cfpose_sdk.errors import InputError
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, ModelSpec
from cfpose_training.nets.decode import decode_simcc, full_precision
from cfpose_training.nets.efficientnet import LiteBackbone, LiteConfig
from cfpose_training.nets.hrnet import HRNet, HRNetConfig, Taps, init_convolutions
from cfpose_training.nets.igp_gcn import IGPGCN
from cfpose_training.nets.movenet import MULTIPLE, Branch, MoveNetBackbone, MoveNetConfig

STRIDE = 4  # pixels between cells
# where cell 0 of MoveNet's maps lies, in pixels whose first has its middle at 0
FIRST_CELL_PX = 1.75
GAIN = 1.15
NEAREST = 1.8  # cells, added to the distance: MoveNet's own decoder divides by distance + 1.8
TINY = 1e-6  # cells², keeps the gradient of a distance of 0 finite


class BinHead(nn.Module):
    """A head whose last layers, one an axis, give the logits of the bins."""

    mlp_head_x: nn.Linear
    mlp_head_y: nn.Linear

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Multiply the logits by a factor, for good: both linear layers take it in."""
        for layer in (self.mlp_head_x, self.mlp_head_y):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)


class MarginalHead(BinHead):
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


class Normalise(nn.Module):
    """uint8 BGR images (B, H, W, 3) → normalised RGB (B, 3, H, W)."""

    mean: Tensor
    std: Tensor
    channels_last = True  # how the images lie in memory: as the crops do, or channel by channel

    def __init__(
        self,
        mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB,
        std_rgb: tuple[float, float, float] = IMAGENET_STD_RGB,
    ) -> None:
        super().__init__()
        mean = torch.tensor(mean_rgb).reshape(1, 3, 1, 1) * 255
        std = torch.tensor(std_rgb).reshape(1, 3, 1, 1) * 255
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        # float first: TensorRT does not move uint8 tensors
        images = (crops.float().permute(0, 3, 1, 2).flip(1) - self.mean) / self.std
        return images if self.channels_last else images.contiguous()


NEGLIGIBLE = 1e-12  # of a starting weight


class SimCCHead(BinHead):
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
        Weights too small to matter are zero: left denormal, they double a graph's time.
        """
        height, width = self.cells_hw
        for axis, layer in enumerate((self.mlp_head_x, self.mlp_head_y)):
            cells = torch.arange((width, height)[axis], dtype=torch.float32)
            bins = torch.arange(layer.out_features) * (len(cells) / layer.out_features)
            bump = torch.exp(-((bins[:, None] - cells) ** 2) / 2)
            bump[bump < NEGLIGIBLE] = 0
            spread = (bump[:, None, :], bump[:, :, None])[axis].expand(-1, height, width)
            layer.weight.copy_(spread.reshape(layer.out_features, -1))
            nn.init.zeros_(layer.bias)

    def forward(self, quarter: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.final_layer(quarter).flatten(2)
        return self.mlp_head_x(maps), self.mlp_head_y(maps)


BackboneConfig = HRNetConfig | LiteConfig | MoveNetConfig
Backbone = HRNet | LiteBackbone | MoveNetBackbone
HeadName = Literal["simcc", "marginal"]


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network that a configuration describes."""
    if isinstance(config, MoveNetConfig):
        return MoveNetBackbone(config)
    return HRNet(config) if isinstance(config, HRNetConfig) else LiteBackbone(config)


class PoseOutput(NamedTuple):
    """The output of PoseNet for B crops."""

    x_logits: Tensor  # (B, K, bins_x)
    y_logits: Tensor  # (B, K, bins_y)
    taps: Taps


def with_scaled_logits(output: PoseOutput, factor: float) -> PoseOutput:
    """The same output, its logits times `factor`."""
    if factor == 1:
        return output
    return output._replace(x_logits=factor * output.x_logits, y_logits=factor * output.y_logits)


class PoseNet(nn.Module):
    """Backbone + head that gives SimCC bins: normalised RGB crops (B, 3, H, W) → PoseOutput.

    State-dict keys are `backbone.*` and `head.*` over the reference names; an HRNet starts from the
    reference's initial weights. Raises InputError when
    the spec's crop size is not a multiple of 4, for MoveNet's trunk of 16.
    """

    def __init__(self, config: BackboneConfig, spec: ModelSpec, head: HeadName = "simcc") -> None:
        super().__init__()
        width, height = spec.size_wh
        multiple = MULTIPLE if isinstance(config, MoveNetConfig) else 4
        if width % multiple or height % multiple:
            raise InputError(f"size_wh must be multiples of {multiple}, got {spec.size_wh}")
        self.backbone = build_backbone(config)
        kind = MarginalHead if head == "marginal" else SimCCHead
        self.head = kind(config.width, len(spec.skeleton), spec.size_wh, spec.bins_xy)
        if isinstance(config, HRNetConfig):
            init_convolutions(self)
        elif head == "simcc":
            init_convolutions(self.head)

    @property
    def head_name(self) -> HeadName:
        """Which head it has."""
        return "marginal" if isinstance(self.head, MarginalHead) else "simcc"

    def forward(self, images: Tensor) -> PoseOutput:
        taps = self.backbone(images)
        x_logits, y_logits = self.head(taps.quarter)
        return PoseOutput(x_logits, y_logits, taps)


class RefinedPoseNet(nn.Module):
    """PoseNet and the refiner that reads its maps at the joints."""

    def __init__(self, pose: PoseNet, refiner: IGPGCN, spec: ModelSpec) -> None:
        super().__init__()
        self.pose = pose
        self.refiner = refiner
        self.spec = spec

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refined and coarse poses (B, K, 2) in crop pixels, and the raw score (B, K)."""
        output = self.pose(images)
        coarse, score = decode_simcc(
            output.x_logits,
            output.y_logits,
            self.spec.split_ratio,
            self.spec.decode,
            self.spec.windows,
        )
        return self.refiner.apply_to(output.taps, coarse, score), coarse, score
