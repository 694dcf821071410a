"""A graph of lower precision leaves only after comparison with the float32 graph, on real crops.

The reference is a float32 graph that carries its own proof against torch, so nothing here needs
PyTorch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

import onnx

from cfpose_export.culprits import Culprit, find_culprits
from cfpose_export.emulation import emulate
from cfpose_export.figures import compare, run_graph
from cfpose_export.gate_report import (
    AS_FILE,
    LIMITS,
    ROUNDED,
    GateReport,
    Limits,
    Precision,
    failure,
    problems_of,
    report_path,
)
from cfpose_export.graph import LOGITS, POSE_OUTPUTS, check_graph, read_spec, write_spec
from cfpose_export.number_formats import Typed
from cfpose_export.precision import lower, modules_of, plan
from cfpose_export.proof_crops import ProofSet
from cfpose_export.quantise import Ranges, quantise, quantised_modules
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import write_file

ROUNDS = 8  # of --auto-keep


class Candidate(NamedTuple):
    """A lowered graph, and what is run to judge it: how → a graph that onnxruntime runs."""

    model: onnx.ModelProto
    runs: Mapping[str, onnx.ModelProto]
    modules: tuple[str, ...]  # that run low
    unfit: Mapping[str, str]  # module → why it stays float32 unasked


Build = Callable[[Collection[str]], Candidate]


def builder(model: onnx.ModelProto, precision: Precision, ranges: Ranges | None = None) -> Build:
    """What makes a Candidate of `model` for a list of kept modules. int8 needs `ranges`."""
    if precision not in get_args(Precision):
        raise InputError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
    if precision != "int8":
        return lambda keep: _typed(model, precision, keep)
    if ranges is None:
        raise InputError("int8 needs calibrated ranges; see cfpose_export.quantise.calibrate")
    return lambda keep: _int8(model, ranges, keep)


def check_reference(model: onnx.ModelProto) -> None:
    """Raise ExportError unless the graph is float32 and carries its own proof."""
    spec = read_spec(model)
    if spec.precision != "fp32":
        raise ExportError(f"the reference must be float32, this graph is {spec.precision}")
    if not spec.gate:
        raise ExportError(
            "the float32 graph carries no proof, so nothing can be compared with it; write it "
            "with: cfpose-export onnx"
        )
    check_graph(model, "crops", POSE_OUTPUTS)


def examine(
    reference: onnx.ModelProto,
    build: Build,
    precision: Precision,
    proof: ProofSet,
    limits: Limits,
    keep: Collection[str] = (),
    *,
    auto_keep: bool = False,
    blame: bool = True,
) -> tuple[Candidate, GateReport]:
    """Compare a candidate with its reference; with `auto_keep`, keep its worst modules and retry.

    Judges, but raises nothing for a failure: see `GateReport.problems`. `blame`: look for the
    modules that made it fail.
    """
    spec, kept = read_spec(reference), tuple(keep)
    expected = run_graph(reference, proof.crops, LOGITS)

    def rerun(kept: Collection[str]) -> onnx.ModelProto:
        return build(kept).model if precision == "int8" else emulate(reference, precision, kept)

    for round_ in range(ROUNDS + 1):
        candidate = build(kept)
        check_graph(candidate.model, "crops", POSE_OUTPUTS)
        figures = tuple(
            compare(how, expected, run_graph(graph, proof.crops, LOGITS), proof, spec, limits.floor)
            for how, graph in candidate.runs.items()
        )
        problems = tuple(p for f in figures for p in problems_of(f, limits))
        culprits: list[Culprit] = []
        if problems and figures[0].joints and (blame or auto_keep):
            culprits = find_culprits(
                reference, rerun, kept, candidate.modules, proof, expected, spec, limits.floor
            )
        if not (problems and auto_keep and culprits) or round_ == ROUNDS:
            break
        if len(culprits) == len(candidate.modules) == 1:
            break  # nothing would be left
        kept += tuple(c.module for c in culprits if c.overflows) or (culprits[0].module,)
    report = GateReport(
        precision=precision,
        reference_sha256=digest(reference),
        limits=limits,
        kept=kept,
        figures=figures,
        problems=problems,
        unfit=candidate.unfit,
        culprits=tuple(culprits),
        kinds={kind: proof.kinds.count(kind) for kind in dict.fromkeys(proof.kinds)},
    )
    return candidate, report


def write_gated(
    path: Path,
    reference: onnx.ModelProto,
    precision: Precision,
    proof: ProofSet,
    limits: Limits | None = None,
    *,
    keep: Collection[str] = (),
    auto_keep: bool = False,
    ranges: Ranges | None = None,
) -> GateReport:
    """Lower, compare, and write the graph with its proof, and `NAME.gate.json` beside it.

    Raises ExportError, naming the modules that drift most, and leaves `path` as it was, when a
    limit is broken.
    """
    check_reference(reference)
    limits = LIMITS[precision] if limits is None else limits
    build = builder(reference, precision, ranges)
    candidate, report = examine(
        reference, build, precision, proof, limits, keep, auto_keep=auto_keep
    )
    if report.problems:
        raise ExportError(failure(report, auto_keep=auto_keep))
    proven = onnx.ModelProto()
    proven.CopyFrom(candidate.model)
    write_spec(proven, dataclasses.replace(read_spec(candidate.model), gate=report.summary()))
    data = proven.SerializeToString(deterministic=True)
    report = dataclasses.replace(report, artifact_sha256=hashlib.sha256(data).hexdigest())
    write_file(path, data)
    write_file(report_path(path), report.to_json())
    return report


def digest(model: onnx.ModelProto) -> str:
    """SHA-256 of a graph as this exporter writes it."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _typed(model: onnx.ModelProto, precision: Typed, keep: Collection[str]) -> Candidate:
    chosen = plan(model, precision, keep)
    lowered = lower(model, precision, keep)
    runs = {AS_FILE: lowered} if precision == "fp16" else {}  # onnxruntime has no bf16 Conv
    runs |= {ROUNDED: emulate(model, precision, keep)}
    return Candidate(lowered, runs, modules_of(model, chosen.low), chosen.unfit)


def _int8(model: onnx.ModelProto, ranges: Ranges, keep: Collection[str]) -> Candidate:
    quantised = quantise(model, ranges, keep)
    return Candidate(quantised, {AS_FILE: quantised}, quantised_modules(model, keep), {})
