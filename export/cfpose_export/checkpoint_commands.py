"""Commands that need PyTorch: `onnx` writes a checkpoint's graph, `frame` lets it take frames.

PyTorch is imported when a command runs, so that the parser works without it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from cfpose_export.graph.rules import load_model
from cfpose_export.proof.compare import MAX_PX, MIN_CONFIDENCE
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.commands import number
from cfpose_sdk.errors import require
from cfpose_sdk.spec import Decode, Input, JointLookup


def add_commands(commands: Any) -> None:
    """Add `onnx` and `frame` to argparse's sub-parsers."""
    _add_onnx(commands)
    _add_frame(commands)


def add_proof_options(command: argparse.ArgumentParser, pixels: str = "crop pixels") -> None:
    """Add the options that all float32 proofs share."""
    command.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    command.add_argument(
        "--max-drift",
        type=number(0),
        default=MAX_PX,
        help=f"how far a keypoint may move, in {pixels} (default: %(default)s)",
    )
    command.add_argument(
        "--min-confidence",
        type=number(0, 1),
        default=MIN_CONFIDENCE,
        help="joints below are not compared (default: %(default)s)",
    )


def _add_onnx(commands: Any) -> None:
    onnx = commands.add_parser("onnx", help="write a checkpoint's graph if its proof passes")
    onnx.set_defaults(run=_onnx)
    onnx.add_argument("--checkpoint", type=Path, required=True, help="pose or finder .safetensors")
    onnx.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    onnx.add_argument(
        "--decode", choices=get_args(Decode), help="another decoder than the checkpoint's"
    )
    onnx.add_argument(
        "--flip-test", action="store_true", help="average each crop with its mirror image"
    )
    onnx.add_argument(
        "--joint-lookup",
        choices=get_args(JointLookup),
        default="gridsample",
        help="how the refiner reads its maps (default: %(default)s)",
    )
    onnx.add_argument(
        "--input",
        choices=get_args(Input),
        default="crops",
        help="crops, or whole frames and boxes (default: %(default)s)",
    )
    onnx.add_argument(
        "--half-weights",
        action="store_true",
        help="store the weights as float16; the graph computes in float32 all the same",
    )
    _add_antialias(onnx)
    add_proof_options(onnx)


def _add_frame(commands: Any) -> None:
    frame = commands.add_parser(
        "frame", help="turn a proven crops-in graph into one that takes whole frames and boxes"
    )
    frame.set_defaults(run=_frame)
    frame.add_argument("model", type=Path, help="the crops-in .onnx file, or a bundled model")
    frame.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    _add_antialias(frame)
    add_proof_options(frame, "frame and in crop pixels")


def _add_antialias(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--antialias",
        type=number(1, 16, whole=True),
        default=1,
        metavar="S",
        help="frame input: S x S samples a crop pixel where people are shrunk "
        "(default: %(default)s)",
    )


def _onnx(arguments: argparse.Namespace) -> None:
    """Print each proof that the written graph has passed."""
    require("torch", "onnxscript", extra="export", why="cfpose-export onnx")
    from cfpose_export.proof.checkpoint import PoseSwitches, export_checkpoint
    from cfpose_export.proof.compare import Bounds

    proofs = export_checkpoint(
        arguments.checkpoint,
        arguments.output,
        PoseSwitches(
            decode=arguments.decode,
            flip_test=arguments.flip_test,
            joint_lookup=arguments.joint_lookup,
            input=arguments.input,
            antialias=arguments.antialias,
        ),
        Bounds(max_px=arguments.max_drift, min_confidence=arguments.min_confidence),
        half_weights=arguments.half_weights,
        photos=arguments.photos,
    )
    for proof in proofs:
        print(proof.to_json())


def _frame(arguments: argparse.Namespace) -> None:
    """Print the proof of the frame-in graph."""
    require("torch", "onnxscript", extra="export", why="cfpose-export frame")
    from cfpose_export.proof.compare import Bounds
    from cfpose_export.proof.frame import write_proven_frame

    proof = write_proven_frame(
        arguments.output,
        load_model(model_file(arguments.model)),
        arguments.antialias,
        arguments.photos,
        Bounds(max_px=arguments.max_drift, min_confidence=arguments.min_confidence),
    )
    print(proof.to_json())
