"""The whole inference of a model as one module: what is exported, and what it is proven against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.decode import calibrate, decode_simcc, full_precision
from cfpose_training.nets.igp_gcn import IGPGCN
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.stages import Normalise


class FusedOutput(NamedTuple):
    """What FusedPose gives for N crops. The logits serve the proof and do not leave the graph."""

    keypoints: Tensor  # (N, K, 2) float32 crop pixels
    confidence: Tensor  # (N, K) float32 in [0, 1], calibrated
    coarse: Tensor  # (N, K, 2) float32 crop pixels, before refinement
    x_logits: Tensor  # (N, K, bins_x) float32
    y_logits: Tensor  # (N, K, bins_y) float32


class FusedPose(nn.Module):
    """uint8 BGR crops (N, H, W, 3) → normalise → network → decode → refine → FusedOutput.

    Decode, calibration, mean and std are the spec's. Without a refiner keypoints equal coarse.
    N = 0 is valid. Always in eval mode.
    """

    def __init__(self, network: PoseNet | RefinedPoseNet, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.normalise = Normalise(spec.mean_rgb, spec.std_rgb)
        self.pose: PoseNet
        self.refiner: IGPGCN | None
        if isinstance(network, RefinedPoseNet):
            self.pose, self.refiner = network.pose, network.refiner
        else:
            self.pose, self.refiner = network, None
        self.eval().requires_grad_(False)

    def forward(self, crops: Tensor) -> FusedOutput:
        x_logits, y_logits, taps = self.pose(self.normalise(crops))
        x_logits, y_logits = full_precision(x_logits), full_precision(y_logits)
        coarse, score = decode_simcc(x_logits, y_logits, self.spec.split_ratio, self.spec.decode)
        # a graph may not have one value for two outputs, so the copy
        keypoints = (
            coarse.clone() if self.refiner is None else self.refiner.apply_to(taps, coarse, score)
        )
        confidence = calibrate(score, self.spec.calibration)
        return FusedOutput(keypoints, confidence, coarse, x_logits, y_logits)

    @torch.inference_mode()
    def run(self, crops: Tensor) -> FusedOutput:
        """`forward` without gradients."""
        return self(crops)  # type: ignore[no-any-return]
