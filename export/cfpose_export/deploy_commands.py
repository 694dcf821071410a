"""Commands for deployed models: `engine`, `openvino` and `check`.

None of them needs PyTorch, but for `check` with a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import onnx

from cfpose_export.checkpoint_commands import add_proof_options
from cfpose_export.engines.build import SUFFIXES, Source, write_engine
from cfpose_export.engines.openvino import write_openvino
from cfpose_export.engines.tensorrt import TARGETS, BuildOptions
from cfpose_export.graph.half_weights import has_half_weights
from cfpose_export.graph.rules import (
    GraphPrecision,
    TypedPrecision,
    load_model,
    read_spec,
)
from cfpose_export.precision.deployed import bound_of, compare_with_float32, typed_graph
from cfpose_export.proof.compare import Bound, judge_agreement
from cfpose_export.proof.crops import read_people
from cfpose_export.proof.half_weights import HALF_BOUND
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.library import EXTRAS
from cfpose_sdk.backends.tensorrt.passport import Passport, read_engine
from cfpose_sdk.commands import number
from cfpose_sdk.errors import BackendError, ExportError, InputError, MissingDependencyError, require
from cfpose_sdk.files import sha256
from cfpose_sdk.spec import SPEC_KEY, ModelSpec


def add_commands(commands: Any) -> None:
    """Add `engine`, `openvino` and `check` to argparse's sub-parsers."""
    _add_engine(commands)
    _add_openvino(commands)
    _add_check(commands)


def _add_engine(commands: Any) -> None:
    plain = BuildOptions()
    engine = commands.add_parser("engine", help="build a TensorRT or TensorRT-RTX engine")
    engine.set_defaults(run=_engine)
    engine.add_argument("source", nargs="?", help="the .onnx file, or a bundled model; as --model")
    engine.add_argument("--model", help="the .onnx file, or a bundled model")
    engine.add_argument("-o", "--output", type=Path, required=True, help=".engine or .plan file")
    engine.add_argument(
        "--precision", choices=("fp32", *get_args(TypedPrecision)), help="default: the graph's own"
    )
    engine.add_argument("--keep", nargs="+", default=[], help="modules that stay float32")
    engine.add_argument("--photos", type=Path, help="people for the proof of a lower precision")
    engine.add_argument(
        "--flavour",
        choices=("auto", "tensorrt", "rtx"),
        default="auto",
        help="auto: the one that is installed (default: %(default)s)",
    )
    for name, what in (("people", "crops or boxes"), ("width", "frame"), ("height", "frame")):
        engine.add_argument(
            f"--{name}",
            type=number(1, whole=True),
            nargs=3,
            default=getattr(plain, name),
            metavar=("MIN", "BEST", "MAX"),
            help=f"sizes that the engine is for: {what} (default: %(default)s)",
        )
    engine.add_argument(
        "--targets", nargs="+", default=[], choices=list(TARGETS), help="TensorRT-RTX: GPUs, by SM"
    )
    engine.add_argument("--tf32", action="store_true", help="float32 products may use TF32")
    engine.add_argument("--level", type=int, choices=range(6), help="optimisation level")
    engine.add_argument("--timing-cache", type=Path, help="TensorRT: file of measured kernels")
    engine.add_argument("--force", action="store_true", help="build even if nothing changed")


def _add_openvino(commands: Any) -> None:
    convert = commands.add_parser("openvino", help="write an OpenVINO model if its proof passes")
    convert.set_defaults(run=_openvino)
    convert.add_argument("source", type=Path, help="the pose .onnx file, or a bundled model")
    convert.add_argument("-o", "--output", type=Path, required=True, help="the .xml file")
    add_proof_options(convert)


def _add_check(commands: Any) -> None:
    check = commands.add_parser("check", help="prove a model file that is there already")
    check.set_defaults(run=_check)
    check.add_argument(
        "model", type=Path, help="an .onnx, .engine, .plan or .xml file, or a bundled model"
    )
    check.add_argument("--checkpoint", type=Path, help="of an .onnx file: compare with PyTorch")
    check.add_argument(
        "--reference",
        type=Path,
        help="without a checkpoint: the float32 .onnx to compare with (default: the bundled model "
        "of that name)",
    )
    add_proof_options(check)


def _engine(arguments: argparse.Namespace) -> None:
    """Print the passport's facts."""
    if arguments.source is not None and arguments.model is not None:
        raise InputError(f"two models are given, {arguments.source} and {arguments.model}")
    if arguments.keep and arguments.precision in (None, "fp32"):
        raise InputError("--keep says what stays float32; give --precision fp16 or bf16")
    report = _build_engine(
        arguments.model or arguments.source or "default",
        arguments.output,
        BuildOptions(
            flavour=arguments.flavour,
            people=tuple(arguments.people),
            width=tuple(arguments.width),
            height=tuple(arguments.height),
            targets=tuple(arguments.targets),
            tf32=arguments.tf32,
            level=arguments.level,
            timing_cache=arguments.timing_cache,
        ),
        precision=arguments.precision,
        keep=arguments.keep,
        photos=arguments.photos,
        force=arguments.force,
    )
    print(json.dumps(report, indent=2))


def _build_engine(
    name: str,
    output: Path,
    options: BuildOptions,
    *,
    precision: GraphPrecision | None = None,
    keep: Collection[str] = (),
    photos: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """The engine of a graph, lowered first where a precision is given; and the facts about it."""
    path = model_file(name)
    model = load_model(path)
    words: list[str] = []  # what the passport's command needs beside the options
    if precision is not None:
        words += ["--precision", precision]
        model = typed_graph(model, precision, keep, photos)
    if keep:
        words += ["--keep", *keep]
    if photos is not None:
        words += ["--photos", str(photos)]
    if batch := _fixed_batch(model):
        options = dataclasses.replace(options, people=(batch,) * 3)
    source = Source(name, sha256(path.read_bytes()), tuple(words))
    passport, new = write_engine(output, model, source, options, force=force)
    facts = ("flavour", "flavour_version", "precision", "engine_bytes", "profile", "achieved")
    report = {"engine": str(output), "built": new}
    return {**report, **{fact: getattr(passport, fact) for fact in facts}}


def _fixed_batch(model: onnx.ModelProto) -> int:
    """Crops that an adopted network takes at once, no fewer and no more; 0 for any number."""
    if all(entry.key != SPEC_KEY for entry in model.metadata_props):
        return 0
    adopted = read_spec(model).adopted
    return 0 if adopted is None else adopted.batch


def _openvino(arguments: argparse.Namespace) -> None:
    """Print how far OpenVINO is from onnxruntime."""
    source, output = model_file(arguments.source), arguments.output
    photos = arguments.photos
    bound, min_confidence = Bound(px=arguments.max_drift), arguments.min_confidence
    crops = read_people(photos, read_spec(load_model(source)))
    print(write_openvino(source, output, crops, bound, min_confidence).to_json())


def _check(arguments: argparse.Namespace) -> None:
    """Print the proof: against a checkpoint in PyTorch, else against the float32 graph."""
    path, checkpoint, photos = model_file(arguments.model), arguments.checkpoint, arguments.photos
    max_px, min_confidence = arguments.max_drift, arguments.min_confidence
    if checkpoint is None:
        given = arguments.reference
        reference = None if given is None else model_file(given)
        _check_deployed(path, reference, photos, max_px=max_px, min_confidence=min_confidence)
        return
    require("torch", "onnxscript", extra="export", why="cfpose-export check --checkpoint")
    from cfpose_export.proof.checkpoint import check_against_checkpoint
    from cfpose_export.proof.compare import Bounds

    bounds = Bounds(max_px=max_px, min_confidence=min_confidence)
    for proof in check_against_checkpoint(path, checkpoint, bounds, photos):
        print(proof.to_json())


def _check_deployed(
    path: Path,
    reference: Path | None,
    photos: Path | None,
    *,
    max_px: float,
    min_confidence: float,
) -> None:
    """Compare a model with its float32 source.

    An engine's passport and hashes are checked in any case, and its keypoints where a driver is.
    """
    is_engine = path.suffix.lower() in SUFFIXES
    if is_engine:
        _, passport = read_engine(path)
        metadata = dict(passport.metadata)
        if SPEC_KEY not in metadata:
            raise ExportError(f"{path} is no pose engine; its passport and hashes are right")
        if (why := _cannot_run(path, passport)) is not None:
            report = {"passport": "right", "key": passport.key, "drift": f"not run: {why}"}
            print(json.dumps(report, indent=2))
            return
    else:
        with contextlib.closing(open_backend(path)) as opened:
            metadata = dict(opened.metadata)
        if SPEC_KEY not in metadata:
            raise ExportError(f"{path} carries no {SPEC_KEY}, so it is no pose model")
    spec = ModelSpec.from_json(metadata[SPEC_KEY])
    agreement = compare_with_float32(
        path, spec, reference, min_confidence=min_confidence, photos=photos
    )
    print(agreement.to_json())
    bound = bound_of(spec.precision, max_px, rounds_all=is_engine)
    if path.suffix.lower() == ".onnx" and has_half_weights(load_model(path)):
        bound = HALF_BOUND
    judge_agreement(agreement, bound)


def _cannot_run(path: Path, passport: Passport) -> str | None:
    """Why an engine cannot run here; None when it can."""
    try:
        open_memory("cuda-bindings", extra=EXTRAS[passport.flavour], why=f"running {path.name}")
    except (BackendError, MissingDependencyError) as error:
        return str(error)
    return None
