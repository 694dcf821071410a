"""Parameters and multiply-accumulate operations (MACs) of an ONNX graph, counted by node.

Shapes come from ONNX's own inference with every free dimension set to `batch`; what a node costs is
worked out here. Counted are the nodes that multiply matrices or kernels: Conv, ConvTranspose, Gemm,
MatMul, Einsum and their quantised kinds. Element-wise work, pooling, resizing and sampling are not,
as in the papers' figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfpose_sdk.errors import ArtifactError, require

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class GraphCost:
    """`params` are the numbers in initialisers and constants that float kernels or weights hold."""

    params: int
    macs: int
    by_kind: Mapping[str, int]  # MACs by node type


def graph_cost(source: str | Path | Any, *, batch: int = 1) -> GraphCost:
    """Cost of one run with `batch` people, of a file or an onnx.ModelProto.

    Raises ArtifactError when the shape of a counted node cannot be worked out, and
    MissingDependencyError without the package onnx.
    """
    require("onnx", extra="bench", why="counting a graph's MACs")
    import onnx
    from onnx import shape_inference

    model = _load(source) if isinstance(source, str | Path) else source
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in [*fixed.graph.input]:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = batch
    del fixed.graph.value_info[:]  # shapes that were inferred for a free batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    fixed = shape_inference.infer_shapes(fixed, data_prop=True)
    shapes = _shapes(fixed.graph)
    kinds: dict[str, int] = {}
    for node in fixed.graph.node:
        if count := COUNTED.get(node.op_type):
            kinds[node.op_type] = kinds.get(node.op_type, 0) + _checked(node, shapes, count)
    return GraphCost(_params(model.graph), sum(kinds.values()), kinds)


def _load(path: str | Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path))
    except DecodeError as error:
        raise ArtifactError(f"{path} cannot be read as ONNX ({error})") from error


def _checked(node: Any, shapes: Shapes, count: Callable[[Any, Shapes], int]) -> int:
    try:
        return count(node, shapes)
    except KeyError as error:
        raise ArtifactError(
            f"the shape of {error} at node {node.name!r} ({node.op_type}) cannot be worked out, so "
            f"its MACs cannot be counted"
        ) from error


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Known shapes by tensor; a tensor with an unknown dimension is not in it."""
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    shapes[node.output[0]] = tuple(attribute.t.dims)
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes.setdefault(value.name, tuple(d.dim_value for d in tensor.shape.dim))
    return shapes


def _params(graph: Any) -> int:
    """Numbers in floating or 8-bit tensors of one dimension or more that nodes read as weights."""
    from onnx import TensorProto

    weights = (
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
        TensorProto.INT8, TensorProto.UINT8,
    )  # fmt: skip
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            tensors += [a.t for a in node.attribute if a.name == "value"]
    return sum(math.prod(t.dims) for t in tensors if t.data_type in weights and len(t.dims) > 0)


def _convolution(node: Any, shapes: Shapes) -> int:
    """An output number sums over (input channels / groups) × kernel; the weight is (O, I/g, …)."""
    weight = shapes[node.input[3 if node.op_type == "QLinearConv" else 1]]
    return math.prod(shapes[node.output[0]]) * math.prod(weight[1:])


def _transposed(node: Any, shapes: Shapes) -> int:
    """Each input number is spread over (output channels / groups) × kernel; weight (I, O/g, …)."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: Any, shapes: Shapes) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    inner = shapes[node.input[0]][0 if transposed else 1]
    rows = shapes[node.input[0]][1 if transposed else 0]
    flipped = any(a.name == "transB" and a.i for a in node.attribute)
    columns = shapes[node.input[1]][0 if flipped else 1]
    return rows * inner * columns


def _matmul(node: Any, shapes: Shapes) -> int:
    left = shapes[node.input[0]]
    right = shapes[node.input[3 if node.op_type == "QLinearMatMul" else 1]]
    return math.prod(_product_shape(left, right)) * left[-1]


def _product_shape(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    """numpy.matmul's result."""
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    a, b = list(left[:-2]), list(right[:-2])
    width = max(len(a), len(b))
    pairs = zip([1] * (width - len(a)) + a, [1] * (width - len(b)) + b, strict=True)
    return (*(max(pair) for pair in pairs), *rows, *columns)


def _einsum(node: Any, shapes: Shapes) -> int:
    """The product of all its letters' lengths, for each multiplication of two operands."""
    (equation,) = (a.s.decode() for a in node.attribute if a.name == "equation")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "." in equation:
        raise KeyError(equation)
    lengths: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        for letter, length in zip(term, shapes[name], strict=True):
            lengths[letter] = max(length, lengths.get(letter, 1))
    return math.prod(lengths.values()) * (len(terms) - 1)


COUNTED: Mapping[str, Callable[[Any, Shapes], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Einsum": _einsum,
}
