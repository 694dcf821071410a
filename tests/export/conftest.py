"""Networks with live random weights, and the graphs exported from them."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
import torch
from torch import nn

from cfpose_export.graph.trace import build_pose
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.hrnet import HRNET_W32, HRNetConfig
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import BackboneConfig, PoseNet, RefinedPoseNet

TINY = HRNetConfig(width=8, stem=8, bottlenecks=1, modules=(1, 1, 1), blocks=1)
SPEC = ModelSpec("tiny", COCO_17, (64, 96), calibration=(0.8, 0.3), license="test")


def live_network(config: BackboneConfig, spec: ModelSpec, *, refined: bool = True) -> nn.Module:
    """A network whose activations keep their size through all layers, as trained ones do.

    Logits are scaled by 20, so that the decoder sees peaks; batch-norm statistics are not trivial.
    """
    torch.manual_seed(0)
    pose = PoseNet(config, spec)
    for layer in pose.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.3, 0.6)
    draw = torch.Generator().manual_seed(0)
    width, height = spec.size_wh
    with torch.no_grad():
        maps = pose.head.final_layer(
            pose.eval().backbone(torch.randn(2, 3, height, width, generator=draw)).quarter
        )
        pose.head.final_layer.weight /= maps.std()
        for classifier in (pose.head.mlp_head_x, pose.head.mlp_head_y):
            classifier.weight *= 20
    if not refined:
        return pose.eval()
    taps = pose.backbone.tap_channels
    refiner = IGPGCNConfig(spec.size_wh, taps, node_channels=16, joint_channels=(16, 8, 8))
    return RefinedPoseNet(pose, IGPGCN(refiner, spec.skeleton), spec).eval()


def fuse(decode: str = "subbin", *, refined: bool = True) -> FusedPose:
    spec = dataclasses.replace(SPEC, decode=decode)
    return FusedPose(live_network(TINY, spec, refined=refined), spec)


@pytest.fixture(scope="session")
def fused() -> FusedPose:
    """A tiny refined model with the shipping decoder."""
    return fuse()


@pytest.fixture(scope="session")
def _built(fused: FusedPose) -> onnx.ModelProto:
    return build_pose(fused)


@pytest.fixture
def model(_built: onnx.ModelProto) -> onnx.ModelProto:
    """The exported graph of `fused`; a copy that the test may damage."""
    copy = onnx.ModelProto()
    copy.CopyFrom(_built)
    return copy


@pytest.fixture(scope="session")
def unrefined() -> tuple[FusedPose, onnx.ModelProto]:
    """A tiny model without a refiner."""
    fused = fuse(refined=False)
    return fused, build_pose(fused)


@pytest.fixture(scope="session")
def tiny_argmax() -> tuple[FusedPose, onnx.ModelProto]:
    """A tiny refined model with the paper's decoder."""
    fused = fuse("argmax")
    return fused, build_pose(fused)


@pytest.fixture(scope="session")
def w32_argmax() -> tuple[FusedPose, onnx.ModelProto]:
    """HRNet-W32 with a refiner and the paper's decoder."""
    spec = dataclasses.replace(SPEC, size_wh=(192, 256), decode="argmax")
    fused = FusedPose(live_network(HRNET_W32, spec), spec)
    return fused, build_pose(fused)
