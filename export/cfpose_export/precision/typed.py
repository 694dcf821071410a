"""fp16 and bf16: a float32 graph with its backbone and head in the type, with explicit Casts.

Chosen are nodes by the module they come from. Normalisation, decode, coordinates, GridSample, the
refiner and calibration stay float32: a pixel coordinate in fp16 is off by up to 0.06 px at
256 and by whole pixels in a frame. Of a finder body, pyramid and heat map run low, its boxes and
their refiner do not. Strongly typed: no node mixes types, a Cast stands at every
border, inputs and outputs are as before. Needs onnx alone.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.graph.rules import (
    LOGITS,
    OPSET,
    SCOPES_KEY,
    TypedPrecision,
    element_types,
    fp16_twin,
    is_finder,
    read_finder_spec,
    read_spec,
    write_spec,
)
from cfpose_sdk.errors import ExportError, InputError

ELEMENT = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Rounding errs by at most this, relative, unless small values fall out of the format's range
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}


def misfit(tensor: onnx.TensorProto, precision: TypedPrecision) -> str | None:
    """Why a constant cannot be rounded: overflow, or values lost below the smallest normal one."""
    exact = numpy_helper.to_array(tensor)
    rounded = _round(exact, precision).astype(np.float64)
    if not np.isfinite(rounded).all():
        return f"{tensor.name} reaches {np.abs(exact).max():.3g}, beyond {precision}"
    error = float(np.linalg.norm(rounded - exact))
    if error > 2 * ROUNDOFF[precision] * float(np.linalg.norm(exact)):
        return f"{tensor.name} is too small for {precision} (most of it is below its normal range)"
    return None


def _round(array: NDArray[np.float32], precision: TypedPrecision) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):  # judged by the caller
        kind = np.dtype(np.float16) if precision == "fp16" else np.dtype(ml_dtypes.bfloat16)
        return array.astype(kind)


def low_constant(
    tensor: onnx.TensorProto, name: str, precision: TypedPrecision
) -> onnx.TensorProto:
    """The constant in the type, under another name."""
    low = _round(numpy_helper.to_array(tensor), precision)
    return helper.make_tensor(name, ELEMENT[precision], low.shape, low.tobytes(), raw=True)


def rounded_constant(
    tensor: onnx.TensorProto, name: str, precision: TypedPrecision
) -> onnx.TensorProto:
    """The constant rounded to the type, as float32, under another name."""
    low = _round(numpy_helper.to_array(tensor), precision)
    return numpy_helper.from_array(low.astype(np.float32), name)


LOWERED = ("backbone", "head")  # parts of a module's dotted name whose nodes run low
LOWERED_OF_FINDER = ("body", "laterals", "smooths", "heat")
KEPT = ("sampler", "refiner", "normalise")  # and parts that never do
# and in one type, as of `belongs` but anywhere in the name: the first layers of MobileNet and of
# EfficientNet-Lite, whose few channels have ranges far apart (bf16's 8 bits of mantissa cost more
# there than in all other layers together), and the last of a finder, which would shift all scores
KEPT_OF: Mapping[str, tuple[str, ...]] = {
    "fp16": (),
    "bf16": (
        "first",
        "body.",
        "body.conv_stem",
        "body.bn0",
        "body.blocks.0",
        "body.blocks.1",
        "heat.1",
    ),
}


@dataclass(frozen=True)
class Plan:
    """Which nodes run low, by their place in the graph."""

    low: frozenset[int]
    unfit: Mapping[str, str]  # module → why its node stays float32 although its scope says low


def scope(node: onnx.NodeProto) -> str:
    """The dotted name of the module that a node comes from; "" when it is none's."""
    for entry in node.metadata_props:
        if entry.key == SCOPES_KEY:
            names = ast.literal_eval(entry.value)[:-1]  # the last one is the operator
            return str(names[-1]) if names else ""
    return ""


def belongs(module: str, scopes: Collection[str]) -> bool:
    """Whether a module is one of `scopes` or lies inside one.

    With a dot at its end a name means the module's own nodes, not what lies inside it.
    """
    return any(
        module == name[:-1]
        if name.endswith(".")
        else module == name or module.startswith(f"{name}.")
        for name in scopes
    )


def own_name(module: str, modules: Collection[str]) -> str:
    """The name that keeps a module and none of the other `modules`."""
    inside = any(other.startswith(f"{module}.") for other in modules)
    return f"{module}." if inside else module


def modules_of(model: onnx.ModelProto, nodes: Collection[int]) -> tuple[str, ...]:
    """The modules of some nodes, each once, in the order of the graph."""
    return tuple(dict.fromkeys(scope(model.graph.node[index]) for index in sorted(nodes)))


def plan(model: onnx.ModelProto, precision: TypedPrecision, keep: Collection[str] = ()) -> Plan:
    """Choose the nodes that run low. `keep`: modules or node names that stay float32.

    A node stays float32 as well when its operator does not take the type, or when one of its
    constants does not fit it. Raises InputError for an unknown precision or an unknown `keep`.
    """
    if precision not in get_args(TypedPrecision):
        raise InputError(f"precision must be one of {get_args(TypedPrecision)}, got {precision!r}")
    nodes = list(model.graph.node)
    known = [scope(node) for node in nodes] + [node.name for node in nodes]
    if unknown := [name for name in keep if not any(belongs(k, [name]) for k in known)]:
        raise InputError(f"nothing in the graph is called {unknown}; see: cfpose-export inspect")
    constants = {t.name: t for t in model.graph.initializer}
    types, lowered = element_types(model), lowered_parts(model)
    low, unfit = set(), {}
    for index, node in enumerate(nodes):
        module = scope(node)
        if not _is_low(module, lowered, KEPT_OF[precision]):
            continue
        if belongs(module, keep) or node.name in keep:
            continue
        if not any(types.get(name) == TensorProto.FLOAT for name in node.output):
            continue  # integers, shapes
        if node.op_type == "Cast":
            continue  # its type is an attribute of its own
        used = [name for name in _typed_names(node, types) if name in constants]
        if reason := next(filter(None, (misfit(constants[n], precision) for n in used)), None):
            unfit[module] = reason
        else:
            low.add(index)
    return Plan(frozenset(low), unfit)


def lower(
    model: onnx.ModelProto, precision: TypedPrecision, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """The typed graph; `model` is left alone. `keep` as in `plan`.

    Value names stay: where a value exists in float32 it has its name, its low copy `NAME.fp16`.
    Raises ExportError when nothing would run low, or when the result is not a sound graph.
    """
    chosen = at_least_one(plan(model, precision, keep), precision)
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    _Rewriter(lowered, precision, chosen.low).run()
    return _finish(lowered, precision)


class _Rewriter:
    """Retypes one graph in place."""

    def __init__(
        self, model: onnx.ModelProto, precision: TypedPrecision, low: frozenset[int]
    ) -> None:
        self.model, self.precision, self.low = model, precision, low
        self.types = element_types(model)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.low_name: dict[str, str] = {}  # float32 value → its low copy, once there is one
        self.nodes: list[onnx.NodeProto] = []
        # what some float32 node, the graph's outputs or a probe will ask for
        self.wanted = {output.name for output in model.graph.output} | set(LOGITS)
        for index, node in enumerate(model.graph.node):
            low_inputs = set(_typed_names(node, self.types)) if index in low else set()
            self.wanted |= set(node.input) - low_inputs

    def run(self) -> None:
        for index, node in enumerate(list(self.model.graph.node)):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if index not in self.low:
                self.nodes.append(copy)
                continue
            for position, name in typed_inputs(node, self.types):
                copy.input[position] = self._low_copy(name)
            self.nodes.append(copy)
            for position, name in enumerate(node.output):
                if self.types.get(name) == TensorProto.FLOAT:
                    self._give(copy, position, name)
        replace_nodes(self.model, self.nodes)
        self._drop_unused()
        del self.model.graph.value_info[:]

    def _low_copy(self, name: str) -> str:
        if name not in self.low_name:
            self.low_name[name] = f"{name}.{self.precision}"
            if name in self.constants:
                self.model.graph.initializer.append(
                    low_constant(self.constants[name], self.low_name[name], self.precision)
                )
            else:
                target = ELEMENT[self.precision]
                self.nodes.append(cast(name, self.low_name[name], target))
        return self.low_name[name]

    def _give(self, node: onnx.NodeProto, position: int, name: str) -> None:
        if name in self.wanted:
            self.low_name[name] = node.output[position] = f"{name}.{self.precision}"
            self.nodes.append(cast(self.low_name[name], name, TensorProto.FLOAT))
        else:
            self.low_name[name] = name

    def _drop_unused(self) -> None:
        used = {name for node in self.model.graph.node for name in node.input}
        stay = [t for t in self.model.graph.initializer if t.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(stay)


def lowered_parts(model: onnx.ModelProto) -> tuple[str, ...]:
    """Parts of a module's dotted name whose nodes run low, of a pose model or a finder."""
    return LOWERED_OF_FINDER if is_finder(model) else LOWERED


def _is_low(module: str, lowered: Collection[str], kept: Collection[str]) -> bool:
    parts, dotted = module.split("."), f".{module}."
    if any(dotted.endswith(f".{k}") if k.endswith(".") else f".{k}." in dotted for k in kept):
        return False
    return any(p in parts for p in lowered) and not any(p in parts for p in KEPT)


def at_least_one(chosen: Plan, precision: str) -> Plan:
    """The plan. Raises ExportError when it lowers nothing."""
    if not chosen.low:
        raise ExportError(
            f"no node would run in {precision}: the graph names no module called {LOWERED}, of a "
            f"finder {LOWERED_OF_FINDER}, or all of them are kept; export it again, or keep less"
        )
    return chosen


def _typed_names(node: onnx.NodeProto, types: Mapping[str, int]) -> list[str]:
    return [name for _, name in typed_inputs(node, types)]


def typed_inputs(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Inputs that must have the type of the node: those that share the type of its output.

    A Resize, for one, has float32 scales whatever it resizes.
    """
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    shared = schema.outputs[0].type_str
    for position, name in enumerate(node.input):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if name and formal.type_str == shared and types.get(name) == TensorProto.FLOAT:
            yield position, name


def cast(source: str, target: str, element: int) -> onnx.NodeProto:
    """A Cast node between two values."""
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=element)


def replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Set the nodes of a graph."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _finish(model: onnx.ModelProto, precision: TypedPrecision) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(fp16_twin(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the {precision} graph is not sound: {error}") from error
    spec = read_finder_spec(model) if is_finder(model) else read_spec(model)
    write_spec(model, dataclasses.replace(spec, precision=precision, gate={}))
    return model


def emulate(
    model: onnx.ModelProto, precision: TypedPrecision, keep: Collection[str] = ()
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


def _round_trip(source: str, target: str, precision: TypedPrecision) -> list[onnx.NodeProto]:
    middle = f"{target}.as_{precision}"
    return [
        helper.make_node("Cast", [source], [middle], name=f"cast_{middle}", to=ELEMENT[precision]),
        cast(middle, target, TensorProto.FLOAT),
    ]
