"""EfficientNet-Lite, alone and under a top-down neck: a backbone that starts from ImageNet weights.

Tan and Le, ICML 2019; the Lite variants without squeeze-and-excitation. For networks that see too
few photos to learn edges and textures themselves. Padding is symmetric, not TensorFlow's: a cell i
of a stride-s map is centred on pixel s * i, the convention of every map in this package; the
weights do not care, their maps are only read at another phase.

Under the neck its maps have the meaning and scales of HRNet's, so the SimCC head and the refiner
stand on either. The neck is a feature pyramid (Lin et al., CVPR 2017) that narrows on its way to
1/4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from cfpose_training.nets.hrnet import Taps, conv_bn

LiteName = Literal["lite0", "lite1", "lite2"]
# width and depth coefficients
SCALING: dict[LiteName, tuple[float, float]] = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
}
STEM = 32  # in all of them
# Lite0's stages: out channels, blocks, expansion, kernel, stride. The first has one block in all of
# them. Of the last, published with more blocks, two are enough for 1/32.
STAGES = (
    (16, 1, 1, 3, 1),
    (24, 2, 6, 3, 2),
    (40, 2, 6, 5, 2),
    (80, 3, 6, 3, 2),
    (112, 3, 6, 5, 1),
    (192, 2, 6, 5, 2),
)
QUARTER, EIGHTH, SIXTEENTH, LAST = 1, 2, 4, 5  # the stages whose ends are the maps of Pyramid
EPS = 1e-3  # of batch norm, as the weights were trained
# its ImageNet weights were trained on (pixel - 127) / 128
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0


class BlockShape(NamedTuple):
    """One inverted residual of a body."""

    out: int
    expansion: int
    kernel: int
    stride: int
    stage: int


def block_shapes(name: LiteName) -> list[BlockShape]:
    """The blocks of a body in order."""
    width, depth = SCALING[name]
    shapes = []
    for stage, (channels, blocks, expansion, kernel, stride) in enumerate(STAGES):
        out = _to_eights(channels * width)
        count = math.ceil(blocks * depth) if 0 < stage < LAST else blocks
        for number in range(count):
            shapes.append(BlockShape(out, expansion, kernel, 1 if number else stride, stage))
    return shapes


def _to_eights(channels: float) -> int:
    """The nearest multiple of 8, never more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def map_channels(name: LiteName) -> tuple[int, int, int, int]:
    """Channels of a body's maps at 1/4, 1/8, 1/16 and 1/32."""
    by_stage = {shape.stage: shape.out for shape in block_shapes(name)}
    return by_stage[QUARTER], by_stage[EIGHTH], by_stage[SIXTEENTH], by_stage[LAST]


class Pyramid(NamedTuple):
    """Maps of the body at four scales."""

    quarter: Tensor
    eighth: Tensor
    sixteenth: Tensor
    last: Tensor  # 1/32


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """The convolution, then the norm with its statistics as they stand.

    In training both are one convolution of scaled weights, which saves two passes over the map and
    their gradients; export sees the two layers, and folds them once.
    """
    if not conv.training:
        plain: Tensor = norm(conv(x))
        return plain
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return nn.functional.conv2d(
        x, conv.weight * scale[:, None, None, None], shift,
        conv.stride, conv.padding, conv.dilation, conv.groups,
    )  # fmt: skip


class MBConv(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1; a shortcut where shapes allow it."""

    def __init__(self, incoming: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = incoming * expansion
        self.is_expanded = expansion != 1
        self.has_shortcut = stride == 1 and incoming == out
        if self.is_expanded:
            self.expand_conv = nn.Conv2d(incoming, wide, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(wide, eps=EPS)
        self.depthwise_conv = nn.Conv2d(
            wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False
        )
        self.bn1 = nn.BatchNorm2d(wide, eps=EPS)
        self.project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        wide = x
        if self.is_expanded:
            wide = nn.functional.relu6(conv_norm(x, self.expand_conv, self.bn0))
        wide = nn.functional.relu6(conv_norm(wide, self.depthwise_conv, self.bn1))
        out = conv_norm(wide, self.project_conv, self.bn2)
        return x + out if self.has_shortcut else out


class EfficientNetLite(nn.Module):
    """Normalised RGB images (B, 3, H, W) → Pyramid; the blocks that `block_shapes` lists.

    Batch norms keep their ImageNet statistics in training, because a batch of detection views is
    too small for its own. The stem and the first `frozen` blocks do not learn.
    """

    def __init__(self, name: LiteName = "lite0", frozen: int = 0) -> None:
        super().__init__()
        self.name: LiteName = name
        self.frozen = frozen
        self.conv_stem = nn.Conv2d(3, STEM, 3, 2, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(STEM, eps=EPS)
        self.blocks = nn.ModuleList()
        self.map_ends: list[int] = []  # the blocks that end the maps
        incoming = STEM
        shapes = block_shapes(name)
        for index, (out, expansion, kernel, stride, stage) in enumerate(shapes):
            self.blocks.append(MBConv(incoming, out, expansion, kernel, stride))
            incoming = out
            ends_stage = index + 1 == len(shapes) or shapes[index + 1].stage != stage
            if ends_stage and stage in (QUARTER, EIGHTH, SIXTEENTH, LAST):
                self.map_ends.append(index)
        if frozen:
            still = nn.ModuleList([self.conv_stem, self.bn0, *self.blocks[:frozen]])
            still.requires_grad_(False)

    def forward(self, images: Tensor) -> Pyramid:
        x = nn.functional.relu6(conv_norm(images, self.conv_stem, self.bn0))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.map_ends:
                maps.append(x)
        return Pyramid(*maps)

    @property
    def _title(self) -> str:
        return f"EfficientNet-{self.name.capitalize()}"

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def load_imagenet(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Take the weights of a classifier, in the names of `efficientnet_lite_pytorch`.

        Returns the keys that have no place here: the classifier's last layers. Raises
        ArtifactError when a key is missing or of another shape.
        """
        renamed = {".".join(p.lstrip("_") for p in key.split(".")): key for key in state}
        own = self.state_dict()
        if missing := sorted(key for key in own if key not in renamed):
            raise ArtifactError(f"these are no {self._title} weights: they lack {missing[:5]}")
        weights = {key: state[renamed[key]] for key in own}
        if bad := sorted(key for key in own if weights[key].shape != own[key].shape):
            raise ArtifactError(f"these are no {self._title} weights: {bad[:5]} do not fit")
        self.load_state_dict(_for_our_pixels(weights))
        return tuple(sorted(renamed[key] for key in renamed.keys() - own.keys()))


def _for_our_pixels(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stem, made to take ImageNet-normalised pixels: its scale and shift move into it.

    Exact but for the zero padding of the picture's edge.
    """
    mean, std = torch.tensor(IMAGENET_MEAN_RGB), torch.tensor(IMAGENET_STD_RGB)
    scale = (std * 255 / PIXEL_STD)[None, :, None, None]
    shift = ((mean * 255 - PIXEL_MEAN) / PIXEL_STD)[None, :, None, None]
    stem = tensors["conv_stem.weight"]
    constant = (stem * shift).sum(dim=(1, 2, 3))
    return {
        **tensors,
        "conv_stem.weight": stem * scale,
        "bn0.running_mean": tensors["bn0.running_mean"] - constant,
    }


@dataclass(frozen=True)
class LiteConfig:
    """The body, widths of the neck at 1/16, 1/8, 1/4, and how much of the body learns."""

    neck: tuple[int, int, int]
    frozen: int = 3  # the stem and this many first blocks of the body keep their weights
    body: LiteName = "lite0"

    @property
    def width(self) -> int:
        """Channels of the 1/4 map."""
        return self.neck[2]


class LiteBackbone(nn.Module):
    """Normalised RGB images (B, 3, H, W) → Taps. H and W are multiples of 4."""

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        self.config = config
        sixteenth, eighth, quarter = config.neck
        self.body = EfficientNetLite(config.body, config.frozen)
        from4, from8, from16, from32 = map_channels(config.body)
        self.lateral32 = conv_bn(from32, sixteenth, 1, relu=False)
        self.lateral16 = conv_bn(from16, sixteenth, 1, relu=False)
        self.smooth16 = conv_bn(sixteenth, sixteenth, 3)
        self.down16 = conv_bn(sixteenth, eighth, 1, relu=False)
        self.lateral8 = conv_bn(from8, eighth, 1, relu=False)
        self.smooth8 = conv_bn(eighth, eighth, 3)
        self.down8 = conv_bn(eighth, quarter, 1, relu=False)
        self.lateral4 = conv_bn(from4, quarter, 1, relu=False)
        self.smooth4 = conv_bn(quarter, quarter, 3)

    @property
    def tap_channels(self) -> tuple[int, int, int]:
        """Channels of Taps, in its order."""
        return self.config.neck

    def forward(self, images: Tensor) -> Taps:
        maps = self.body(images)
        sixteenth = self.lateral16(maps.sixteenth)
        sixteenth = self.smooth16(F.relu(sixteenth + _onto(sixteenth, self.lateral32(maps.last))))
        eighth = self.lateral8(maps.eighth)
        eighth = self.smooth8(F.relu(eighth + _onto(eighth, self.down16(sixteenth))))
        quarter = self.lateral4(maps.quarter)
        quarter = self.smooth4(F.relu(quarter + _onto(quarter, self.down8(eighth))))
        return Taps(sixteenth=sixteenth, eighth=eighth, quarter=quarter)


def _onto(finer: Tensor, coarser: Tensor) -> Tensor:
    """The coarser map at the finer one's size."""
    height, width = finer.shape[-2:]
    # a map of odd size, halved and doubled, is one cell too large
    return F.interpolate(coarser, scale_factor=2.0, mode="nearest")[..., :height, :width]
