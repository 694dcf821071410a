"""Weights stored as float16: what is rounded, what is not, and that the graph is the same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.cli import main
from cfpose_export.graph.half_weights import (
    MIN_ELEMENTS,
    halve_weights,
    has_half_weights,
    whole_weights,
)
from cfpose_export.graph.rules import read_spec
from cfpose_sdk.backends import open_backend
from cfpose_sdk.errors import ExportError
from cfpose_sdk.spec import FinderSpec
from cfpose_training.checkpoints.files import save_finder, save_pose
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import RefinedPoseNet


def matrix_graph(weights: NDArray[np.float32]) -> onnx.ModelProto:
    """x (N, rows) → x @ weights + 0.1."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "matrix",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weights.shape[1]])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.float32([0.1]), "b"),
        ],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def test_large_weights_are_rounded_and_small_ones_are_not(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(16, MIN_ELEMENTS // 16)).astype(np.float32)
    model = matrix_graph(weights)
    before = len(model.SerializeToString())
    halve_weights(model)
    onnx.checker.check_model(model, full_check=True)
    assert before - len(model.SerializeToString()) > weights.nbytes / 2 - 200
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {"w.half": TensorProto.FLOAT16, "b": TensorProto.FLOAT}
    onnx.save_model(model, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    with open_backend(tmp_path / "m.onnx", device="cpu") as backend:
        (y,) = backend.run({"x": x}).values()
    rounded = weights.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(y, x @ rounded + np.float32(0.1), rtol=0, atol=1e-5)


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(ExportError, match="w holds values that float16 does not"):
        halve_weights(matrix_graph(np.full((16, MIN_ELEMENTS // 16), 7e4, np.float32)))


def test_a_finder_of_half_weights_proves_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = FinderNetConfig(channels=(16, 16, 16, 16, 16), blocks=(1, 1, 1, 1, 1), head_channels=8)
    checkpoint = tmp_path / "finder.safetensors"
    spec = FinderSpec("tiny", (192, 128), threshold=0.0, nms_iou=0.5)
    save_finder(checkpoint, FinderNet(config), spec)
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    command = ["onnx", "--checkpoint", str(checkpoint), "-o"]
    assert main([*command, str(whole)]) == 0
    assert json.loads(capsys.readouterr().out)["half_weights"] is False
    assert main([*command, str(half), "--half-weights"]) == 0
    assert json.loads(capsys.readouterr().out)["half_weights"] is True
    assert half.stat().st_size < 0.75 * whole.stat().st_size
    assert main(["check", str(half), "--checkpoint", str(checkpoint)]) == 0

    damaged = onnx.load_model(half)
    for tensor in damaged.graph.initializer:  # one alone hardly moves so small a network
        if tensor.data_type == TensorProto.FLOAT16:
            array = numpy_helper.to_array(tensor) * np.float16(1.5)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save_model(damaged, half)
    assert main(["check", str(half), "--checkpoint", str(checkpoint)]) == 1


def test_half_weights_become_whole_again() -> None:
    weights = np.random.default_rng(0).normal(size=(16, MIN_ELEMENTS // 16)).astype(np.float32)
    plain = matrix_graph(weights)
    model = matrix_graph(weights)
    halve_weights(model)
    assert (has_half_weights(plain), has_half_weights(model)) == (False, True)
    assert whole_weights(plain) is plain
    whole = whole_weights(model)
    assert not has_half_weights(whole)
    assert [node.op_type for node in whole.graph.node] == ["MatMul", "Add"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    np.testing.assert_array_equal(stored["w"], weights.astype(np.float16).astype(np.float32))


def test_positions_are_no_weights() -> None:
    model = matrix_graph(np.ones((16, MIN_ELEMENTS // 16), np.float32))
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.linspace(0, 1, MIN_ELEMENTS // 16, dtype="f4"), "b"))
    model.graph.node[0].op_type = "Mul"
    halve_weights(model)
    assert not has_half_weights(model)


def test_a_pose_model_of_half_weights_proves_right(
    tmp_path: Path, fused: FusedPose, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fused.refiner is not None
    network = RefinedPoseNet(fused.pose, fused.refiner, fused.spec)
    checkpoint, half = tmp_path / "pose.safetensors", tmp_path / "half.onnx"
    save_pose(checkpoint, network, fused.spec)
    command = ["onnx", "--checkpoint", str(checkpoint), "-o", str(half), "--half-weights"]
    assert main(command) == 0
    whole, halved = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert whole["max_px"] <= 0.05
    assert 0 < halved["p99_px"] <= 0.25
    model = onnx.load_model(half)
    assert has_half_weights(model)
    spec = read_spec(model)
    assert spec.precision == "fp32"
    assert spec.gate["half_weights_p99_px"] >= halved["p99_px"]
    assert main(["check", str(half), "--checkpoint", str(checkpoint)]) == 0

    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor) * np.float16(1.5)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save_model(model, half)
    capsys.readouterr()
    assert main(["check", str(half), "--checkpoint", str(checkpoint)]) == 1
    assert "float16 weights" in capsys.readouterr().err
