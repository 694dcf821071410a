"""Deployed models and their float32 graph: lowered for an engine, and compared afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx

from cfpose_export.graph.half_weights import whole_weights
from cfpose_export.graph.rules import GraphPrecision, load_model, read_spec
from cfpose_export.precision.gate import LIMITS, write_gated
from cfpose_export.proof.compare import Agreement, Bound, compare_runtimes
from cfpose_export.proof.crops import read_hard, read_people
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.bundled import bundled_models
from cfpose_sdk.errors import ExportError, InputError, require
from cfpose_sdk.spec import ModelSpec


def typed_graph(
    model: onnx.ModelProto,
    precision: GraphPrecision,
    keep: Collection[str] = (),
    photos: Path | None = None,
) -> onnx.ModelProto:
    """The graph in a precision, proven against `model`, which may be in it already.

    Raises ExportError when it is in another lower precision, or when the proof fails.
    """
    spec = read_spec(model)
    if spec.precision == precision and not keep:
        return model
    if spec.precision != "fp32" or precision == "fp32":
        raise ExportError(f"the graph is {spec.precision} already, and {precision} was asked for")
    if spec.input == "frame":
        raise InputError(
            f"the graph takes whole frames, and {precision} is proven on crops; lower the crops-in "
            f"graph that it is made of with: cfpose-export lower, then: cfpose-export frame"
        )
    with tempfile.TemporaryDirectory() as folder:
        lowered = Path(folder) / "lowered.onnx"
        write_gated(lowered, whole_weights(model), precision, read_hard(photos, spec), keep=keep)
        return load_model(lowered)


def compare_with_float32(
    path: Path,
    spec: ModelSpec,
    reference: Path | None,
    *,
    min_confidence: float,
    photos: Path | None = None,
) -> Agreement:
    """A model file beside its float32 graph in onnxruntime, on crops of people. Judges nothing.

    `spec` is that of `path`; without a `reference` the bundled model of the same name is taken.
    Raises InputError when there is no reference, or when one of the two cannot be compared.
    """
    if reference is None:
        bundled = bundled_models()
        if spec.name not in bundled:
            raise InputError(
                f"{path} is {spec.name}, and the bundled models are {', '.join(bundled)}; give the "
                f"float32 graph that it was made from (--reference), or its --checkpoint"
            )
        reference = bundled[spec.name]
    if spec.input != "crops":
        raise InputError(f"{path} takes whole frames; check the crops-in graph that it is made of")
    require("onnxruntime", extra="cpu", why="the float32 reference")
    if (source := read_spec(load_model(reference))).precision != "fp32":
        raise InputError(f"the reference must be float32, {reference} is {source.precision}")
    crops = read_people(photos, spec)
    with open_backend(reference, device="cpu") as ours, open_backend(path) as theirs:
        return compare_runtimes(ours, theirs, crops, min_confidence)


def bound_of(precision: str, max_px: float, *, rounds_all: bool) -> Bound:
    """What an Agreement must keep to: float32 to `max_px`, other precisions to their gate's limits.

    `rounds_all`: an engine rounds every lowered value, as runtimes on a CPU do not.
    """
    if precision == "fp32":
        return Bound(px=max_px)
    limits = LIMITS[precision]
    p99_px = limits.rounded_p99_px if rounds_all else limits.p99_px
    return Bound("p99_px", p99_px, limits.spread_median)
