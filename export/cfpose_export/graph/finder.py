"""The ONNX graph of a finder: its network, with decoding and the choice of peaks inside."""

from __future__ import annotations

import onnx
import torch

from cfpose_export.graph.half_weights import halve_weights
from cfpose_export.graph.rules import (
    FINDER_OUTPUTS,
    check_graph,
    read_finder_spec,
    write_spec,
)
from cfpose_export.graph.trace import OpenSide, trace
from cfpose_sdk.boxes import CUT_MULTIPLE
from cfpose_sdk.errors import ExportError
from cfpose_training.nets.fused import FusedFinder

LEAST_CUT = 2 * CUT_MULTIPLE  # pixels of a letterbox's sides: cut, it has cells enough all the same


def build_finder(fused: FusedFinder, *, half_weights: bool = False) -> onnx.ModelProto:
    """The graph of a finder, with its FinderSpec in the metadata. Raises ExportError.

    Its letterboxes may be cut (`cfpose_sdk.boxes.letterbox`) but where they are small.
    `half_weights` stores them as float16; the graph computes in float32 all the same.
    """
    width, height = fused.spec.size_wh
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    sides = {}
    if min(width, height) >= LEAST_CUT:
        multiple = fused.network.multiple
        sides = {
            number: OpenSide(name, multiple, LEAST_CUT // multiple)
            for number, name in ((1, "H"), (2, "W"))
        }
    model = trace(fused, example, "images", FINDER_OUTPUTS, sides)
    if half_weights:
        halve_weights(model)
    write_spec(model, fused.spec)
    check_graph(model, "images", FINDER_OUTPUTS)
    return model


def check_finder_spec(fused: FusedFinder, model: onnx.ModelProto) -> None:
    """Raise ExportError unless the graph's metadata is the finder's spec; SpecError if it is none.

    Size, threshold and box suppression are in it alone, and no output of the graph shows them.
    """
    if (carried := read_finder_spec(model)) != fused.spec:
        raise ExportError(
            f"the graph and the checkpoint carry different specs: {carried.to_json()} and "
            f"{fused.spec.to_json()}; export it again"
        )
