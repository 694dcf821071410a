"""Deployed models and their float32 graph: lowered for an engine, and compared afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.frame_input import frame_graph
from cfpose_export.graph.half_weights import whole_weights
from cfpose_export.graph.rules import (
    GraphPrecision,
    is_finder,
    load_model,
    read_finder_spec,
    read_spec,
)
from cfpose_export.precision.finder_gate import lowered_finder
from cfpose_export.precision.gate import LIMITS, write_gated
from cfpose_export.proof.compare import Agreement, Bound, compare_runtimes, judge_agreement
from cfpose_export.proof.crops import read_hard, read_people
from cfpose_export.proof.runtimes import (
    FULL_FINDER,
    LOW_FINDERS,
    FinderAgreement,
    compare_finders,
    compare_frames,
    judge_finders,
)
from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, bundled_models
from cfpose_sdk.errors import ExportError, InputError, require
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec


def typed_graph(
    model: onnx.ModelProto,
    precision: GraphPrecision,
    keep: Collection[str] = (),
    photos: Path | None = None,
) -> onnx.ModelProto:
    """The graph of a pose model or finder in a precision, proven against `model`.

    `model` may be in it already. Raises InputError when it is in another lower precision,
    ExportError when the proof fails.
    """
    spec = read_finder_spec(model) if is_finder(model) else read_spec(model)
    if spec.precision == precision and not keep:
        return model
    if spec.precision != "fp32" or precision == "fp32":
        raise InputError(f"the graph is {spec.precision} already, and {precision} was asked for")
    if any(value.name == "frame" for value in model.graph.input):
        raise InputError(
            f"the graph takes whole frames, and {precision} is proven without them; give the graph "
            f"that it is made of: an engine takes frames all the same"
        )
    model = whole_weights(model)
    if isinstance(spec, FinderSpec):
        return lowered_finder(model, precision, photos, keep)[0]
    with tempfile.TemporaryDirectory() as folder:
        lowered = Path(folder) / "lowered.onnx"
        write_gated(lowered, model, precision, read_hard(photos, spec), keep=keep)
        return load_model(lowered)


def reference_of(path: Path, metadata: dict[str, str], reference: Path | None) -> Path:
    """The float32 graph to compare a model with; None: the bundled one, when it has its name.

    Raises InputError when there is none, ExportError when the model is neither pose model nor
    finder.
    """
    if SPEC_KEY in metadata:
        name, bundled = ModelSpec.from_json(metadata[SPEC_KEY]).name, bundled_models()
    elif FINDER_KEY in metadata:
        name = FinderSpec.from_json(metadata[FINDER_KEY]).name
        bundled = {read_finder_spec(load_model(BUNDLED_FINDER)).name: BUNDLED_FINDER}
    else:
        raise ExportError(f"{path} carries no spec, so it is no model of cfpose")
    if reference is None and name not in bundled:
        raise InputError(
            f"{path} is {name}, and the bundled models are {', '.join(bundled)}; give the "
            f"float32 graph that it was made from (--reference), or its --checkpoint"
        )
    return bundled[name] if reference is None else reference


def compare_with_graph(
    candidate: Backend,
    graph: onnx.ModelProto,
    *,
    min_confidence: float,
    photos: Path | None = None,
) -> Agreement | FinderAgreement:
    """An open model beside the graph that it was made from, in onnxruntime on the CPU.

    `graph` may take crops or letterboxes; for a candidate that takes frames it is given the same
    nodes. Judges nothing. Raises ExportError where the two are of different kinds.
    """
    require("onnxruntime", extra="cpu", why="the reference")
    frame_in = "frame" in candidate.inputs
    given_frames = any(value.name == "frame" for value in graph.graph.input)
    if FINDER_KEY in candidate.metadata:
        finder_spec = FinderSpec.from_json(candidate.metadata[FINDER_KEY])
        with _opened(frame_finder(graph) if frame_in and not given_frames else graph) as ours:
            return compare_finders(ours, candidate, finder_spec, photos)
    spec = ModelSpec.from_json(candidate.metadata[SPEC_KEY])
    if frame_in:
        with _opened(graph if given_frames else frame_graph(graph, spec.antialias)) as ours:
            return compare_frames(ours, candidate, spec, min_confidence, photos)
    with _opened(graph) as ours:
        return compare_runtimes(ours, candidate, read_people(photos, spec), min_confidence)


def judge(
    agreement: Agreement | FinderAgreement, precision: str, max_px: float, *, rounds_all: bool
) -> None:
    """Raise ExportError unless a deployed model keeps to the bound of its precision."""
    if isinstance(agreement, FinderAgreement):
        judge_finders(agreement, LOW_FINDERS.get(precision, FULL_FINDER))
    else:
        judge_agreement(agreement, bound_of(precision, max_px, rounds_all=rounds_all))


def precision_of(metadata: dict[str, str]) -> str:
    """The precision in a model's spec."""
    if FINDER_KEY in metadata:
        return FinderSpec.from_json(metadata[FINDER_KEY]).precision
    return ModelSpec.from_json(metadata[SPEC_KEY]).precision


def bound_of(precision: str, max_px: float, *, rounds_all: bool) -> Bound:
    """What an Agreement must keep to: float32 to `max_px`, other precisions to their gate's limits.

    `rounds_all`: an engine rounds every lowered value, as runtimes on a CPU do not.
    """
    if precision == "fp32":
        return Bound(px=max_px)
    limits = LIMITS[precision]
    p99_px = limits.rounded_p99_px if rounds_all else limits.p99_px
    return Bound("p99_px", p99_px, limits.spread_median)


@contextmanager
def _opened(graph: onnx.ModelProto) -> Iterator[Backend]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.onnx"
        onnx.save_model(graph, path)
        with open_backend(path, device="cpu") as backend:
            yield backend
