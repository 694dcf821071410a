"""EfficientNet-Lite under a top-down neck: a pose backbone that starts from ImageNet weights.

Its maps have the meaning and scales of HRNet's, so the SimCC head and the refiner stand on either.
The neck is a feature pyramid (Lin et al., CVPR 2017) that narrows on its way to 1/4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_training.nets.efficientnet import EfficientNetLite, LiteName, map_channels
from cfpose_training.nets.hrnet import Taps, conv_bn


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
