"""The ONNX graph of a finder: its network, with decoding and the choice of peaks inside."""

from __future__ import annotations

import onnx
import torch

from cfpose_export.graph.half_weights import halve_weights
from cfpose_export.graph.rules import check_graph
from cfpose_export.graph.trace import trace
from cfpose_sdk.errors import ExportError
from cfpose_sdk.spec import FINDER_KEY, FinderSpec
from cfpose_training.nets.fused import FusedFinder

OUTPUTS = ("boxes", "scores")


def build_finder(fused: FusedFinder, *, half_weights: bool = False) -> onnx.ModelProto:
    """The graph of a finder, with its FinderSpec in the metadata. Raises ExportError.

    `half_weights` stores them as float16; the graph computes in float32 all the same.
    """
    width, height = fused.spec.size_wh
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    model = trace(fused, example, "images", OUTPUTS)
    if half_weights:
        halve_weights(model)
    onnx.helper.set_model_props(model, {FINDER_KEY: fused.spec.to_json()})
    check_graph(model, "images", OUTPUTS)
    return model


def check_finder_spec(fused: FusedFinder, model: onnx.ModelProto) -> None:
    """Raise ExportError unless the graph's metadata is the finder's spec; SpecError if it is none.

    Size, threshold and box suppression are in it alone, and no output of the graph shows them.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if FINDER_KEY not in metadata:
        raise ExportError(f"the graph carries no {FINDER_KEY}, so it is not a cfpose finder")
    if (carried := FinderSpec.from_json(metadata[FINDER_KEY])) != fused.spec:
        raise ExportError(
            f"the graph and the checkpoint carry different specs: {carried.to_json()} and "
            f"{fused.spec.to_json()}; export it again"
        )
