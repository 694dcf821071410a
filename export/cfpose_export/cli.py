"""cfpose-export: checkpoint → one proven ONNX graph → what is deployed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from cfpose_export import deploy_commands
from cfpose_export.artifacts import bundle, describe
from cfpose_export.proof.compare import MAX_PX, MIN_CONFIDENCE
from cfpose_sdk.errors import ExportError, require
from cfpose_sdk.spec import Decode, Input, JointLookup


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command. Returns 0, or 1 when a proof failed."""
    parsed = _parser().parse_args(argv)
    handlers = {
        "onnx": _onnx,
        "frame": _frame,
        "engine": deploy_commands.engine,
        "openvino": deploy_commands.openvino,
        "check": _check,
        "inspect": _inspect,
        "bundle": _bundle,
        "lower": deploy_commands.run_lower,
        "drift": deploy_commands.run_drift,
    }
    try:
        handlers[parsed.command](parsed)
    except ExportError as error:
        print(f"cfpose-export: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfpose-export",
        description="Write a checkpoint as one ONNX graph, and graphs as engines and OpenVINO "
        "models; prove that each is the same model.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = argparse.ArgumentDefaultsHelpFormatter
    proof = argparse.ArgumentParser(add_help=False)
    proof.add_argument(
        "--photos", type=Path, help="folder of photos and people.json (default: demo)"
    )
    proof.add_argument("--max-drift", type=float, default=MAX_PX, help="crop pixels")
    proof.add_argument(
        "--min-confidence", type=float, default=MIN_CONFIDENCE, help="joints below: unjudged"
    )
    write = commands.add_parser(
        "onnx", parents=[proof], help="write a graph if it proves right", formatter_class=defaults
    )
    write.add_argument("--checkpoint", type=Path, required=True, help="pose or finder .safetensors")
    write.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    write.add_argument("--decode", choices=get_args(Decode), help="another than the checkpoint's")
    write.add_argument(
        "--flip-test", action="store_true", help="average each crop with its mirror image"
    )
    write.add_argument(
        "--joint-lookup",
        choices=get_args(JointLookup),
        default="gridsample",
        help="how the refiner reads its maps",
    )
    write.add_argument(
        "--input", choices=get_args(Input), default="crops", help="crops, or whole frames and boxes"
    )
    write.add_argument(
        "--half-weights",
        action="store_true",
        help="a finder's: stored as float16, computed with in float32",
    )
    frame = commands.add_parser(
        "frame", help="a proven crops-in graph as a frame-in one", formatter_class=defaults
    )
    frame.add_argument("model", type=Path, help="the crops-in .onnx file")
    frame.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    frame.add_argument("--photos", type=Path, help="folder of photos and people.json")
    frame.add_argument("--max-drift", type=float, default=MAX_PX, help="pixels")
    frame.add_argument(
        "--min-confidence", type=float, default=MIN_CONFIDENCE, help="joints below: unjudged"
    )
    for command in (write, frame):
        command.add_argument(
            "--antialias",
            type=int,
            default=1,
            metavar="S",
            help="frame input: S x S samples a crop pixel where people are shrunk",
        )
    deploy_commands.add_commands(commands, defaults)
    check = commands.add_parser(
        "check", parents=[proof], help="prove a written model", formatter_class=defaults
    )
    check.add_argument("model", type=Path, help="the .onnx, .engine, .plan or .xml file")
    check.add_argument("--checkpoint", type=Path, help="of an .onnx file: compare with PyTorch")
    check.add_argument("--reference", type=Path, help="else with this float32 .onnx or the bundled")
    inspect = commands.add_parser("inspect", help="what a model file holds, as JSON")
    inspect.add_argument("model", type=Path, help="the .onnx, .engine, .plan or .xml file")
    put = commands.add_parser("bundle", help="make artifacts the SDK's default models")
    put.add_argument("--pose", type=Path, help="proven pose .onnx")
    put.add_argument("--finder", type=Path, help="finder .onnx")
    put.add_argument("--folder", type=Path, help="default: the installed SDK's models folder")
    deploy_commands.add_precision_commands(commands)
    return parser


def _onnx(arguments: argparse.Namespace) -> None:
    require("torch", "onnxscript", extra="export", why="cfpose-export onnx")
    from cfpose_export import checkpoint_commands

    checkpoint_commands.export(arguments)


def _frame(arguments: argparse.Namespace) -> None:
    require("torch", "onnxscript", extra="export", why="cfpose-export frame")
    from cfpose_export import checkpoint_commands

    checkpoint_commands.frame(arguments)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.checkpoint is None:
        deploy_commands.check_deployed(arguments)
        return
    require("torch", "onnxscript", extra="export", why="cfpose-export check --checkpoint")
    from cfpose_export import checkpoint_commands

    checkpoint_commands.check(arguments)


def _inspect(arguments: argparse.Namespace) -> None:
    print(json.dumps(describe(arguments.model), indent=2))


def _bundle(arguments: argparse.Namespace) -> None:
    for path in bundle(arguments.pose, arguments.finder, arguments.folder):
        print(path)
