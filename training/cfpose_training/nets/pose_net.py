"""The networks joined: backbone and head (PoseNet), and with the refiner (RefinedPoseNet)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from cfpose_sdk.errors import InputError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.hrnet import HRNet, HRNetConfig, Taps, init_convolutions
from cfpose_training.nets.igp_gcn import IGPGCN
from cfpose_training.nets.lite import LiteBackbone, LiteConfig
from cfpose_training.nets.simcc import SimCCHead

BackboneConfig = HRNetConfig | LiteConfig


def build_backbone(config: BackboneConfig) -> HRNet | LiteBackbone:
    """The network that a configuration describes."""
    return HRNet(config) if isinstance(config, HRNetConfig) else LiteBackbone(config)


class PoseOutput(NamedTuple):
    """What PoseNet gives for B crops."""

    x_logits: Tensor  # (B, K, bins_x)
    y_logits: Tensor  # (B, K, bins_y)
    taps: Taps


def with_scaled_logits(output: PoseOutput, factor: float) -> PoseOutput:
    """The same output, its logits times `factor`."""
    if factor == 1:
        return output
    return output._replace(x_logits=factor * output.x_logits, y_logits=factor * output.y_logits)


class PoseNet(nn.Module):
    """Backbone + SimCC head: normalised RGB crops (B, 3, H, W) → PoseOutput.

    State-dict keys are `backbone.*` and `head.*` over the reference names; an HRNet starts from the
    reference's initial weights. Raises InputError when
    the spec's crop size is not a multiple of 4.
    """

    def __init__(self, config: BackboneConfig, spec: ModelSpec) -> None:
        super().__init__()
        width, height = spec.size_wh
        if width % 4 or height % 4:
            raise InputError(f"size_wh must be multiples of 4, got {spec.size_wh}")
        self.backbone = build_backbone(config)
        self.head = SimCCHead(config.width, len(spec.skeleton), spec.size_wh, spec.bins_xy)
        init_convolutions(self if isinstance(config, HRNetConfig) else self.head)

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
