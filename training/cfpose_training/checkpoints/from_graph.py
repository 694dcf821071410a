"""The weights of an exported pose graph, as a state dict to train on from.

Export folds each batch norm into the convolution before it. Here the convolution keeps the folded
weights, and its norm becomes one that only adds the folded bias.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfpose_sdk.errors import ArtifactError, require
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from cfpose_training.nets.efficientnet import EPS as LITE_EPS

PREFIX = "pose."  # of a PoseNet inside the fused graph
EPS = 1e-5  # PyTorch's batch norm
LITE_BODY = "backbone.body."
# EfficientNet's convolutions and the norms after them
LITE_NORMS = {
    "conv_stem": "bn0", "expand_conv": "bn0", "depthwise_conv": "bn1", "project_conv": "bn2",
}  # fmt: skip
CLASSIFIERS = ("head.mlp_head_x", "head.mlp_head_y")  # whose weights the graph holds transposed


def read_graph(path: Path) -> dict[str, Tensor]:
    """State dict of the PoseNet in a fused graph; its refiner, if any, stays behind.

    It computes what the graph computes, to float32 rounding. Raises ArtifactError when the file is
    not a float32 graph of ours.
    """
    model = load_graph(path)
    graph = model.graph
    arrays = constants(graph)
    state: dict[str, Tensor] = {}
    for node in graph.node:
        if node.op_type != "Conv" or not node.input[1].startswith(PREFIX):
            continue
        key = node.input[1].removeprefix(PREFIX)
        state[key] = weight = arrays[node.input[1]]
        # the exporter leaves out a bias of zeros
        bias = arrays[node.input[2]] if len(node.input) > 2 else torch.zeros(len(weight))
        if key.startswith("backbone."):
            norm = _norm_of(key)
            state |= _adding_norm(norm, bias, LITE_EPS if norm.startswith(LITE_BODY) else EPS)
        else:
            state[f"{key.removesuffix('.weight')}.bias"] = bias
    for layer in CLASSIFIERS:
        state |= classifier(graph, arrays, layer, path)
    if bad := sorted(key for key, value in state.items() if value.dtype is torch.float16):
        raise ArtifactError(f"{path} holds {bad[0]} in float16; give the FP32 graph")
    return state


def constants(graph: Any) -> dict[str, Tensor]:
    """A graph's constants by name; float16 ones that a Cast makes float32 of are float32."""
    from onnx import numpy_helper

    arrays = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    for node in graph.node:
        given = arrays.get(node.input[0]) if node.op_type == "Cast" else None
        if given is not None and given.dtype is torch.float16:
            arrays[node.output[0]] = arrays.pop(node.input[0]).float()
    return arrays


def graph_spec(path: Path) -> ModelSpec:
    """The ModelSpec in a graph, without the fields that a new training run changes."""
    metadata = {entry.key: entry.value for entry in load_graph(path).metadata_props}
    if SPEC_KEY not in metadata:
        raise ArtifactError(f"{path} carries no {SPEC_KEY}, so it is not a cfpose pose graph")
    spec = ModelSpec.from_json(metadata[SPEC_KEY])
    return dataclasses.replace(spec, calibration=(1.0, 0.0), metrics={}, gate={})


def load_graph(path: Path) -> Any:
    """An ONNX file's ModelProto. Raises ArtifactError when it is none, or cannot be read."""
    require("onnx", extra="export", why=f"reading the weights of {path.name}")
    import onnx

    try:
        return onnx.load_model(path)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    except Exception as error:  # protobuf's own classes share no base
        raise ArtifactError(f"{path} is not an ONNX file, or it is damaged: {error}") from error


def _norm_of(convolution: str) -> str:
    """backbone.layer1.0.conv2.weight → backbone.layer1.0.bn2; a bare index → the next one."""
    module = convolution.removesuffix(".weight")
    if (named := re.fullmatch(r"(.*)conv(\d+)", module)) is not None:
        return f"{named[1]}bn{named[2]}"
    parent, _, name = module.rpartition(".")
    if name in LITE_NORMS:
        return f"{parent}.{LITE_NORMS[name]}"
    parent, _, index = module.rpartition(".")
    if not index.isdigit():
        raise ArtifactError(f"the graph is of another trunk than HRNet or EfficientNet: {module}")
    return f"{parent}.{int(index) + 1}"


def only_adds(norm: nn.BatchNorm2d) -> bool:
    """Whether a norm is as `read_graph` leaves it."""
    wanted = _adding_norm("", norm.bias.detach(), norm.eps)
    own = norm.state_dict()
    return all(torch.equal(own[key.removeprefix(".")], value) for key, value in wanted.items())


def _adding_norm(norm: str, bias: Tensor, eps: float) -> dict[str, Tensor]:
    return {
        f"{norm}.weight": torch.full_like(bias, math.sqrt(1 + eps)),
        f"{norm}.bias": bias,
        f"{norm}.running_mean": torch.zeros_like(bias),
        f"{norm}.running_var": torch.ones_like(bias),
        f"{norm}.num_batches_tracked": torch.zeros((), dtype=torch.long),
    }


def classifier(graph: Any, arrays: dict[str, Tensor], layer: str, path: Path) -> dict[str, Tensor]:
    """A linear layer: its bias, and the matrix whose product the bias is added to."""
    bias = f"{PREFIX}{layer}.bias"
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Add" and bias in node.input and bias in arrays:
            product = next(makers[name] for name in node.input if name in makers)
            matrices = [arrays[name] for name in product.input if name in arrays]
            if product.op_type == "MatMul" and len(matrices) == 1:
                weight = matrices[0].T.contiguous()
                return {f"{layer}.weight": weight, f"{layer}.bias": arrays[bias]}
    raise ArtifactError(f"{path} has no layer {layer} that is written as cfpose-export writes it")
