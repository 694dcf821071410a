"""Fused module → one clean ONNX graph that describes itself.

The graph is written at opset 18: from opset 20 on GridSample's bilinear mode is called "linear",
which TensorRT has read as nearest.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from cfpose_export.fuse import FusedOutput, FusedPose
from cfpose_sdk import __version__
from cfpose_sdk.errors import ExportError
from cfpose_sdk.spec import SPEC_KEY, ModelSpec

OPSET = 18
LOGITS = ("x_logits", "y_logits")  # values inside the pose graph that a proof may ask for
POSE_OUTPUTS = ("keypoints", "confidence", "coarse")
SCOPES_KEY = "pkg.torch.onnx.name_scopes"  # of a node: the modules it comes from
# TensorRT's parser refuses these, or their output shape depends on the data
FORBIDDEN = ("AffineGrid", "NonZero", "Unique", "NonMaxSuppression", "Loop", "If", "Scan")


def build_pose(fused: FusedPose) -> onnx.ModelProto:
    """The crops-in graph of a pose model, with its ModelSpec in the metadata.

    Raises ExportError when the exporter wrote something else than was asked for.
    """
    width, height = fused.spec.size_wh
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    model = trace(fused, example, "crops", FusedOutput._fields)
    for name in LOGITS:
        model.graph.output.remove(next(o for o in model.graph.output if o.name == name))
    write_spec(model, fused.spec)
    check_graph(model, "crops", POSE_OUTPUTS)
    return model


def trace(
    module: nn.Module, example: Tensor, input_name: str, output_names: Sequence[str]
) -> onnx.ModelProto:
    """Export `module(example)` with a dynamic first dimension "N", free of volatile metadata.

    Two calls on equal weights give equal bytes. `example` must have at least 2 rows, because the
    exporter takes 0 and 1 for constants.
    """
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx gave no graph; expected an ONNXProgram")
    model = program.model_proto
    _clean(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_spec(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Set the graph's metadata to `spec` alone."""
    onnx.helper.set_model_props(model, {SPEC_KEY: spec.to_json()})


def read_spec(model: onnx.ModelProto) -> ModelSpec:
    """The ModelSpec in a graph's metadata. Raises SpecError, or ExportError when there is none."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if SPEC_KEY not in metadata:
        raise ExportError(f"the graph carries no {SPEC_KEY}, so it is not a cfpose pose model")
    return ModelSpec.from_json(metadata[SPEC_KEY])


def check_graph(model: onnx.ModelProto, input_name: str, output_names: Sequence[str]) -> None:
    """Raise ExportError unless the graph keeps to what every runtime reads alike."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"the graph was written at opsets {opsets}, expected {{'': {OPSET}}}")
    names = ([i.name for i in model.graph.input], [o.name for o in model.graph.output])
    if names != ([input_name], list(output_names)):
        raise ExportError(f"the graph has {names}, expected {input_name} → {list(output_names)}")
    if bad := sorted({node.op_type for node in model.graph.node} & set(FORBIDDEN)):
        raise ExportError(f"the graph holds {bad}, which TensorRT does not take")
    types = element_types(model)
    for node in model.graph.node:
        if node.op_type == "GridSample":
            _check_grid_sample(node, types)


def element_types(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element type (TensorProto.DataType) of every value that shape inference can type."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def _check_grid_sample(node: onnx.NodeProto, types: Mapping[str, int]) -> None:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    expected = {"mode": b"bilinear", "padding_mode": b"border", "align_corners": 1}
    if found != expected:
        raise ExportError(f"{node.name} has {found}, expected {expected}")
    kinds = {name: types.get(name) for name in node.input}
    if set(kinds.values()) != {onnx.TensorProto.FLOAT}:
        raise ExportError(f"{node.name} has input types {kinds}, expected float32 for both")


def _clean(model: onnx.ModelProto) -> None:
    """Drop what differs between two exports of equal weights, and local paths with it."""
    model.producer_name, model.producer_version = "cfpose", __version__
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        scopes = [entry for entry in node.metadata_props if entry.key == SCOPES_KEY]
        value = scopes[0].value if scopes else None
        del node.metadata_props[:]
        node.doc_string = ""
        if value is not None:
            node.metadata_props.add(key=SCOPES_KEY, value=value)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in values:
        del value.metadata_props[:]
        value.doc_string = ""
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == batch:
                dim.dim_param = "N"
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own insides and of torchvision, which is not used here."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
