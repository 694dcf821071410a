"""An ONNX file that answers as YOLOX does, with rows that a test gives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def yolox_file(path: Path, rows: dict[int, list[float]]) -> Path:
    """An ONNX file that answers every image with the same raw rows: index → 85 numbers."""
    raw = np.zeros((1, 3549, 85), dtype=np.float32)
    for index, values in rows.items():
        raw[0, index, : len(values)] = values
    constant = helper.make_node("Constant", [], ["raw"], value=numpy_helper.from_array(raw))
    zero = helper.make_node("ReduceMin", ["image"], ["low"], keepdims=0)
    nothing = helper.make_node("Mul", ["low", "null"], ["nothing"])
    add = helper.make_node("Add", ["raw", "nothing"], ["output"])
    graph = helper.make_graph(
        [constant, zero, nothing, add],
        "yolox",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 416, 416])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3549, 85])],
        [numpy_helper.from_array(np.float32(0), "null")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def row(
    cell: int, stride: int, box: tuple[float, float, float, float], score: float
) -> list[float]:
    """The raw YOLOX row of an xyxy box at grid cell `cell` of its level."""
    y, x = divmod(cell, 416 // stride)
    x1, y1, x2, y2 = box
    centre = [(x1 + x2) / 2 / stride - x, (y1 + y2) / 2 / stride - y]
    return [*centre, math.log((x2 - x1) / stride), math.log((y2 - y1) / stride), score, 1.0]
