"""The numbers of a typed graph, computed by any runtime that knows float32."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto, helper

from cfpose_export.graph import element_types
from cfpose_export.number_formats import ELEMENT, Typed, rounded_constant
from cfpose_export.precision import at_least_one, cast, plan, replace_nodes, typed_inputs


def emulate(
    model: onnx.ModelProto, precision: Typed, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """A float32 graph with the numbers of `lower`: each low node's values are rounded to the type.

    Sums inside a node stay float32, as on tensor cores. CPU runtimes compute fp16 nodes in float32
    and may skip the rounding between two of them, so that an overflow stays hidden; this graph
    shows it on any of them.
    """
    chosen = at_least_one(plan(model, precision, keep), precision)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    types = element_types(model)
    constants = {tensor.name: tensor for tensor in rounded.graph.initializer}
    done: dict[str, str] = {}  # float32 value → its rounded copy
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(model.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if index in chosen.low:
            for position, name in typed_inputs(node, types):
                if name not in done:
                    done[name] = f"{name}.{precision}"
                    if name in constants:
                        rounded.graph.initializer.append(
                            rounded_constant(constants[name], done[name], precision)
                        )
                    else:
                        nodes += _round_trip(name, done[name], precision)
                copy.input[position] = done[name]
            nodes.append(copy)
            for position, name in enumerate(node.output):
                if types.get(name) == TensorProto.FLOAT:
                    copy.output[position] = f"{name}.exact"
                    nodes += _round_trip(copy.output[position], name, precision)
                    done[name] = name
        else:
            nodes.append(copy)
    replace_nodes(rounded, nodes)
    del rounded.graph.value_info[:]
    onnx.checker.check_model(rounded, full_check=True)
    return rounded


def _round_trip(source: str, target: str, precision: Typed) -> list[onnx.NodeProto]:
    middle = f"{target}.as_{precision}"
    return [
        helper.make_node("Cast", [source], [middle], name=f"cast_{middle}", to=ELEMENT[precision]),
        cast(middle, target, TensorProto.FLOAT),
    ]
