"""Commands that make and check what is deployed: low precisions, engines, OpenVINO. No PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from cfpose_export.engines.build import SUFFIXES, Source, write_engine
from cfpose_export.engines.openvino import write_openvino
from cfpose_export.engines.tensorrt import TARGETS, BuildOptions
from cfpose_export.graph.rules import load_model, read_spec
from cfpose_export.precision.gate import LIMITS, Limits, Precision, write_gated
from cfpose_export.precision.int8 import calibrate
from cfpose_export.proof.compare import MIN_CONFIDENCE, Bound, compare_runtimes, judge_agreement
from cfpose_export.proof.crops import (
    CALIBRATION_COUNT,
    CALIBRATION_SEED,
    HARD_COUNT,
    read_hard,
    read_people,
)
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.library import EXTRAS
from cfpose_sdk.backends.tensorrt.passport import (
    read_engine,
)
from cfpose_sdk.errors import BackendError, ExportError, InputError, MissingDependencyError, require
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.files import sha256
from cfpose_sdk.spec import SPEC_KEY, ModelSpec


def add_precision_commands(commands: Any) -> None:
    """Add both parsers to argparse's sub-parsers."""
    _add_lower(commands)
    _add_drift(commands)


def _add_lower(commands: Any) -> None:
    lower = commands.add_parser(
        "lower",
        help="write a proven float32 graph in fp16, bf16 or int8, if it stays the same model",
        epilog="Limits that are not given are those of the precision: "
        + "; ".join(f"{name}: {_words(limits)}" for name, limits in LIMITS.items()),
    )
    lower.add_argument("model", help="a float32 .onnx that cfpose-export proved, or: default")
    lower.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    lower.add_argument("--precision", choices=get_args(Precision), required=True)
    lower.add_argument("--keep", action="append", default=[], metavar="MODULE", help="in float32")
    lower.add_argument("--auto-keep", action="store_true", help="keep what drifts most, and retry")
    lower.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    lower.add_argument("--crops", type=int, default=HARD_COUNT, help="(default: %(default)s)")
    lower.add_argument("--calibration", type=Path, help="as --photos, for int8's ranges")
    lower.add_argument("--max-p99", type=float, help="crop pixels, of the file")
    lower.add_argument("--max-rounded-p99", type=float, help="crop pixels, all values rounded")
    lower.add_argument("--min-oks", type=float, help="mean OKS of the poses before and after")
    lower.add_argument("--min-confidence", type=float, help="joints below are not compared")


def _add_drift(commands: Any) -> None:
    drift = commands.add_parser(
        "drift",
        help="measure what each precision does to float32 models; writes no model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    drift.add_argument("models", nargs="+", help="float32 .onnx files, or: default")
    drift.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    drift.add_argument("--crops", type=int, default=HARD_COUNT, help="crops to compare")
    drift.add_argument("--min-confidence", type=float, default=0.3, help="joints below: uncompared")
    drift.add_argument("--precision", action="append", choices=get_args(Precision), help="only")
    drift.add_argument("--no-culprits", action="store_true", help="do not look for the worst")
    drift.add_argument(
        "--ap",
        nargs=3,
        action="append",
        default=[],
        metavar=("FILE", "IMAGES", "EVERY"),
        help="measure AP on annotated photos, those whose id is divisible by EVERY",
    )
    drift.add_argument("--json", type=Path, help="file to write; other models in it stay")


def run_lower(arguments: argparse.Namespace) -> None:
    """Write one graph, or raise ExportError."""
    reference = load_model(_path(arguments.model))
    spec, precision = read_spec(reference), arguments.precision
    ranges = None
    if precision == "int8":
        folder = arguments.calibration or arguments.photos
        crops = read_hard(folder, spec, CALIBRATION_COUNT, seed=CALIBRATION_SEED).crops
        ranges = calibrate(reference, crops)
    report = write_gated(
        arguments.output,
        reference,
        precision,
        read_hard(arguments.photos, spec, arguments.crops),
        _limits(arguments),
        keep=arguments.keep,
        auto_keep=arguments.auto_keep,
        ranges=ranges,
    )
    print(report.to_json(), end="")


def run_drift(arguments: argparse.Namespace) -> None:
    """Measure, print and, with --json, write the table's data."""
    from cfpose_export.precision.drift import (  # needs bench
        ApSource,
        DriftOptions,
        measure_drift,
        update,
    )

    options = DriftOptions(
        photos=arguments.photos,
        crops=arguments.crops,
        min_confidence=arguments.min_confidence,
        precisions=tuple(arguments.precision or get_args(Precision)),
        culprits=not arguments.no_culprits,
        ap=tuple(ApSource(Path(f), Path(i), _every(every)) for f, i, every in arguments.ap),
    )
    command = _command(sys.argv[1:])
    for model in arguments.models:
        measured = measure_drift(_path(model), options)
        print(json.dumps(measured, indent=1))
        if arguments.json is not None:
            update(arguments.json, command, [measured])


def _every(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--ap FILE IMAGES EVERY: EVERY is a whole number from 1 on, got {text!r}")
    return int(text)


def _path(name: str) -> Path:
    return BUNDLED_MODEL if name == "default" else Path(name)


def _command(arguments: Sequence[str]) -> str:
    """What was typed, without where the result went and what says something of one machine."""
    words = list(arguments)
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    parts = [Path(word).parts[-2:] if Path(word).is_absolute() else (word,) for word in words]
    return shlex.join(["cfpose-export", *("/".join(part) for part in parts)])


def _limits(arguments: argparse.Namespace) -> Limits:
    given = {
        "p99_px": arguments.max_p99,
        "rounded_p99_px": arguments.max_rounded_p99,
        "oks_mean": arguments.min_oks,
        "floor": arguments.min_confidence,
    }
    limits = LIMITS[arguments.precision]
    return dataclasses.replace(limits, **{k: v for k, v in given.items() if v is not None})


def _words(limits: Limits) -> str:
    return (
        f"p99 {limits.p99_px:g} px, rounded {limits.rounded_p99_px:g} px, "
        f"OKS {limits.oks_mean:g}, confidence p99 {limits.confidence_p99:g}, "
        f"covariance {limits.spread_median:g}"
    )


PRECISIONS = ("fp32", "fp16", "bf16")


def add_commands(commands: Any, defaults: Any) -> None:
    """The parsers of `engine` and `openvino`."""
    plain = BuildOptions()
    engine = commands.add_parser("engine", help="build an engine", formatter_class=defaults)
    engine.add_argument("source", nargs="?", help="the .onnx file, or default; as --model")
    engine.add_argument("--model", help="an .onnx file, or default for the bundled model")
    engine.add_argument("-o", "--output", type=Path, required=True, help=".engine or .plan file")
    engine.add_argument("--precision", choices=PRECISIONS, help="default: the graph's own")
    engine.add_argument("--keep", nargs="+", default=[], help="modules that stay float32")
    engine.add_argument("--photos", type=Path, help="people that a lower precision is judged by")
    engine.add_argument(
        "--flavour", choices=("auto", "tensorrt", "rtx"), default="auto", help="auto: the installed"
    )
    for name, what in (("people", "crops or boxes"), ("width", "frame"), ("height", "frame")):
        engine.add_argument(
            f"--{name}", type=int, nargs=3, default=getattr(plain, name), help=f"profile: {what}",
            metavar=("MIN", "BEST", "MAX"),
        )  # fmt: skip
    engine.add_argument(
        "--targets", nargs="+", default=[], choices=list(TARGETS), help="TensorRT-RTX: GPUs, by SM"
    )
    engine.add_argument("--tf32", action="store_true", help="float32 products may use TF32")
    engine.add_argument("--level", type=int, choices=range(6), help="optimisation level")
    engine.add_argument("--timing-cache", type=Path, help="TensorRT: file of measured kernels")
    engine.add_argument("--force", action="store_true", help="build even if nothing changed")
    convert = commands.add_parser(
        "openvino", help="write an OpenVINO model if it proves right", formatter_class=defaults
    )
    convert.add_argument("source", type=Path, help="the pose .onnx file")
    convert.add_argument("-o", "--output", type=Path, required=True, help="the .xml file")
    convert.add_argument("--photos", type=Path, help="folder of photos and people.json")
    convert.add_argument("--max-drift", type=float, default=Bound().px, help="crop pixels")
    convert.add_argument("--min-confidence", type=float, default=MIN_CONFIDENCE, help="of a joint")


def engine(arguments: argparse.Namespace) -> None:
    """`cfpose-export engine`: prints the passport's facts."""
    if arguments.source is not None and arguments.model is not None:
        raise InputError(f"two models are given, {arguments.source} and {arguments.model}")
    name = arguments.model or arguments.source or "default"
    path = BUNDLED_MODEL if name == "default" else Path(name)
    if arguments.keep and arguments.precision in (None, "fp32"):
        raise InputError("--keep says what stays float32; give --precision fp16 or bf16")
    model = load_model(path)
    words: list[str] = []
    if arguments.precision is not None:
        words += ["--precision", arguments.precision]
        model = typed_graph(model, arguments.precision, arguments.keep, arguments.photos)
    if arguments.keep:
        words += ["--keep", *arguments.keep]
    if arguments.photos is not None:
        words += ["--photos", str(arguments.photos)]
    names = {field.name for field in dataclasses.fields(BuildOptions)}
    given: dict[str, Any] = {k: v for k, v in vars(arguments).items() if k in names}
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    options = BuildOptions(**{**given, **lists})
    source = Source(name, sha256(path.read_bytes()), tuple(words))
    passport, new = write_engine(arguments.output, model, source, options, force=arguments.force)
    facts = ("flavour", "flavour_version", "precision", "engine_bytes", "profile", "achieved")
    report = {"engine": str(arguments.output), "built": new}
    print(json.dumps({**report, **{fact: getattr(passport, fact) for fact in facts}}, indent=2))


def openvino(arguments: argparse.Namespace) -> None:
    """`cfpose-export openvino`: prints how far OpenVINO is from onnxruntime."""
    crops = read_people(arguments.photos, read_spec(load_model(arguments.source)))
    bound = Bound(px=arguments.max_drift)
    agreement = write_openvino(
        arguments.source, arguments.output, crops, bound, arguments.min_confidence
    )
    print(agreement.to_json())


def check_deployed(arguments: argparse.Namespace) -> None:
    """`cfpose-export check` without a checkpoint: compare a model with its float32 source.

    An engine's passport and hashes are checked in any case, and its keypoints where a driver is.
    """
    path: Path = arguments.model
    if path.suffix.lower() in SUFFIXES:
        _, passport = read_engine(path)
        if SPEC_KEY not in passport.metadata:
            raise ExportError(f"{path} is no pose engine; its passport and hashes are right")
        spec = ModelSpec.from_json(passport.metadata[SPEC_KEY])
        try:
            open_memory("cuda-bindings", extra=EXTRAS[passport.flavour], why=f"running {path.name}")
        except (BackendError, MissingDependencyError) as error:
            report = {"passport": "right", "key": passport.key, "drift": f"not run: {error}"}
            print(json.dumps(report, indent=2))
            return
    else:
        with contextlib.closing(open_backend(path)) as opened:
            if SPEC_KEY not in opened.metadata:
                raise ExportError(f"{path} carries no {SPEC_KEY}, so it is no pose model")
            spec = ModelSpec.from_json(opened.metadata[SPEC_KEY])
    _compare(path, spec, arguments)


def typed_graph(
    model: onnx.ModelProto,
    precision: Precision | Literal["fp32"],
    keep: list[str],
    photos: Path | None,
) -> onnx.ModelProto:
    """The graph in a precision, proven against `model`, which may be in it already.

    Raises ExportError when it is in another lower precision, or when the proof fails.
    """
    present = read_spec(model).precision
    if present == precision and not keep:
        return model
    if present != "fp32" or precision == "fp32":
        raise ExportError(f"the graph is {present} already, and {precision} was asked for")
    if read_spec(model).input == "frame":
        raise InputError(
            f"the graph takes whole frames, and {precision} is proven on crops; lower the crops-in "
            f"graph that it is made of with: cfpose-export lower, then: cfpose-export frame"
        )
    with tempfile.TemporaryDirectory() as folder:
        lowered = Path(folder) / "lowered.onnx"
        proof = read_hard(photos, read_spec(model))
        write_gated(lowered, model, precision, proof, keep=keep)
        return load_model(lowered)


def _compare(path: Path, spec: ModelSpec, arguments: argparse.Namespace) -> None:
    reference = arguments.reference
    if reference is None:
        if read_spec(load_model(BUNDLED_MODEL)).name != spec.name:
            raise InputError(
                f"{path} is {spec.name}, and the bundled model is another; give the float32 graph "
                f"that it was made from (--reference), or its --checkpoint"
            )
        reference = BUNDLED_MODEL
    if spec.input != "crops":
        raise InputError(f"{path} takes whole frames; check the crops-in graph that it is made of")
    require("onnxruntime", extra="cpu", why="the float32 reference")
    if (source := read_spec(load_model(reference))).precision != "fp32":
        raise InputError(f"the reference must be float32, {reference} is {source.precision}")
    crops = read_people(arguments.photos, spec)
    with open_backend(reference, device="cpu") as ours, open_backend(path) as theirs:
        agreement = compare_runtimes(ours, theirs, crops, arguments.min_confidence)
    print(agreement.to_json())
    judge_agreement(agreement, _bound(spec.precision, path, arguments.max_drift))


def _bound(precision: str, path: Path, max_px: float) -> Bound:
    """float32 keeps to --max-drift; lower precisions to the limits of their gate."""
    if precision == "fp32":
        return Bound(px=max_px)
    limits = LIMITS[precision]
    engine = path.suffix.lower() in SUFFIXES  # rounds every value, as CPU runtimes do not
    p99_px = limits.rounded_p99_px if engine else limits.p99_px
    return Bound("p99_px", p99_px, limits.spread_median)
