"""Commands for deployed models: `openvino` and `check`.

None of them needs PyTorch, but for `check` with a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from cfpose_export.checkpoint_commands import add_proof_options
from cfpose_export.engines.build import SUFFIXES, why_not_here
from cfpose_export.engines.openvino import write_openvino
from cfpose_export.graph.half_weights import has_half_weights
from cfpose_export.graph.rules import (
    is_finder,
    load_model,
    model_path,
    read_finder_spec,
    read_spec,
)
from cfpose_export.precision.deployed import (
    compare_with_graph,
    judge,
    precision_of,
    reference_of,
)
from cfpose_export.proof.compare import Agreement, Bound, judge_agreement
from cfpose_export.proof.crops import read_people
from cfpose_export.proof.half_weights import HALF_BOUND
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.backends.tensorrt.passport import read_engine
from cfpose_sdk.errors import InputError, require


def add_commands(commands: Any) -> None:
    """Add `openvino` and `check` to argparse's sub-parsers."""
    _add_openvino(commands)
    _add_check(commands)


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
        "model",
        type=Path,
        help="an .onnx, .engine, .plan or .xml file, or a bundled model; default-finder",
    )
    check.add_argument("--checkpoint", type=Path, help="of an .onnx file: compare with PyTorch")
    check.add_argument(
        "--reference",
        type=Path,
        help="without a checkpoint: the float32 .onnx to compare with (default: the bundled model "
        "of that name)",
    )
    add_proof_options(check)


def _openvino(arguments: argparse.Namespace) -> None:
    """Print how far OpenVINO is from onnxruntime."""
    source, output = model_file(arguments.source), arguments.output
    photos = arguments.photos
    bound, min_confidence = Bound(px=arguments.max_drift), arguments.min_confidence
    crops = read_people(photos, read_spec(load_model(source)))
    print(write_openvino(source, output, crops, bound, min_confidence).to_json())


def _check(arguments: argparse.Namespace) -> None:
    """Print the proof: against a checkpoint in PyTorch, else against the float32 graph."""
    path, checkpoint, photos = model_path(arguments.model), arguments.checkpoint, arguments.photos
    max_px, min_confidence = arguments.max_drift, arguments.min_confidence
    if checkpoint is None:
        given = arguments.reference
        reference = None if given is None else model_path(given)
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
    """Compare a pose model or finder with its float32 graph.

    An engine's passport and hashes are checked in any case, and its numbers where a GPU is.
    """
    is_engine = path.suffix.lower() in SUFFIXES
    if is_engine:
        _, passport = read_engine(path)
        metadata = dict(passport.metadata)
    else:
        with contextlib.closing(open_backend(path)) as opened:
            metadata = dict(opened.metadata)
    source = reference_of(path, metadata, reference)
    if is_engine and (why := why_not_here(path)) is not None:
        report = {"passport": "right", "key": passport.key, "drift": f"not run: {why}"}
        print(json.dumps(report, indent=2))
        return
    graph = load_model(source)
    spec = read_finder_spec(graph) if is_finder(graph) else read_spec(graph)
    if spec.precision != "fp32":
        raise InputError(f"the reference must be float32, {source} is {spec.precision}")
    with open_backend(path) as candidate:
        agreement = compare_with_graph(
            candidate, graph, min_confidence=min_confidence, photos=photos
        )
    print(agreement.to_json())
    is_graph = path.suffix.lower() == ".onnx"
    if is_graph and isinstance(agreement, Agreement) and has_half_weights(load_model(path)):
        judge_agreement(agreement, HALF_BOUND)
        return
    judge(agreement, precision_of(metadata), max_px, rounds_all=is_engine)
