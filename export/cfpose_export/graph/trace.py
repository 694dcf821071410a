"""PyTorch writes a module as one ONNX graph: equal weights give equal bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import onnx
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from torch import Tensor, nn

from cfpose_export.graph.rules import (
    LOGITS,
    OPSET,
    POSE_OUTPUTS,
    SCOPES_KEY,
    check_graph,
    write_spec,
)
from cfpose_sdk import __version__
from cfpose_sdk.errors import ExportError
from cfpose_training.nets.fused import FusedOutput, FusedPose

FOLD_LIMIT = 1 << 24  # elements; the largest weights have a tenth of that


class OpenSide(NamedTuple):
    """A dimension of an input that may be any multiple, from `least` of them on."""

    name: str
    multiple: int
    least: int


def build_pose(fused: FusedPose) -> onnx.ModelProto:
    """The crops-in graph of a pose model, with its ModelSpec in the metadata.

    Raises ExportError when the exporter's graph breaks the rules.
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
    module: nn.Module,
    example: Tensor,
    input_name: str,
    output_names: Sequence[str],
    sides: Mapping[int, OpenSide] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Export `module(example)` with a dynamic first dimension "N", free of volatile metadata.

    Two calls on equal weights give equal bytes. `example` must have at least 2 rows, because the
    exporter takes 0 and 1 for constants. `sides`: further dimensions of the example that are left
    open, by their number.
    """
    open_sides = {
        number: side.multiple * torch.export.Dim(side.name, min=side.least)
        for number, side in sides.items()
    }
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC, **open_sides},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx gave no graph; expected an ONNXProgram")
    # the exporter folds small constants alone, and a batch norm only behind folded weights
    onnxscript.optimizer.optimize(
        program.model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT
    )
    onnxscript.rewriter.rewrite(program.model)
    model = program.model_proto
    for number, side in sides.items():
        model.graph.input[0].type.tensor_type.shape.dim[number].dim_param = side.name
    _clean(model)
    onnx.checker.check_model(model, full_check=True)
    return model


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
