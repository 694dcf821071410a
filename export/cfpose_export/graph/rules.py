"""The rules of every exported graph: its spec, its types, and what all runtimes read alike.

Needs onnx alone, so that a graph can be typed, checked and built into an engine without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx

from cfpose_sdk.backends.bundled import BUNDLED_FINDER, model_file
from cfpose_sdk.errors import ArtifactError, ExportError
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec


def report_path(path: Path) -> Path:
    """Where the gate's report of an artifact lies: `x.onnx` → `x.gate.json`."""
    return path.with_suffix(".gate.json")


# Precisions by name, as the spec's `precision` and the commands spell them
GraphPrecision = Literal["fp32", "fp16", "bf16", "int8"]
LowPrecision = Literal["fp16", "bf16", "int8"]  # what `lower` writes
TypedPrecision = Literal["fp16", "bf16"]  # those that change the types of nodes, without ranges

# from opset 20 on GridSample's bilinear mode is called "linear", which TensorRT has read as nearest
OPSET = 18
LOGITS = ("x_logits", "y_logits")  # values inside the pose graph that a proof may ask for
POSE_OUTPUTS = ("keypoints", "confidence", "covariance", "coarse")
OPTIONAL_OUTPUTS = ("covariance",)  # graphs of spec_version 1 lack it
FRAME_INPUTS = ("frame", "boxes")
FINDER_OUTPUTS = ("boxes", "scores")
SAMPLER_SCOPE = "'sampler'"  # of the nodes between frame and crops, and of those behind the core
ZERO_OUTSIDE = (SAMPLER_SCOPE, "'network.box_refiner'")  # scopes of GridSamples that see 0 there
SCOPES_KEY = "pkg.torch.onnx.name_scopes"  # of a node: the modules it comes from
# TensorRT's parser refuses these, or their output shape depends on the data
FORBIDDEN = ("AffineGrid", "NonZero", "Unique", "NonMaxSuppression", "Loop", "If", "Scan")


def model_path(name: str | Path) -> Path:
    """The file of a model as the commands name it; `default-finder` is the bundled finder."""
    return BUNDLED_FINDER if str(name) == "default-finder" else model_file(name)


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file. Raises ArtifactError when it is missing or is not one."""
    try:
        model = onnx.load_model(path)
        onnx.checker.check_model(fp16_twin(model))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    except Exception as error:  # protobuf's and onnx's own classes share no base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{path} is not an ONNX file, or it is damaged: {reason}") from error
    return model


def write_spec(model: onnx.ModelProto, spec: ModelSpec | FinderSpec) -> None:
    """Set the graph's metadata to `spec` alone."""
    key = FINDER_KEY if isinstance(spec, FinderSpec) else SPEC_KEY
    onnx.helper.set_model_props(model, {key: spec.to_json()})


def read_spec(model: onnx.ModelProto) -> ModelSpec:
    """The ModelSpec in a graph's metadata. Raises SpecError, or ExportError when there is none."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if SPEC_KEY not in metadata:
        raise ExportError(f"the graph carries no {SPEC_KEY}, so it is not a cfpose pose model")
    return ModelSpec.from_json(metadata[SPEC_KEY])


def read_finder_spec(model: onnx.ModelProto) -> FinderSpec:
    """The FinderSpec in a graph's metadata. Raises as `read_spec`."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if FINDER_KEY not in metadata:
        raise ExportError(f"the graph carries no {FINDER_KEY}, so it is not a cfpose finder")
    return FinderSpec.from_json(metadata[FINDER_KEY])


def is_finder(model: onnx.ModelProto) -> bool:
    """Whether a graph is a finder of cfpose."""
    return any(entry.key == FINDER_KEY for entry in model.metadata_props)


def whole_letterboxes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A finder for letterboxes of its spec's size alone; any other graph as it is."""
    sides = model.graph.input[0].type.tensor_type.shape.dim[1:3]
    if not is_finder(model) or model.graph.input[0].name != "images" or sides[0].dim_value:
        return model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]  # of the open sides
    width, height = read_finder_spec(model).size_wh
    for number, length in ((1, height), (2, width)):
        fixed.graph.input[0].type.tensor_type.shape.dim[number].dim_value = length
    return fixed


def check_graph(
    model: onnx.ModelProto, input_name: str | Sequence[str], output_names: Sequence[str]
) -> None:
    """Raise ExportError unless the graph keeps to what every runtime reads alike.

    Of `output_names` those in OPTIONAL_OUTPUTS may be missing. GridSamples read maps with their
    border repeated, but for the scopes in ZERO_OUTSIDE: the frame is black outside, and outside the
    letterbox the box refiner of the finder reads zeros.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"the graph was written at opsets {opsets}, expected {{'': {OPSET}}}")
    names = ([i.name for i in model.graph.input], [o.name for o in model.graph.output])
    inputs = [input_name] if isinstance(input_name, str) else list(input_name)
    outputs = [n for n in output_names if n in names[1] or n not in OPTIONAL_OUTPUTS]
    if names != (inputs, outputs):
        raise ExportError(
            f"the graph has {names}, expected {', '.join(inputs)} → {list(output_names)}"
        )
    if bad := sorted({node.op_type for node in model.graph.node} & set(FORBIDDEN)):
        raise ExportError(f"the graph holds {bad}, which TensorRT does not take")
    types = element_types(model)
    for node in model.graph.node:
        if node.op_type == "GridSample":
            _check_grid_sample(node, types)


def logits_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """LOGITS, or nothing for a graph that has no such values: an adopted one."""
    made = {name for node in model.graph.node for name in node.output}
    return LOGITS if made.issuperset(LOGITS) else ()


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The same graph, with float32 values inside it as further outputs."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        probe.graph.output.append(value)
    return probe


def element_types(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element type (TensorProto.DataType) of every value that shape inference can type.

    Raises ArtifactError where shapes or types contradict each other.
    """
    bf16, fp16 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16
    try:
        inferred = onnx.shape_inference.infer_shapes(fp16_twin(model), strict_mode=True).graph
    except Exception as error:  # onnx's own classes share no base
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"the graph's types or shapes contradict each other: {reason}"
        ) from error
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    if holds(model, bf16):
        types = {name: bf16 if kind == fp16 else kind for name, kind in types.items()}
    return types


def holds(model: onnx.ModelProto, element: int) -> bool:
    """Whether a constant or a Cast has this element type."""
    casts = (a for n in model.graph.node if n.op_type == "Cast" for a in n.attribute)
    return any(a.name == "to" and a.i == element for a in casts) or any(
        tensor.data_type == element for tensor in model.graph.initializer
    )


def fp16_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with fp16 wherever it says bf16; of use for its types alone.

    ONNX's Conv takes bf16 from opset 22 on, and from opset 20 on GridSample is not safe (see
    OPSET). TensorRT takes bf16 at any opset, onnx's own checks do not.
    """
    if not holds(model, onnx.TensorProto.BFLOAT16):
        return model
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            tensor.data_type = onnx.TensorProto.FLOAT16
    casts = [a for n in twin.graph.node if n.op_type == "Cast" for a in n.attribute]
    for attribute in casts:
        if attribute.name == "to" and attribute.i == onnx.TensorProto.BFLOAT16:
            attribute.i = onnx.TensorProto.FLOAT16
    return twin


def scopes(node: onnx.NodeProto) -> str:
    """The modules that a node comes from, as the exporter wrote them: "['', 'pose', …]"."""
    return next((entry.value for entry in node.metadata_props if entry.key == SCOPES_KEY), "")


def _check_grid_sample(node: onnx.NodeProto, types: Mapping[str, int]) -> None:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    outside = any(scope in scopes(node) for scope in ZERO_OUTSIDE)
    padding = b"zeros" if outside else b"border"
    expected = {"mode": b"bilinear", "padding_mode": padding, "align_corners": 1}
    if attributes != expected:
        raise ExportError(f"{node.name} has {attributes}, expected {expected}")
    kinds = {name: types.get(name) for name in node.input}
    if set(kinds.values()) != {onnx.TensorProto.FLOAT}:
        raise ExportError(f"{node.name} has input types {kinds}, expected float32 for both")
