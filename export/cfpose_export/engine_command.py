"""The command `engine`: a pose model and its finder become engines that go along with each other.

Needs no PyTorch. Where a GPU is, each engine is run and compared before it is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from cfpose_export.engines.build import Source, engine_key, why_not_here, write_engine
from cfpose_export.engines.options import COMPATIBLE, TARGETS, BuildOptions, frame_size
from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.frame_input import frame_graph
from cfpose_export.graph.rules import (
    GraphPrecision,
    TypedPrecision,
    is_finder,
    load_model,
    model_path,
    read_spec,
)
from cfpose_export.precision.deployed import compare_with_graph, judge, precision_of, typed_graph
from cfpose_export.proof.compare import MAX_PX, MIN_CONFIDENCE
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.tensorrt.passport import Companion
from cfpose_sdk.commands import number
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import sha256
from cfpose_sdk.spec import SPEC_KEY

Input = Literal["auto", "frame", "crops"]


def add_commands(commands: Any) -> None:
    """Add `engine` to argparse's sub-parsers."""
    engine = commands.add_parser("engine", help="build TensorRT or TensorRT-RTX engines")
    engine.set_defaults(run=_engine)
    engine.add_argument("source", nargs="?", help="the .onnx file, or: default; as --model")
    engine.add_argument(
        "--model", help="the .onnx file, or the bundled models: default, default-finder"
    )
    engine.add_argument("-o", "--output", type=Path, required=True, help=".engine or .plan file")
    engine.add_argument(
        "--finder",
        default="default-finder",
        help="the finder that goes along with a pose model, as NAME.finder.engine: an .onnx file, "
        "or: none (default: the bundled one)",
    )
    engine.add_argument(
        "--input",
        choices=get_args(Input),
        default="auto",
        help="auto: whole frames, which are uploaded once, wherever the graph can be given them",
    )
    engine.add_argument(
        "--precision", choices=("fp32", *get_args(TypedPrecision)), help="default: the graph's own"
    )
    engine.add_argument("--keep", nargs="+", default=[], help="modules that stay float32")
    engine.add_argument("--photos", type=Path, help="people for the proofs (default: demo)")
    _add_build_options(engine)


def _add_build_options(engine: argparse.ArgumentParser) -> None:
    plain = BuildOptions()
    engine.add_argument(
        "--flavour",
        choices=("auto", "tensorrt", "rtx"),
        default="auto",
        help="auto: the one that is installed (default: %(default)s)",
    )
    engine.add_argument(
        "--people", type=number(1, whole=True), nargs="+", default=plain.people, metavar="N",
        help="numbers of people to tune for, each with a profile (default: %(default)s)",
    )  # fmt: skip
    engine.add_argument(
        "--frames", nargs="+", metavar="WxH", default=[f"{w}x{h}" for w, h in plain.frames],
        help="sizes of frames to tune for, lying or standing (default: %(default)s)",
    )  # fmt: skip
    engine.add_argument(
        "--targets", nargs="+", default=[], choices=list(TARGETS), help="TensorRT-RTX: GPUs, by SM"
    )
    engine.add_argument(
        "--compatible", choices=list(COMPATIBLE), default="",
        help="TensorRT: build for other GPUs too, at some cost (default: this very one)",
    )  # fmt: skip
    engine.add_argument("--tf32", action="store_true", help="float32 products may use TF32")
    engine.add_argument("--level", type=int, choices=range(6), help="optimisation level")
    engine.add_argument(
        "--workspace", type=number(1, whole=True), default=plain.workspace_mib, metavar="MIB",
        help="memory that a layer may take for itself (default: %(default)s)",
    )  # fmt: skip
    engine.add_argument(
        "--timing-cache",
        type=Path,
        help="TensorRT: file of measured kernels (default: beside the engine, by version and GPU)",
    )
    engine.add_argument("--force", action="store_true", help="build even if nothing changed")


def _engine(arguments: argparse.Namespace) -> None:
    """Print the passports' facts."""
    if arguments.source is not None and arguments.model is not None:
        raise InputError(f"two models are given, {arguments.source} and {arguments.model}")
    if arguments.keep and arguments.precision in (None, "fp32"):
        raise InputError("--keep says what stays float32; give --precision fp16 or bf16")
    options = BuildOptions(
        flavour=arguments.flavour,
        people=tuple(arguments.people),
        frames=tuple(frame_size(text) for text in arguments.frames),
        targets=tuple(arguments.targets),
        compatible=arguments.compatible,
        tf32=arguments.tf32,
        level=arguments.level,
        workspace_mib=arguments.workspace,
        timing_cache=arguments.timing_cache,
    )
    report = build_pair(
        arguments.model or arguments.source or "default",
        arguments.output,
        options,
        Making(arguments.precision, tuple(arguments.keep), arguments.photos, arguments.input),
        finder=arguments.finder,
        force=arguments.force,
    )
    print(json.dumps(report, indent=2))


@dataclass(frozen=True)
class Making:
    """What is done to a graph before it is built."""

    precision: GraphPrecision | None = None
    keep: tuple[str, ...] = ()
    photos: Path | None = None
    input: Input = "auto"


@dataclass(frozen=True)
class Ready:
    """A graph that can be built, and what it was made from."""

    output: Path
    source: Source
    original: onnx.ModelProto
    model: onnx.ModelProto
    options: BuildOptions

    @property
    def key(self) -> str:
        """Of the engine that it becomes."""
        return engine_key(self.model, self.options)


def build_pair(
    name: str,
    output: Path,
    options: BuildOptions,
    making: Making,
    *,
    finder: str = "none",
    force: bool = False,
) -> dict[str, Any]:
    """The engine of a model, and of the finder that goes along with a pose model; their facts.

    Raises ExportError when a graph cannot be built, or when an engine does not give what its graph
    gives on the CPU; the engine that was there before stays then.
    """
    words = [] if finder == "default-finder" else ["--finder", finder]
    pose = _ready(name, output, options, making, words)
    if finder == "none" or is_finder(pose.original) or not _is_pose(pose.original):
        return _build(pose, making, None, force)
    beside = output.with_name(f"{output.stem}.finder{output.suffix}")
    # --keep names modules of the pose model
    along = _ready(finder, beside, options, dataclasses.replace(making, keep=()), [])
    facts = _build(along, making, Companion("pose", output.name, pose.key), force)
    return {
        **_build(pose, making, Companion("finder", beside.name, along.key), force),
        "finder": facts,
    }


def _ready(
    name: str, output: Path, options: BuildOptions, making: Making, words: Collection[str]
) -> Ready:
    """The graph, lowered first where a precision is given, and then given whole frames."""
    path = model_path(name)
    original = model = load_model(path)
    said = list(words)  # what the passport's command needs beside the options
    if making.precision is not None:
        said += ["--precision", making.precision]
        model = typed_graph(model, making.precision, making.keep, making.photos)
    if making.keep:
        said += ["--keep", *making.keep]
    if making.photos is not None:
        said += ["--photos", str(making.photos)]
    if making.input != "auto":
        said += ["--input", making.input]
    batch = _fixed_batch(model)
    if batch:
        options = dataclasses.replace(options, people=(batch,))
    if making.input != "crops":
        model = _with_frames(model, batch, asked=making.input == "frame")
    return Ready(
        output, Source(name, sha256(path.read_bytes()), tuple(said)), original, model, options
    )


def _with_frames(model: onnx.ModelProto, batch: int, *, asked: bool) -> onnx.ModelProto:
    """The graph on whole frames where it can be given them; where it was asked for, or an error."""
    inputs = [value.name for value in model.graph.input]
    if "frame" in inputs:
        return model
    if is_finder(model):
        return frame_finder(model)
    if _is_pose(model) and not batch:
        return frame_graph(model)
    if asked:
        raise InputError(f"a graph with inputs {inputs} and batch {batch} cannot take whole frames")
    return model


def _build(
    ready: Ready, making: Making, companion: Companion | None, force: bool
) -> dict[str, Any]:
    def prove(trial: Path) -> dict[str, Any]:
        return _prove(trial, ready.original, making.photos)

    passport, new = write_engine(
        ready.output, ready.model, ready.source, ready.options,
        companion=companion, force=force, report=_say, prove=prove,
    )  # fmt: skip
    facts = ("flavour", "flavour_version", "precision", "engine_bytes", "inputs", "profiles",
             "achieved", "proof")  # fmt: skip
    report = {"engine": str(ready.output), "built": new}
    return {**report, **{fact: getattr(passport, fact) for fact in facts}}


def _prove(trial: Path, original: onnx.ModelProto, photos: Path | None) -> dict[str, Any]:
    """Run an engine beside its graph. Raises ExportError when it is another model there."""
    if (why := why_not_here(trial)) is not None:
        return {"run": False, "why": why}
    if not (is_finder(original) or _is_pose(original)):
        return {"run": False, "why": "a network of others, whose answers cfpose does not judge"}
    with open_backend(trial) as engine:
        metadata = dict(engine.metadata)
        agreement = compare_with_graph(
            engine, original, min_confidence=MIN_CONFIDENCE, photos=photos
        )
    judge(agreement, precision_of(metadata), MAX_PX, rounds_all=True)
    return {"run": True, **json.loads(agreement.to_json())}


def _say(line: str) -> None:
    print(f"cfpose-export: {line}", file=sys.stderr, flush=True)


def _is_pose(model: onnx.ModelProto) -> bool:
    return any(entry.key == SPEC_KEY for entry in model.metadata_props)


def _fixed_batch(model: onnx.ModelProto) -> int:
    """Crops that an adopted network takes at once, no fewer and no more; 0 for any number."""
    if not _is_pose(model):
        return 0
    adopted = read_spec(model).adopted
    return 0 if adopted is None else adopted.batch
