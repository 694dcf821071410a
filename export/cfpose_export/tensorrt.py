"""ONNX graph → serialised engine, by TensorRT or TensorRT-RTX: what both have in common.

Always a strongly typed network: the types are those of the graph, and nothing else. TensorRT 11
knows no other kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from cfpose_export.graph import OPSET, check_graph, element_types, fp16_twin
from cfpose_export.network import Achieved, achieved, check_network, ends_of
from cfpose_sdk.backends.flavour import NAMES, open_flavour, open_log
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import write_file
from cfpose_sdk.passport import Flavour, Shapes

TARGETS = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120",
           "12.1": "SM121"}  # fmt: skip


@dataclass(frozen=True)
class BuildOptions:
    """How to build. Of (smallest, best, largest) each; engines are tuned for the middle one."""

    flavour: Flavour | Literal["auto"] = "auto"
    people: tuple[int, int, int] = (1, 8, 32)  # crops, or boxes of a frame
    width: tuple[int, int, int] = (64, 1920, 3840)  # of a frame, in pixels
    height: tuple[int, int, int] = (64, 1080, 2160)
    targets: tuple[str, ...] = ()  # TensorRT-RTX: compute capabilities; () is its default set
    tf32: bool = False  # let float32 convolutions and products round their inputs to 10 bits
    level: int | None = None  # of optimisation, 0 to 5; None is the builder's own
    timing_cache: Path | None = None  # TensorRT: measured kernels, kept between builds

    def __post_init__(self) -> None:
        for name in ("people", "width", "height"):
            sizes = getattr(self, name)
            if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise InputError(
                    f"{name} must be smallest, best and largest in this order and from 1 on, "
                    f"got {sizes}"
                )
        if unknown := sorted(set(self.targets) - set(TARGETS)):
            raise InputError(f"targets must be of {list(TARGETS)}, got {unknown}")


@dataclass(frozen=True)
class Built:
    """An engine and what can be said of it without a GPU."""

    engine: bytes
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    profile: Mapping[str, Shapes]
    achieved: Achieved


def check_buildable(model: onnx.ModelProto) -> None:
    """Raise ExportError for what TensorRT refuses, or would take for something else."""
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


def build(model: onnx.ModelProto, flavour: Flavour, options: BuildOptions) -> Built:
    """Parse, check what came out, and build; needs a GPU with TensorRT, none with TensorRT-RTX.

    Raises ExportError with the nodes that are refused, or when the engine would have other types
    than the graph; InputError for options that the flavour does not have.
    """
    check_buildable(model)
    trt = open_flavour(flavour, "building an engine")
    log = open_log(trt)
    builder = trt.Builder(log)
    network = parse(trt, builder, model)
    check_network(trt, network, model)
    config, profile = _configure(trt, builder, network, flavour, options)
    log.recent.clear()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(log.recent) or "it does not say why"
        raise ExportError(f"{NAMES[flavour]} {trt.__version__} cannot build the graph: {said}")
    if options.timing_cache is not None:
        write_file(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    ends = (ends_of(trt, network, "input"), ends_of(trt, network, "output"))
    return Built(bytes(plan), *ends, profile, achieved(trt, network, model))


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
) -> tuple[Any, Mapping[str, Shapes]]:
    config = builder.create_builder_config()
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # both flavours begin with it
    if options.level is not None:
        config.builder_optimization_level = options.level
    if flavour == "rtx":
        if options.timing_cache is not None:
            raise InputError("TensorRT-RTX has no timing cache; leave --timing-cache out")
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, TARGETS[target]), index)
    elif options.targets:
        raise InputError("targets are for TensorRT-RTX; TensorRT builds for the GPU that is here")
    if options.timing_cache is not None:
        kept = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
            raise ExportError(
                f"{options.timing_cache} is of another TensorRT or GPU; give another --timing-cache"
            )
    profile = builder.create_optimization_profile()
    shapes: dict[str, Shapes] = {}
    for index in range(network.num_inputs):
        value = network.get_input(index)
        shapes[value.name] = _range(value.name, tuple(value.shape), options)
        profile.set_shape(value.name, *shapes[value.name])
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"{NAMES[flavour]} does not take the profile {shapes}")
    return config, shapes


def _range(name: str, shape: tuple[int, ...], options: BuildOptions) -> Shapes:
    """Smallest, best and largest shape of an input; its unknown sizes are -1."""
    if name == "frame":
        sizes: tuple[tuple[int, int, int], ...] = (options.height, options.width)
    else:
        sizes = (options.people,)
    unknown = [axis for axis, size in enumerate(shape) if size < 0]
    if len(unknown) > len(sizes) or unknown != list(range(len(unknown))):
        raise ExportError(f"input {name} has shape {shape}; only its first sizes may be unknown")

    def fill(which: int) -> tuple[int, ...]:
        return tuple(sizes[a][which] if size < 0 else size for a, size in enumerate(shape))

    return fill(0), fill(1), fill(2)


def _reason(description: str) -> str:
    """The parser's words without its own sources and without a missing driver's aftermath."""
    lines = [line for line in description.splitlines() if "cudaError" not in line]
    return " ".join(" ".join(lines or description.splitlines()).split())
