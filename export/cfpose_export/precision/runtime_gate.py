"""`judge`: what a runtime of this machine makes of a model, by the limits of the gate.

The gate proves a graph, in onnxruntime. Here a runtime is asked, OpenVINO in bf16, say: on the same
hard crops, for a finder on the same photos, beside the float32 graph in onnxruntime.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from cfpose_export.graph.rules import model_path
from cfpose_export.precision.deployed import precision_of, reference_of
from cfpose_export.precision.gate import LIMITS, Limits, problems_of
from cfpose_export.proof.compare import BATCH, compare_graphs, joined
from cfpose_export.proof.crops import HARD_COUNT, ProofSet, read_hard
from cfpose_export.proof.runtimes import FULL_FINDER, LOW_FINDERS, compare_finders, judge_finders
from cfpose_sdk.backends import Backend, Device, RuntimeOptions, open_backend
from cfpose_sdk.backends.base import ArithmeticPrecision
from cfpose_sdk.commands import number
from cfpose_sdk.errors import ExportError, InputError, require
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec

# of float32: another order of sums, nothing more
FLOAT32 = Limits(
    p99_px=0.05, rounded_p99_px=0.05, oks_mean=0.9995, confidence_p99=0.001, spread_median=0.01
)


@dataclass(frozen=True)
class Judgement:
    """One model in one runtime: what was found, and which limits it breaks (none: it passed)."""

    provider: str  # what really ran it
    precision: str  # whose limits count
    figures: dict[str, Any]  # of `Figures`, or of a `FinderAgreement`
    problems: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def add_commands(commands: Any) -> None:
    """Add `judge` to argparse's sub-parsers."""
    judge = commands.add_parser(
        "judge",
        help="what a runtime here makes of a model, by the gate's limits",
        description=__doc__,
    )
    judge.set_defaults(run=_judge)
    judge.add_argument("model", help="an .onnx or .xml file, or a bundled model; default-finder")
    judge.add_argument(
        "--reference", help="the float32 .onnx (default: the bundled model of that name)"
    )
    judge.add_argument(
        "--device", choices=("cpu", "openvino"), default="cpu", help="default: %(default)s"
    )
    judge.add_argument(
        "--precision",
        choices=get_args(ArithmeticPrecision),
        default="f32",
        help="what OpenVINO is asked to compute in, beyond the graph's types (default: f32)",
    )
    judge.add_argument("--threads", type=number(1, whole=True), help="CPU threads of the runtime")
    judge.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    judge.add_argument(
        "--crops",
        type=number(1, whole=True),
        default=HARD_COUNT,
        help="crops to compare (default: %(default)s)",
    )


def _judge(arguments: argparse.Namespace) -> None:
    """Print the judgement. Raises ExportError where a limit is broken."""
    given, threads = arguments.reference, arguments.threads
    found = judge_runtime(
        model_path(arguments.model),
        None if given is None else model_path(given),
        device=arguments.device,
        precision=arguments.precision,
        threads=threads,
        photos=arguments.photos,
        crops=arguments.crops,
    )
    print(found.to_json(), flush=True)
    if found.problems:
        raise ExportError(f"{found.provider} is not the model: " + "; ".join(found.problems))


def judge_runtime(
    model: Path,
    reference: Path | None = None,
    *,
    device: Device = "cpu",
    precision: ArithmeticPrecision = "f32",
    threads: int | None = None,
    photos: Path | None = None,
    crops: int = HARD_COUNT,
) -> Judgement:
    """Run a model beside its float32 graph, which onnxruntime runs on the CPU.

    Raises InputError without a float32 graph to compare with, else as `open_backend`.
    """
    require("onnxruntime", extra="cpu", why="the reference")
    options = RuntimeOptions(precision=precision)
    with open_backend(model, device=device, threads=threads, options=options) as candidate:
        metadata = dict(candidate.metadata)
        source = reference_of(model, metadata, reference)
        low = precision_of(metadata)
        if low == "fp32" and precision != "f32":
            low = precision
        with open_backend(source, device="cpu", threads=threads) as exact:
            if precision_of(dict(exact.metadata)) != "fp32":
                raise InputError(f"the reference must be float32, {source} is not")
            if FINDER_KEY in metadata:
                return _finder(exact, candidate, low, photos)
            spec = ModelSpec.from_json(exact.metadata[SPEC_KEY])
            return _pose(exact, candidate, low, read_hard(photos, spec, crops), spec)


def _pose(
    exact: Backend, candidate: Backend, precision: str, proof: ProofSet, spec: ModelSpec
) -> Judgement:
    limits = LIMITS.get(precision, FLOAT32)
    expected, got = (_answers(backend, proof) for backend in (exact, candidate))
    figures = compare_graphs(candidate.provider, expected, got, proof, spec, limits.floor)
    return Judgement(
        candidate.provider,
        precision,
        dataclasses.asdict(figures),
        tuple(_bare(problems_of(figures, limits))),
    )


def _bare(problems: Sequence[str]) -> Sequence[str]:
    """The provider stands in front already."""
    return [problem.rpartition(" (")[0] for problem in problems]


def _answers(backend: Backend, proof: ProofSet) -> Any:
    size = min(BATCH, backend.max_batch or BATCH)
    parts = range(0, len(proof.crops), size)
    return joined([backend.run({"crops": proof.crops[i : i + size]}) for i in parts])


def _finder(exact: Backend, candidate: Backend, precision: str, photos: Path | None) -> Judgement:
    spec = FinderSpec.from_json(exact.metadata[FINDER_KEY])
    agreement = compare_finders(exact, candidate, spec, photos)
    try:
        judge_finders(agreement, LOW_FINDERS.get(precision, FULL_FINDER))
    except ExportError as error:
        problems: tuple[str, ...] = (str(error),)
    else:
        problems = ()
    return Judgement(candidate.provider, precision, dataclasses.asdict(agreement), problems)
