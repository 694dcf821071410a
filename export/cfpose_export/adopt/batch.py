"""A network of fixed batch, made dynamic where its graph allows; tried, not believed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from cfpose_export.adopt.source import Source, run_network
from cfpose_sdk.errors import ArtifactError

_EXTRA = 2  # crops more than the file takes, for the trial
_CLOSE = 1e-3  # of an answer's largest value


def with_open_batch(source: Source) -> onnx.ModelProto | None:
    """The network with any number N of crops, or None where that changes its answers.

    The first side of the input becomes N, and Reshapes that name the batch infer it instead. The
    result must answer crops together as the file does in its own batches.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    graph = model.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
    for value in graph.output:
        element = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, element, None))
    _free_reshapes(graph, source.batch)
    return model if _answers_alike(source, model) else None


def _free_reshapes(graph: onnx.GraphProto, batch: int) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    for index, node in enumerate(list(graph.node)):
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if tensor is None:
            continue
        shape = numpy_helper.to_array(tensor)
        if len(shape) and shape[0] == batch:
            freed = np.array(shape)
            freed[0] = 0 if (shape == -1).any() else -1
            name = f"reshape.{index}.shape"
            graph.initializer.append(numpy_helper.from_array(freed, name))
            node.input[1] = name


def _answers_alike(source: Source, model: onnx.ModelProto) -> bool:
    batch, (width, height) = source.batch, source.size_wh
    draw = np.random.Generator(np.random.PCG64(1))
    crops = source.pixels(draw.uniform(0, 255, (2 * batch + _EXTRA, height, width, 3)))
    label = source.path.name
    try:
        together = run_network(model, {source.input: crops}, label)
    except ArtifactError:
        return False
    for first in (0, batch, _EXTRA + batch):
        part = crops[first : first + batch]
        for name, alone in run_network(source.model, {source.input: part}, label).items():
            both = together[name][first : first + batch]
            if both.shape != alone.shape:
                return False
            size = float(np.abs(alone).max(initial=0.0)) or 1.0
            if not float(np.abs(both - alone).max(initial=0.0)) <= _CLOSE * size:
                return False
    return True
