"""cfpose-export: checkpoint → one proven ONNX graph."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import onnx

from cfpose_export import lowering
from cfpose_export.bundle import bundle
from cfpose_export.finder import OUTPUTS as FINDER_OUTPUTS
from cfpose_export.finder import (
    build_finder,
    is_finder,
    judge_finder,
    load_fused_finder,
    measure_finder,
    write_proven_finder,
)
from cfpose_export.frame_parity import judge_frame, measure_frame, write_proven_frame
from cfpose_export.fuse import FusedPose
from cfpose_export.graph import FRAME_INPUTS, POSE_OUTPUTS, check_graph, load_model, read_spec
from cfpose_export.onnx import build_pose
from cfpose_export.parity import Bounds, judge, measure, write_proven
from cfpose_export.proof_crops import read_people
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.spec import Decode, Input, JointLookup, ModelSpec
from cfpose_training.checkpoint import load_pose

NOT_YET = {"engine": "TensorRT engines", "openvino": "OpenVINO models"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command. Returns 0, 1 when a proof failed, 2 for what is not there yet."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in NOT_YET:
        what = NOT_YET[arguments[0]]
        print(f"cfpose-export: {what} are not in this version; use the ONNX file", file=sys.stderr)
        return 2
    parsed = _parser().parse_args(arguments)
    handlers = {"onnx": _onnx, "check": _check, "inspect": _inspect, "bundle": _bundle}
    handlers |= {"lower": lowering.run_lower, "drift": lowering.run_drift}
    try:
        handlers[parsed.command](parsed)
    except ExportError as error:
        print(f"cfpose-export: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfpose-export",
        description="Write a checkpoint as one ONNX graph, and prove that it is the same model.",
        epilog="engine and openvino are not in this version.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = argparse.ArgumentDefaultsHelpFormatter
    bounds = Bounds()
    proof = argparse.ArgumentParser(add_help=False)
    proof.add_argument("--checkpoint", type=Path, required=True, help="pose or finder .safetensors")
    proof.add_argument(
        "--photos", type=Path, help="folder of photos and people.json (default: demo)"
    )
    proof.add_argument("--max-drift", type=float, default=bounds.max_px, help="crop pixels")
    proof.add_argument(
        "--min-confidence", type=float, default=bounds.min_confidence, help="joints below: unjudged"
    )
    write = commands.add_parser(
        "onnx", parents=[proof], help="write a graph if it proves right", formatter_class=defaults
    )
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
    frame = commands.add_parser(
        "frame", help="a proven crops-in graph as a frame-in one", formatter_class=defaults
    )
    frame.add_argument("model", type=Path, help="the crops-in .onnx file")
    frame.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    frame.add_argument("--photos", type=Path, help="folder of photos and people.json")
    frame.add_argument("--max-drift", type=float, default=bounds.max_px, help="pixels")
    frame.add_argument(
        "--min-confidence", type=float, default=bounds.min_confidence, help="joints below: unjudged"
    )
    for command in (write, frame):
        command.add_argument(
            "--antialias",
            type=int,
            default=1,
            metavar="S",
            help="frame input: S x S samples a crop pixel where people are shrunk",
        )
    check = commands.add_parser(
        "check", parents=[proof], help="prove a written graph", formatter_class=defaults
    )
    check.add_argument("model", type=Path, help="the .onnx file")
    inspect = commands.add_parser("inspect", help="what an .onnx file holds, as JSON")
    inspect.add_argument("model", type=Path, help="the .onnx file")
    put = commands.add_parser("bundle", help="make artifacts the SDK's default models")
    put.add_argument("--pose", type=Path, help="proven pose .onnx")
    put.add_argument("--finder", type=Path, help="finder .onnx")
    put.add_argument("--folder", type=Path, help="default: the installed SDK's models folder")
    lowering.add_commands(commands)
    return parser


def _onnx(arguments: argparse.Namespace) -> None:
    if is_finder(arguments.checkpoint):
        if arguments.decode is not None or arguments.flip_test or arguments.input != "crops":
            raise InputError(
                "--decode, --flip-test and --input are for pose models, and the checkpoint holds a "
                "finder"
            )
        finder = load_fused_finder(arguments.checkpoint)
        photos = arguments.photos
        print(write_proven_finder(arguments.output, finder, build_finder(finder), photos).to_json())
        return
    network, spec = load_pose(arguments.checkpoint)
    if arguments.antialias != 1 and arguments.input != "frame":
        raise InputError("--antialias goes with --input frame; crops come as they are")
    crops = read_people(arguments.photos, spec)
    spec = dataclasses.replace(
        _with_decode(spec, arguments.decode),
        flip_test=arguments.flip_test,
        joint_lookup=arguments.joint_lookup,
    )
    fused, bounds = FusedPose(network, spec), _bounds(arguments)
    if arguments.input == "crops":
        print(write_proven(arguments.output, fused, build_pose(fused), crops, bounds).to_json())
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.model = Path(folder) / "crops.onnx"
        print(write_proven(arguments.model, fused, build_pose(fused), crops, bounds).to_json())
        _frame(arguments)


def _frame(arguments: argparse.Namespace) -> None:
    model, bounds = load_model(arguments.model), _bounds(arguments)
    drift = write_proven_frame(
        arguments.output, model, arguments.antialias, arguments.photos, bounds
    )
    print(drift.to_json())


def _check(arguments: argparse.Namespace) -> None:
    model = load_model(arguments.model)
    if is_finder(arguments.checkpoint):
        finder = load_fused_finder(arguments.checkpoint)
        check_graph(model, "images", FINDER_OUTPUTS)
        found = measure_finder(finder, model, arguments.photos)
        print(found.to_json())
        judge_finder(found)
        return
    spec = read_spec(model)
    check_graph(model, "crops" if spec.input == "crops" else FRAME_INPUTS, POSE_OUTPUTS)
    network, expected = load_pose(arguments.checkpoint)
    if dataclasses.replace(spec, gate={}) != _as_exported(expected, spec):
        raise ExportError(
            f"{arguments.model} and {arguments.checkpoint} carry different specs: "
            f"{spec.to_json()} and {expected.to_json()}"
        )
    bounds, core = _bounds(arguments), model
    fused = FusedPose(network, dataclasses.replace(spec, input="crops", antialias=1))
    if spec.input == "frame":
        core = build_pose(fused)
        frame_drift = measure_frame(core, model, arguments.photos, bounds)
        print(frame_drift.to_json())
        judge_frame(frame_drift, bounds)
    drift = measure(fused, core, read_people(arguments.photos, spec), bounds)
    print(drift.to_json())
    judge(drift, bounds)


def _inspect(arguments: argparse.Namespace) -> None:
    model = load_model(arguments.model)
    initializers = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    report = {
        "file": str(arguments.model),
        "bytes": arguments.model.stat().st_size,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}",
        "inputs": {value.name: _shape(value) for value in model.graph.input},
        "outputs": {value.name: _shape(value) for value in model.graph.output},
        "constants": sum(int(array.size) for array in initializers),
        "operators": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        "metadata": {entry.key: _parsed(entry.value) for entry in model.metadata_props},
    }
    print(json.dumps(report, indent=2))


def _bundle(arguments: argparse.Namespace) -> None:
    for path in bundle(arguments.pose, arguments.finder, arguments.folder):
        print(path)


def _with_decode(spec: ModelSpec, decode: Decode | None) -> ModelSpec:
    """The spec with another decoder; its calibration goes, because it fits one raw score only."""
    if decode is None or decode == spec.decode:
        return spec
    return dataclasses.replace(spec, decode=decode, calibration=(1.0, 0.0))


def _as_exported(spec: ModelSpec, graph: ModelSpec) -> ModelSpec:
    """A checkpoint's spec with the switches of the export that a graph names."""
    return dataclasses.replace(
        _with_decode(spec, graph.decode),
        input=graph.input,
        antialias=graph.antialias,
        flip_test=graph.flip_test,
        joint_lookup=graph.joint_lookup,
    )


def _bounds(arguments: argparse.Namespace) -> Bounds:
    return Bounds(max_px=arguments.max_drift, min_confidence=arguments.min_confidence)


def _shape(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{kind} [{', '.join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)}]"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
