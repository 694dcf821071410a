"""Weights stored as float16 in a graph that computes in float32: half the file, the same speed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cfpose_sdk.errors import ExportError

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
