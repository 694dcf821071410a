"""A fused graph, run with values inside it as further outputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime


def scaled_covariance(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy whose covariance output is multiplied by a factor."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for node in other.graph.node:
        for index, name in enumerate(node.output):
            if name == "covariance":
                node.output[index] = "covariance.right"
        for index, name in enumerate(node.input):
            if name == "covariance":
                node.input[index] = "covariance.right"
    constant = onnx.numpy_helper.from_array(np.array(factor, np.float32), "covariance.factor")
    other.graph.initializer.append(constant)
    other.graph.node.append(
        onnx.helper.make_node(
            "Mul", ["covariance.right", "covariance.factor"], ["covariance"], name="wrong"
        )
    )
    return other


def run(model: onnx.ModelProto, crops: np.ndarray, *more: str) -> dict[str, np.ndarray]:
    """The graph's outputs by name, and values inside it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in more:
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"crops": crops}), strict=True))
