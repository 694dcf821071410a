"""The ONNX graph of a finder: its network, with decoding and the choice of peaks inside."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.graph.rules import (
    FINDER_OUTPUTS,
    check_graph,
    read_finder_spec,
    write_spec,
)
from cfpose_export.graph.trace import trace
from cfpose_sdk.errors import ExportError
from cfpose_training.nets.fused import FusedFinder

MIN_ELEMENTS = 256  # smaller constants, biases among them, stay exact


def halve_weights(model: onnx.ModelProto) -> None:
    """Round every large float32 constant of `model` to float16, with a Cast back to float32 behind.

    Runtimes fold those Casts when they load the graph. Raises ExportError when a value is too large
    for float16.
    """
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < MIN_ELEMENTS:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ExportError(f"{tensor.name} holds values that float16 does not; keep float32")
        name, half = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def build_finder(fused: FusedFinder, *, half_weights: bool = False) -> onnx.ModelProto:
    """The graph of a finder, with its FinderSpec in the metadata. Raises ExportError.

    `half_weights` stores them as float16; the graph computes in float32 all the same.
    """
    width, height = fused.spec.size_wh
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    model = trace(fused, example, "images", FINDER_OUTPUTS)
    if half_weights:
        halve_weights(model)
    write_spec(model, fused.spec)
    check_graph(model, "images", FINDER_OUTPUTS)
    return model


def check_finder_spec(fused: FusedFinder, model: onnx.ModelProto) -> None:
    """Raise ExportError unless the graph's metadata is the finder's spec; SpecError if it is none.

    Size, threshold and box suppression are in it alone, and no output of the graph shows them.
    """
    if (carried := read_finder_spec(model)) != fused.spec:
        raise ExportError(
            f"the graph and the checkpoint carry different specs: {carried.to_json()} and "
            f"{fused.spec.to_json()}; export it again"
        )
