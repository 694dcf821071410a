"""An ONNX graph becomes a serialised engine: the part that TensorRT and TensorRT-RTX share.

Always a strongly typed network: the types are those of the graph, and nothing else. TensorRT 11
knows no other kind.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx

from cfpose_export.engines.options import (
    COMPATIBLE,
    TARGETS,
    BuildOptions,
    Report,
    monitored,
    profiles_of,
)
from cfpose_export.graph.rules import (
    OPSET,
    SCOPES_KEY,
    check_graph,
    element_types,
    fp16_twin,
    whole_letterboxes,
)
from cfpose_sdk.backends.tensorrt.library import NAMES, Flavour, open_flavour, open_log
from cfpose_sdk.backends.tensorrt.passport import Shapes
from cfpose_sdk.errors import ExportError
from cfpose_sdk.files import write_file

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


@dataclass(frozen=True)
class Built:
    """An engine, and the facts about it that need no GPU."""

    engine: bytes
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    profiles: tuple[Mapping[str, Shapes], ...]
    achieved: Achieved


def check_buildable(model: onnx.ModelProto) -> None:
    """Raise ExportError for what TensorRT refuses or reads wrongly."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", 0) > OPSET:
        raise ExportError(
            f"the graph is of opset {opsets['']}, expected {OPSET}: from 20 on, GridSample's "
            f"bilinear mode is called linear, which TensorRT has read as nearest; export it again"
        )
    twin = fp16_twin(model)
    try:
        onnx.shape_inference.infer_shapes(twin, check_type=True, strict_mode=True)
        types = element_types(model)
    except Exception as error:  # onnx's own class, with the node in its text
        raise ExportError(
            f"the graph mixes types without a Cast, and engines are strongly typed: "
            f"{' '.join(str(error).split())}; write it with: cfpose-export lower"
        ) from error
    for node in model.graph.node:
        unsigned = [n for n in node.input[2:] if types.get(n) == onnx.TensorProto.UINT8]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and (
            unsigned or (len(node.input) < 3 and node.op_type == "QuantizeLinear")
        ):
            raise ExportError(
                f"{node.name} ({node.op_type}) quantises to uint8; TensorRT takes symmetric int8"
            )
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    check_graph(model, inputs[0] if len(inputs) == 1 else inputs, outputs)


def build(
    model: onnx.ModelProto, flavour: Flavour, options: BuildOptions, report: Report | None = None
) -> Built:
    """Parse, check what came out, and build; needs a GPU with TensorRT, none with TensorRT-RTX.

    `report` gets a line for each step of the build, which may take minutes.

    Raises ExportError with the nodes that are refused, or when the engine would have other types
    than the graph; InputError for options that the flavour does not have.
    """
    model = whole_letterboxes(model)
    check_buildable(model)
    options.check(flavour)
    trt = open_flavour(flavour, "building an engine")
    log = open_log(trt)
    builder = trt.Builder(log)
    network = parse(trt, builder, model)
    check_network(trt, network, model)
    config, profiles = _configure(trt, builder, network, flavour, options)
    monitor = None if report is None else monitored(trt, report)  # it must outlive the build
    if monitor is not None:
        config.progress_monitor = monitor
    mark = log.mark()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = log.since(mark) or "; it does not say why"
        raise ExportError(f"{NAMES[flavour]} {trt.__version__} cannot build the graph{reason}")
    if options.timing_cache is not None:
        write_file(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    ends = (ends_of(trt, network, "input"), ends_of(trt, network, "output"))
    return Built(bytes(plan), *ends, profiles, achieved(trt, network, model))


def parse(trt: Any, builder: Any, model: onnx.ModelProto) -> Any:
    """The strongly typed network of a graph. Raises ExportError with the parser's report."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, open_log(trt))
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        report = [f"{e.node_name()} ({e.node_operator()}): {_reason(e.desc())}" for e in errors]
        raise ExportError(
            f"the parser of {trt.__name__} {trt.__version__} refuses the graph: "
            f"{'; '.join(report) or 'it does not say why'}"
        )
    return network


def _configure(
    trt: Any, builder: Any, network: Any, flavour: Flavour, options: BuildOptions
) -> tuple[Any, tuple[Mapping[str, Shapes], ...]]:
    config = builder.create_builder_config()
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # both flavours begin with it
    if options.level is not None:
        config.builder_optimization_level = options.level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if flavour == "rtx":
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, TARGETS[target]), index)
    elif options.compatible:
        levels = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(levels, COMPATIBLE[options.compatible])
    if options.timing_cache is not None:
        kept = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
            raise ExportError(
                f"{options.timing_cache} is of another TensorRT or GPU; give another --timing-cache"
            )
    values = [network.get_input(index) for index in range(network.num_inputs)]
    profiles = profiles_of({value.name: tuple(value.shape) for value in values}, options)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, range_ in shapes.items():
            profile.set_shape(name, *range_)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{NAMES[flavour]} does not take the profile {shapes}")
    return config, profiles


def _reason(description: str) -> str:
    """The parser's message without lines of its sources and of a missing driver."""
    lines = [line for line in description.splitlines() if "cudaError" not in line]
    return " ".join(" ".join(lines or description.splitlines()).split())
