"""A fused graph gives its network back: exported, read, and the same poses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch

from cfpose_export.graph.trace import build_pose
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_training.checkpoints.convert import initialise
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.cli import main
from cfpose_training.nets.efficientnet import LiteConfig
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import PoseNet
from tests.export.conftest import SPEC, live_network


def test_convert_gives_the_network_back(
    fused: FusedPose, model: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save_model(model, tmp_path / "tiny.onnx")
    target = tmp_path / "tiny.safetensors"
    assert main(["convert", str(tmp_path / "tiny.onnx"), "-o", str(target)]) == 0
    network, spec = load_pose(target)
    assert isinstance(network, PoseNet)  # the refiner stays behind
    assert spec == dataclasses.replace(fused.spec, calibration=(1.0, 0.0))
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, 96, 64, generator=draw)
    with torch.no_grad():
        found, expected = network(images), fused.pose(images)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_lite_network_comes_back(tmp_path: Path) -> None:
    """Its norms have another eps, and its layers other names."""
    fused = FusedPose(live_network(LiteConfig(neck=(12, 8, 4)), SPEC), SPEC)
    onnx.save_model(build_pose(fused), tmp_path / "lite.onnx")
    fresh = PoseNet(LiteConfig(neck=(12, 8, 4), frozen=1), SPEC).eval()
    started = initialise(fresh, tmp_path / "lite.onnx")
    assert not started.fresh
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for ours, theirs in zip(fresh(images)[:2], fused.pose(images)[:2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_run_can_start_from_a_graph(
    fused: FusedPose, model: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save_model(model, tmp_path / "tiny.onnx")
    fresh = PoseNet(fused.pose.backbone.config, fused.spec)
    started = initialise(fresh, tmp_path / "tiny.onnx")
    assert not started.fresh
    assert torch.equal(fresh.head.mlp_head_x.weight, fused.pose.head.mlp_head_x.weight)


def test_the_bundled_graph_converts(tmp_path: Path) -> None:
    target = tmp_path / "s.safetensors"
    assert main(["convert", str(BUNDLED_MODEL), "-o", str(target)]) == 0
    assert load_pose(target)[1].name == "cfpose-s"


@pytest.mark.parametrize("damage", ["text", "layer"])
def test_other_files_are_refused(model: onnx.ModelProto, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.onnx"
    if damage == "text":
        path.write_text("not a graph")
    else:
        name = "pose.head.mlp_head_y.bias"
        next(t for t in model.graph.initializer if t.name == name).name = "renamed"
        onnx.save_model(model, path)
    with pytest.raises(ArtifactError, match=r"bad\.onnx"):
        main(["convert", str(path), "-o", str(tmp_path / "out.safetensors")])
