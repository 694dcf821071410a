"""The whole inference of a checkpoint as one module; export writes it, and proves against it.

The SDK runs a checkpoint with these modules too, so it gives the results of the exported graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfpose_sdk.spec import FinderSpec, ModelSpec
from cfpose_training.nets.decode import (
    calibrate,
    covariance,
    decode_simcc,
    expected_oks,
    full_precision,
    widen,
)
from cfpose_training.nets.finder import FinderNet, candidates
from cfpose_training.nets.flip import average_logits, flip_order, mirror_xy, unmirror_logits
from cfpose_training.nets.hrnet import Taps
from cfpose_training.nets.igp_gcn import IGPGCN
from cfpose_training.nets.pose_net import Normalise, PoseNet, RefinedPoseNet


class FusedOutput(NamedTuple):
    """What FusedPose gives for N crops. The logits serve the proof and do not leave the graph."""

    keypoints: Tensor  # (N, K, 2) float32 crop pixels
    confidence: Tensor  # (N, K) float32 in [0, 1], calibrated
    covariance: Tensor  # (N, K, 2, 2) float32 crop pixels², of the keypoints
    coarse: Tensor  # (N, K, 2) float32 crop pixels, before refinement
    x_logits: Tensor  # (N, K, bins_x) float32
    y_logits: Tensor  # (N, K, bins_y) float32


class FusedPose(nn.Module):
    """uint8 BGR crops (N, H, W, 3) → normalise → network → decode → refine → FusedOutput.

    Decode, calibration, mean, std, flip test and joint lookup are the spec's. Without a refiner
    keypoints equal coarse. N = 0 is valid. Always in eval mode. The crops may be float too, holding
    the same values of 0 to 255.

    The flip test is that of `cfpose_training.nets.flip`: both views go through the network as one
    batch of 2N, so that its weights stand in the graph once, and the logits are those of the mean.
    """

    def __init__(self, network: PoseNet | RefinedPoseNet, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.normalise = Normalise(spec.mean_rgb, spec.std_rgb)
        self.pose: PoseNet
        self.refiner: IGPGCN | None
        if isinstance(network, RefinedPoseNet):
            self.pose = network.pose
            self.refiner = network.refiner.with_lookup(spec.joint_lookup)
        else:
            self.pose, self.refiner = network, None
        self.eval().requires_grad_(False)

    def forward(self, crops: Tensor) -> FusedOutput:
        spec = self.spec
        images = self.normalise(crops)
        if spec.flip_test:
            images = torch.cat([images, images.flip(3)])
        x_logits, y_logits, taps = self.pose(images)
        x_logits, y_logits = full_precision(x_logits), full_precision(y_logits)
        if spec.flip_test:
            (x, x_mirrored), (y, y_mirrored) = _views(x_logits), _views(y_logits)
            mirrored = unmirror_logits((x_mirrored, y_mirrored), spec)
            x_logits, y_logits = average_logits((x, y), mirrored)
        coarse, score = decode_simcc(
            x_logits, y_logits, spec.split_ratio, spec.decode, spec.windows
        )
        keypoints = self._refine(taps, coarse, score)
        moments = covariance(
            x_logits, y_logits, keypoints, spec.split_ratio,
            temperature=spec.spread_temperature, isotropy=spec.spread_isotropy,
        )  # fmt: skip
        if spec.evidence == "spread":
            score = expected_oks(keypoints, moments, spec.skeleton.oks_sigmas)
        confidence = calibrate(score, spec.calibration)
        spread = widen(spec.covariance_scale * moments, confidence, spec.covariance_odds_power)
        return FusedOutput(keypoints, confidence, spread, coarse, x_logits, y_logits)

    def _refine(self, taps: Taps, coarse: Tensor, score: Tensor) -> Tensor:
        """Keypoints (N, K, 2), from the maps of N crops, or of both views of N crops."""
        if self.refiner is None:
            return coarse.clone()  # a graph may not have one value for two outputs
        if not self.spec.flip_test:
            return self.refiner.apply_to(taps, coarse, score)
        both = torch.cat([coarse, mirror_xy(coarse, self.spec)])
        scores = torch.cat([score, score[:, flip_order(self.spec, score.device)]])
        here, there = _views(self.refiner.apply_to(taps, both, scores))
        return (here + mirror_xy(there, self.spec)) / 2

    @torch.inference_mode()
    def run(self, crops: Tensor) -> FusedOutput:
        """`forward` without gradients."""
        return self(crops)  # type: ignore[no-any-return]


class FusedFinder(nn.Module):
    """uint8 BGR letterboxes (N, H, W, 3) → boxes (N, M, 4) xyxy letterbox pixels, scores (N, M).

    M is `candidates` of the spec's size, also for a letterbox that is cut.
    """

    def __init__(self, network: FinderNet, spec: FinderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.normalise = Normalise()
        self.network = network
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.find(self.normalise(images), candidates(self.spec.size_wh))


def _views(values: Tensor) -> tuple[Tensor, Tensor]:
    """The (N, …) halves of (2N, …): of the crops, and of their mirror images."""
    here, there = values.reshape(2, -1, *values.shape[1:]).unbind(0)
    return here, there
