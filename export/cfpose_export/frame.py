"""A crops-in graph → the same graph with whole frames and boxes in, and frame pixels out.

The core keeps its nodes and weights: the sampler goes in front of it, the inverse map behind. Needs
onnx alone, so a graph whose checkpoint is gone can be rebuilt too.
"""

from __future__ import annotations

import dataclasses

import onnx

from cfpose_export.graph import FRAME_INPUTS, POSE_OUTPUTS, check_graph, read_spec, write_spec
from cfpose_export.sampler import CORE_INPUT, PLACED, placement, rename, sampler
from cfpose_sdk.errors import ExportError


def frame_graph(model: onnx.ModelProto, antialias: int = 1) -> onnx.ModelProto:
    """The frame-in twin of a proven crops-in graph; the same input gives the same bytes.

    Inputs `frame` uint8 [h, w, 3] BGR, h and w at least 2, and `boxes` float32 [N, 4] xyxy; outputs
    those of `model`, keypoints and coarse in frame pixels, covariance in frame pixels². N = 0 is
    valid. `antialias` s > 1 takes s × s samples a crop pixel where the frame is shrunk more than
    √2 times. Raises ExportError when `model` is not a crops-in graph of cfpose.
    """
    spec = read_spec(model)
    if spec.input != "crops":
        raise ExportError(f"{spec.name} takes a {spec.input} already; give the crops-in graph")
    spec = dataclasses.replace(spec, input="frame", antialias=antialias)
    outputs = [o.name for o in model.graph.output]
    merged = core_graph(model)
    graph = merged.graph
    rename(graph, {name: f"{name}_crop" for name in PLACED if name in outputs})
    before, behind = sampler(spec), placement(spec, outputs)
    core = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    for part in (before, behind):
        graph.initializer.extend(part.initializer)
    graph.node.extend([*before.node, *core, *behind.node])
    graph.input.extend(before.input)
    joints = len(spec.skeleton)
    for name in outputs:
        last = {"confidence": [], "covariance": [2, 2]}.get(name, [2])
        shape: list[str | int | None] = ["N", joints, *last]
        kind = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        graph.output.append(kind)
    write_spec(merged, spec)
    onnx.checker.check_model(merged, full_check=True)
    check_graph(merged, FRAME_INPUTS, POSE_OUTPUTS)
    return merged


def core_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A crops-in graph without its first Cast: it takes float32 crops, named CORE_INPUT.

    Raises ExportError when `crops` goes anywhere but into one Cast to float32.
    """
    core = onnx.ModelProto()
    core.CopyFrom(model)
    graph = core.graph
    readers = [node for node in graph.node if "crops" in node.input]
    targets = [a.i for node in readers for a in node.attribute if a.name == "to"]
    if [node.op_type for node in readers] != ["Cast"] or targets != [onnx.TensorProto.FLOAT]:
        found = [f"{node.op_type} {node.name}" for node in readers]
        raise ExportError(f"crops goes into {found}, expected one Cast to float32")
    graph.node.remove(readers[0])
    rename(graph, {readers[0].output[0]: CORE_INPUT})
    shape = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    value = onnx.helper.make_tensor_value_info(CORE_INPUT, onnx.TensorProto.FLOAT, shape)
    graph.input[0].CopyFrom(value)
    return core
