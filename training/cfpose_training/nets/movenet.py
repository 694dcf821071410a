"""MoveNet's network as a pose backbone: an inverted-residual trunk under a narrowing pyramid.

The layers are those of the single-pose MoveNet files (Google, Apache-2.0), whose weights
`movenet_file` reads: MobileNetV2 blocks (Sandler et al., CVPR 2018) with the batch norms folded in,
and a feature pyramid of depthwise convolutions. Crops of any size that is a multiple of 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_training.nets.hrnet import Taps

MoveNetName = Literal["lightning", "thunder"]

# channels of the stem, of the first block, and of the six stages
WIDTHS: dict[MoveNetName, tuple[int, ...]] = {
    "lightning": (32, 16, 24, 32, 64, 96, 160, 320),
    "thunder": (56, 32, 40, 56, 112, 168, 280, 560),
}
REPEATS = (2, 3, 4, 3, 3, 1)
STRIDES = (2, 2, 2, 1, 2, 1)
EXPANSION = 6
LAST = 1280  # channels of the trunk's last map, at 1/32
PYRAMID = (64, 32, 24, 24)  # of the maps that come down at 1/32, and of those at 1/16, 1/8, 1/4
MULTIPLE = 16  # of the crop's sides: at 1/32 one of odd cells is cut off

# MoveNet computes on pixel / 127.5 − 1
MOVENET_MEAN_RGB = MOVENET_STD_RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class MoveNetConfig:
    """Which of the two widths, and how much of the trunk learns."""

    body: MoveNetName = "lightning"
    frozen: int = 3  # the stem and this many first stages keep their weights; 0: all learn

    @property
    def width(self) -> int:
        """Channels of the 1/4 map."""
        return PYRAMID[3]


class SameConv(nn.Conv2d):
    """3x3 convolution with TensorFlow's padding: of stride 2, at the right and the bottom alone.

    A side of odd length gets two rows there, so that output cell i stands on input cell 2 i + 1 at
    every size.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return super().forward(x)
        height, width = x.shape[-2:]
        x = F.pad(x, (0, 1 + width % 2, 0, 1 + height % 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_conv(channels_in: int, out: int, stride: int, groups: int = 1) -> SameConv:
    """A SameConv; at stride 1 zeros all around."""
    return SameConv(channels_in, out, 3, stride, 1, groups=groups)


class InvertedResidual(nn.Module):
    """Expand 1x1 (where `expansion` > 1), depthwise 3x3, project 1x1; a shortcut where it fits."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int = EXPANSION) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = nn.Conv2d(channels, wide, 1) if expansion > 1 else None
        self.depthwise = same_conv(wide, wide, stride, groups=wide)
        self.project = nn.Conv2d(wide, out, 1)
        self.has_shortcut = stride == 1 and channels == out and expansion > 1

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + out if self.has_shortcut else out


class Merge(nn.Module):
    """A coarser map, doubled, plus a finer one → depthwise 3x3, 1x1, ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.project = nn.Conv2d(channels, out, 1)

    def forward(self, coarser: Tensor, finer: Tensor) -> Tensor:
        height, width = finer.shape[-2:]
        doubled = F.interpolate(coarser, scale_factor=2.0, mode="bilinear", align_corners=False)
        # a map of odd size, halved and doubled, is one cell too large
        total = doubled[..., :height, :width] + finer
        return F.relu(self.project(self.depthwise(total)))


class MoveNetBackbone(nn.Module):
    """RGB images (B, 3, H, W) in [-1, 1] → Taps, the pyramid's maps. H and W multiples of 16."""

    def __init__(self, config: MoveNetConfig) -> None:
        super().__init__()
        self.config = config
        stem, first, *outs = WIDTHS[config.body]
        self.stem = same_conv(3, stem, 2)
        self.first = InvertedResidual(stem, first, 1, expansion=1)
        self.stages = nn.ModuleList()
        channels = first
        for out, repeat, stride in zip(outs, REPEATS, STRIDES, strict=True):
            blocks = [InvertedResidual(channels, out, stride)]
            blocks += [InvertedResidual(out, out, 1) for _ in range(repeat - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = out
        top, sixteenth, eighth, quarter = PYRAMID
        self.last = nn.Conv2d(channels, LAST, 1)
        self.top = nn.Conv2d(LAST, top, 1)
        self.lateral4 = nn.Conv2d(outs[0], eighth, 1)
        self.lateral8 = nn.Conv2d(outs[1], sixteenth, 1)
        self.lateral16 = nn.Conv2d(outs[2], top, 1)
        self.merge16 = Merge(top, sixteenth)
        self.merge8 = Merge(sixteenth, eighth)
        self.merge4 = Merge(eighth, quarter)
        if config.frozen:
            still = nn.ModuleList([self.stem, self.first, *self.stages[: config.frozen]])
            still.requires_grad_(False)

    @property
    def tap_channels(self) -> tuple[int, int, int]:
        """Channels of Taps, in its order."""
        return PYRAMID[1], PYRAMID[2], PYRAMID[3]

    def forward(self, images: Tensor) -> Taps:
        x = self.first(F.relu6(self.stem(images)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = self.top(F.relu6(self.last(x)))
        sixteenth = self.merge16(top, self.lateral16(maps[2]))
        eighth = self.merge8(sixteenth, self.lateral8(maps[1]))
        quarter = self.merge4(eighth, self.lateral4(maps[0]))
        return Taps(sixteenth=sixteenth, eighth=eighth, quarter=quarter)


class Branch(nn.Module):
    """One of MoveNet's outputs over the 1/4 map: depthwise 3x3, 1x1 to 96, ReLU, 1x1."""

    WIDE = 96

    def __init__(self, channels: int, out: int, *, padding: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=padding, groups=channels, bias=False
        )
        self.hidden = nn.Conv2d(channels, self.WIDE, 1)
        self.out = nn.Conv2d(self.WIDE, out, 1)

    def forward(self, quarter: Tensor) -> Tensor:
        found: Tensor = self.out(torch.relu(self.hidden(self.depthwise(quarter))))
        return found
