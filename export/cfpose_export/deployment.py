"""The commands that make and check what is deployed: engines and OpenVINO models. No PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import onnx

from cfpose_export.agreement import MIN_CONFIDENCE, Bound, compare, judge_agreement
from cfpose_export.engine import SUFFIXES, Source, write_engine
from cfpose_export.gate import write_gated
from cfpose_export.gate_report import LIMITS, Precision
from cfpose_export.graph import load_model, read_spec
from cfpose_export.openvino import write_openvino
from cfpose_export.proof_crops import read_hard, read_people
from cfpose_export.tensorrt import TARGETS, BuildOptions
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.device_memory import open_memory
from cfpose_sdk.backends.flavour import EXTRAS
from cfpose_sdk.errors import BackendError, ExportError, InputError, MissingDependencyError, require
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.passport import read_engine, sha256
from cfpose_sdk.spec import SPEC_KEY, ModelSpec

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
        agreement = compare(ours, theirs, crops, arguments.min_confidence)
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
