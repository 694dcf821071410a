"""The gate: a lower precision is written only when it agrees with its float32 graph on crops.

The reference is a float32 graph that carries its own proof against torch, so nothing here needs
PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import onnx

from cfpose_export.graph.rules import (
    POSE_OUTPUTS,
    LowPrecision,
    TypedPrecision,
    check_graph,
    logits_of,
    read_spec,
    report_path,
    write_spec,
)
from cfpose_export.precision.int8 import Ranges, quantise, quantised_modules
from cfpose_export.precision.sensitivity import Culprit, find_culprits
from cfpose_export.precision.typed import emulate, lower, modules_of, plan
from cfpose_export.proof.compare import Figures, compare_graphs, run_graph, spread_problem
from cfpose_export.proof.crops import ProofSet
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import sha256, write_file

AS_FILE = "the file, onnxruntime CPU"
ROUNDED = "every lowered value rounded, sums in float32"


@dataclass(frozen=True)
class Limits:
    """What a lower precision must keep to, over the joints of float32 confidence ≥ `floor`."""

    p99_px: float  # of the file, as onnxruntime computes it
    rounded_p99_px: float  # when every value is rounded; what a GPU does lies between the two
    oks_mean: float  # of the poses before and after, in the worse of the two
    confidence_p99: float  # likewise
    floor: float = 0.3
    spread_median: float = 0.3  # of the covariances, as of `spread_gap`

    def __str__(self) -> str:
        return (
            f"p99 {self.p99_px:g} px, rounded {self.rounded_p99_px:g} px, "
            f"OKS {self.oks_mean:g}, confidence p99 {self.confidence_p99:g}, "
            f"covariance {self.spread_median:g}"
        )


# fp16 may cost AP 0.001, the others 0.01. Those two move joints of which the model is unsure by
# many pixels, so that the OKS decides, and the pixel bound only stops what is broken.
LIMITS: Mapping[str, Limits] = {
    "fp16": Limits(
        p99_px=0.25, rounded_p99_px=1.5, oks_mean=0.998, confidence_p99=0.02, spread_median=0.02
    ),
    "bf16": Limits(p99_px=20.0, rounded_p99_px=20.0, oks_mean=0.98, confidence_p99=0.1),
    "int8": Limits(p99_px=20.0, rounded_p99_px=20.0, oks_mean=0.98, confidence_p99=0.1),
}


@dataclass(frozen=True)
class GateReport:
    """Figures, limits and broken limits of one lowered graph."""

    precision: LowPrecision
    reference_sha256: str  # of the float32 graph
    limits: Limits
    kept: tuple[str, ...]  # modules that stay float32 beyond the default ones
    figures: tuple[Figures, ...]
    problems: tuple[str, ...]  # empty: it passed
    unfit: Mapping[str, str] = field(default_factory=dict)
    culprits: tuple[Culprit, ...] = ()  # worst first; looked for when it failed
    kinds: Mapping[str, int] = field(default_factory=dict)  # crops of each kind
    artifact_sha256: str = ""  # of the file that was written

    def to_json(self) -> str:
        """One JSON object; numbers that are not finite become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2, sort_keys=True) + "\n"

    def summary(self) -> dict[str, Any]:
        """For the artifact's metadata. Rounded, so that another machine writes the same."""
        worst = max(self.figures, key=lambda f: f.p99_px)
        return {
            "reference_sha256": self.reference_sha256,
            "runtime": "onnxruntime CPU",
            "crops": worst.crops,
            "min_confidence": self.limits.floor,
            "p99_px": {f.how: _up(f.p99_px, 2) for f in self.figures},
            "min_mean_oks": _down(min(f.oks_mean for f in self.figures), 3),
            "kept": list(self.kept),
        }


def failure(report: GateReport, *, auto_keep: bool = False) -> str:
    """The error text of a report that failed."""
    text = f"the {report.precision} graph is not the model: " + "; ".join(report.problems)
    if report.culprits:
        text += ". Most of it comes from " + ", ".join(map(str, report.culprits[:3]))
        if not auto_keep:
            text += ". Keep them in float32 with --keep MODULE, or let --auto-keep choose"
    if auto_keep and report.kept:
        text += f". Kept already: {', '.join(report.kept)}"
    return text


def problems_of(figures: Figures, limits: Limits) -> Sequence[str]:
    """Which limits the figures break, in words."""
    if figures.joints == 0:
        return [
            f"no joint of {figures.crops} crops reaches confidence {limits.floor}, so the "
            f"comparison says nothing; give photos of people (--photos)"
        ]
    problems = []
    allowed = limits.p99_px if figures.how == AS_FILE else limits.rounded_p99_px
    if figures.nonfinite:
        problems.append(f"{figures.nonfinite} numbers are not finite")
    if not figures.p99_px <= allowed:  # NaN fails too
        problems.append(f"keypoints drift by {figures.p99_px:.3g} px (p99), allowed {allowed:g}")
    if not figures.oks_mean >= limits.oks_mean:
        problems.append(f"mean OKS is {figures.oks_mean:.4f}, expected {limits.oks_mean:g} or more")
    if not figures.confidence_p99 <= limits.confidence_p99:
        problems.append(
            f"confidences differ by {figures.confidence_p99:.3g} (p99), "
            f"allowed {limits.confidence_p99:g}"
        )
    spread = spread_problem(figures.spread_max, limits.spread_median, figures.spread_median)
    if spread is not None:
        problems.append(spread)
    return [f"{problem} ({figures.how})" for problem in problems]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _up(value: float, digits: int) -> float:
    return float(math.ceil(value * 10**digits)) / 10.0**digits


def _down(value: float, digits: int) -> float:
    return float(math.floor(value * 10**digits)) / 10.0**digits


ROUNDS = 8  # of --auto-keep


class Candidate(NamedTuple):
    """A lowered graph, and what is run to judge it: how → a graph that onnxruntime runs."""

    model: onnx.ModelProto
    runs: Mapping[str, onnx.ModelProto]
    modules: tuple[str, ...]  # that run low
    unfit: Mapping[str, str]  # module → why it stays float32 although it is not in `keep`


Build = Callable[[Collection[str]], Candidate]


def builder(model: onnx.ModelProto, precision: LowPrecision, ranges: Ranges | None = None) -> Build:
    """The function that lowers `model`, given the modules to keep. int8 needs `ranges`."""
    if precision not in get_args(LowPrecision):
        raise InputError(f"precision must be one of {get_args(LowPrecision)}, got {precision!r}")
    if precision != "int8":
        return lambda keep: _typed(model, precision, keep)
    if ranges is None:
        raise InputError("int8 needs calibrated ranges; see cfpose_export.precision.int8.calibrate")
    return lambda keep: _int8(model, ranges, keep)


def check_reference(model: onnx.ModelProto) -> None:
    """Raise InputError unless the graph is float32 and carries its own proof."""
    spec = read_spec(model)
    if spec.precision != "fp32":
        raise InputError(f"the reference must be float32, this graph is {spec.precision}")
    if not spec.gate:
        raise InputError(
            "the float32 graph carries no proof, so nothing can be compared with it; write it "
            "with: cfpose-export onnx"
        )
    check_graph(model, "crops", POSE_OUTPUTS)


def examine(
    reference: onnx.ModelProto,
    build: Build,
    precision: LowPrecision,
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
    expected = run_graph(reference, proof.crops, logits_of(reference))

    def rerun(kept: Collection[str]) -> onnx.ModelProto:
        return build(kept).model if precision == "int8" else emulate(reference, precision, kept)

    for round_ in range(ROUNDS + 1):
        candidate = build(kept)
        check_graph(candidate.model, "crops", POSE_OUTPUTS)
        figures = tuple(
            compare_graphs(
                how,
                expected,
                run_graph(graph, proof.crops, logits_of(graph)),
                proof,
                spec,
                limits.floor,
            )
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
    precision: LowPrecision,
    proof: ProofSet,
    limits: Limits | None = None,
    *,
    keep: Collection[str] = (),
    auto_keep: bool = False,
    blame: bool = True,
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
        reference, build, precision, proof, limits, keep, auto_keep=auto_keep, blame=blame
    )
    if report.problems:
        raise ExportError(failure(report, auto_keep=auto_keep))
    proven = onnx.ModelProto()
    proven.CopyFrom(candidate.model)
    write_spec(proven, dataclasses.replace(read_spec(candidate.model), gate=report.summary()))
    data = proven.SerializeToString(deterministic=True)
    report = dataclasses.replace(report, artifact_sha256=sha256(data))
    write_file(path, data)
    write_file(report_path(path), report.to_json())
    return report


def digest(model: onnx.ModelProto) -> str:
    """SHA-256 of a graph as this exporter writes it."""
    return sha256(model.SerializeToString(deterministic=True))


def _typed(model: onnx.ModelProto, precision: TypedPrecision, keep: Collection[str]) -> Candidate:
    chosen = plan(model, precision, keep)
    lowered = lower(model, precision, keep)
    runs = {AS_FILE: lowered} if precision == "fp16" else {}  # onnxruntime has no bf16 Conv
    runs |= {ROUNDED: emulate(model, precision, keep)}
    return Candidate(lowered, runs, modules_of(model, chosen.low), chosen.unfit)


def _int8(model: onnx.ModelProto, ranges: Ranges, keep: Collection[str]) -> Candidate:
    quantised = quantise(model, ranges, keep)
    return Candidate(quantised, {AS_FILE: quantised}, quantised_modules(model, keep), {})
