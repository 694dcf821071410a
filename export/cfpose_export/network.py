"""What a parsed TensorRT network holds: its layers, the types they compute in, its ends."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx

from cfpose_export.graph import SCOPES_KEY, element_types
from cfpose_sdk.errors import ExportError

END_TYPES = ("float32", "uint8")  # of inputs and outputs, by contract
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_COUNTED = ("float32", "float16", "bfloat16", "int8")

Achieved = Mapping[str, Mapping[str, Mapping[str, int]]]  # scope → type → kind of layer → count


@dataclass(frozen=True)
class Layer:
    """A layer of a parsed network. `node` is the ONNX node it comes from, "" for the parser's."""

    name: str
    node: str
    kind: str
    types: tuple[str, ...]  # of its outputs, as NumPy names them
    handle: Any


def layers(trt: Any, network: Any) -> Iterator[Layer]:
    """All layers of a network."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        node = layer.metadata.partition("[ONNX Layer: ")[2].partition("]")[0]
        kinds = tuple(_type(trt, output.dtype) for output in outputs)
        yield Layer(layer.name, node, layer.type.name, kinds, layer)


def check_network(trt: Any, network: Any, model: onnx.ModelProto) -> None:
    """Raise ExportError unless every node's result has the graph's type, and samplers are exact."""
    types = element_types(model)
    expected = {
        name: onnx.helper.tensor_dtype_to_np_dtype(types[name]).name
        for node in model.graph.node
        for name in node.output
        if name in types and types[name] in _FLOATS
    }
    checked = 0
    for layer in layers(trt, network):
        for number, kind in enumerate(layer.types):
            name = layer.handle.get_output(number).name
            if name in expected and kind != expected[name]:
                raise ExportError(
                    f"{layer.name} gives {name} as {kind}, the graph says {expected[name]}"
                )
            checked += name in expected
        if layer.kind == "GRID_SAMPLE":
            _check_sampler(trt, layer)
    if checked == 0:
        raise ExportError("no layer of the network carries a name of the graph; it proves nothing")
    for which in ("input", "output"):
        ends = ends_of(trt, network, which)
        if bad := [text for text in ends.values() if text.split()[0] not in END_TYPES]:
            raise ExportError(f"the network's {which}s have types {bad}, expected {END_TYPES}")


def achieved(trt: Any, network: Any, model: onnx.ModelProto) -> Achieved:
    """How many layers compute in which type: scope → type → kind of layer → count.

    Counted are layers that come from a node of the graph and give real numbers or int8; a scope
    is a module of the network, two names deep.
    """
    scopes = {node.name: scope_of(node) for node in model.graph.node}
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for layer in layers(trt, network):
        if layer.node in scopes and layer.types and layer.types[0] in _COUNTED:
            counts[scopes[layer.node]][layer.types[0]][layer.kind] += 1
    return {
        scope: {kind: dict(sorted(row.items())) for kind, row in sorted(kinds.items())}
        for scope, kinds in sorted(counts.items())
    }


def _check_sampler(trt: Any, layer: Layer) -> None:
    """A GridSample must read and write float32 and interpolate linearly, as the graph says."""
    handle = layer.handle
    kinds = [_type(trt, handle.get_input(number).dtype) for number in range(2)]
    handle.__class__ = trt.IGridSampleLayer  # the documented way to a layer's own fields
    mode = handle.interpolation_mode
    if kinds != ["float32", "float32"] or mode != trt.InterpolationMode.LINEAR:
        raise ExportError(
            f"{layer.name} samples {kinds[0]} maps at {kinds[1]} points as {mode.name}; expected "
            f"float32, float32 and LINEAR"
        )


def ends_of(trt: Any, network: Any, which: Literal["input", "output"]) -> dict[str, str]:
    """Inputs or outputs by name: type and shape, as "uint8 [N, 96, 64, 3]"."""
    ends = {}
    for index in range(getattr(network, f"num_{which}s")):
        value = getattr(network, f"get_{which}")(index)
        names = (f"{value.get_dimension_name(a) or 'N'}" for a in range(len(value.shape)))
        sizes = (str(s) if s >= 0 else n for s, n in zip(value.shape, names, strict=True))
        ends[value.name] = f"{_type(trt, value.dtype)} [{', '.join(sizes)}]"
    return ends


def _type(trt: Any, dtype: Any) -> str:
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return names.get(dtype.name, str(dtype.name).lower())


def scope_of(node: onnx.NodeProto) -> str:
    """The module that a node comes from, two names deep; "graph" when it is none's."""
    for entry in node.metadata_props:
        if entry.key == SCOPES_KEY:
            modules = [str(name) for name in ast.literal_eval(entry.value)[:-1] if name]
            return ".".join(modules[-1].split(".")[:2]) if modules else "graph"
    return "graph"
