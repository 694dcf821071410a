"""Weights stored as float16: half the bytes of a graph that computes in float32 all the same.

A Cast stands behind each such constant; runtimes fold it when they load the graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cfpose_sdk.errors import ExportError

MIN_ELEMENTS = 1024  # smaller weights stay exact
_WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # their second input is a weight
_SUFFIX = ".half"


def halve_weights(model: onnx.ModelProto) -> None:
    """Round every large float32 weight of `model` to float16, with a Cast back to float32 behind.

    Biases, and constants that are positions, stay exact. Raises ExportError when a value is too
    large for float16.
    """
    weights = {n.input[1] for n in model.graph.node if n.op_type in _WEIGHED and len(n.input) > 1}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in weights or tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < MIN_ELEMENTS:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ExportError(f"{tensor.name} holds values that float16 does not; keep float32")
        name, half = tensor.name, f"{tensor.name}{_SUFFIX}"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def whole_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with what `halve_weights` stored as float32 constants again.

    For what reads weights or changes their type. A graph without such weights is given back as it
    is.
    """
    halves = _halves(model)
    if not halves:
        return model
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for tensor in whole.graph.initializer:
        if tensor.name in halves:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, halves[tensor.name]))
    stay = [n for n in whole.graph.node if not (n.op_type == "Cast" and n.input[0] in halves)]
    del whole.graph.node[:]
    whole.graph.node.extend(stay)
    return whole


def has_half_weights(model: onnx.ModelProto) -> bool:
    """Whether weights are stored as float16 for arithmetic in float32."""
    return bool(_halves(model))


def _halves(model: onnx.ModelProto) -> dict[str, str]:
    """Constant of `halve_weights` → the float32 value that is made of it."""
    half = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    return {
        node.input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type == "Cast"
        and node.input[0] in half
        and node.input[0] == f"{node.output[0]}{_SUFFIX}"
    }
