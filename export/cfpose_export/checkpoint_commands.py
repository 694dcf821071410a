"""The commands that start from a checkpoint, and need PyTorch: `onnx`, `check --checkpoint`."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from cfpose_export.graph.finder import OUTPUTS as FINDER_OUTPUTS
from cfpose_export.graph.finder import build_finder, check_finder_spec, is_finder, load_fused_finder
from cfpose_export.graph.rules import FRAME_INPUTS, POSE_OUTPUTS, check_graph, load_model, read_spec
from cfpose_export.graph.trace import build_pose
from cfpose_export.proof.crops import read_people
from cfpose_export.proof.finder import judge_finder, measure_finder, write_proven_finder
from cfpose_export.proof.frame import judge_frame, measure_frame, write_proven_frame
from cfpose_export.proof.pose import Bounds, judge, measure, write_proven
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.spec import Decode, ModelSpec
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.nets.fused import FusedPose


def export(arguments: argparse.Namespace) -> None:
    """`cfpose-export onnx`: prints the proof."""
    if is_finder(arguments.checkpoint):
        if arguments.decode is not None or arguments.flip_test or arguments.input != "crops":
            raise InputError(
                "--decode, --flip-test and --input are for pose models, and the checkpoint holds a "
                "finder"
            )
        _refuse_for_finder(arguments)
        if arguments.antialias != 1 or arguments.joint_lookup != "gridsample":
            raise InputError(
                "--antialias and --joint-lookup are for pose models, and the checkpoint holds a "
                "finder"
            )
        finder = load_fused_finder(arguments.checkpoint)
        model = build_finder(finder, half_weights=arguments.half_weights)
        print(write_proven_finder(arguments.output, finder, model, arguments.photos).to_json())
        return
    if arguments.half_weights:
        raise InputError("--half-weights is for finders; a pose model becomes fp16 by: lower")
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
        frame(arguments)


def frame(arguments: argparse.Namespace) -> None:
    """`cfpose-export frame`: prints the proof."""
    model, bounds = load_model(arguments.model), _bounds(arguments)
    drift = write_proven_frame(
        arguments.output, model, arguments.antialias, arguments.photos, bounds
    )
    print(drift.to_json())


def check(arguments: argparse.Namespace) -> None:
    """`cfpose-export check x.onnx --checkpoint C`: prints the proof."""
    model = load_model(arguments.model)
    if is_finder(arguments.checkpoint):
        _refuse_for_finder(arguments)
        finder = load_fused_finder(arguments.checkpoint)
        check_graph(model, "images", FINDER_OUTPUTS)
        check_finder_spec(finder, model)
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


def _with_decode(spec: ModelSpec, decode: Decode | None) -> ModelSpec:
    """The spec with another decoder; its calibration goes, because it fits one raw score only."""
    if decode is None or decode == spec.decode:
        return spec
    window = 0.0 if decode == "argmax" else spec.oks_window
    return dataclasses.replace(spec, decode=decode, oks_window=window, calibration=(1.0, 0.0))


def _as_exported(spec: ModelSpec, graph: ModelSpec) -> ModelSpec:
    """A checkpoint's spec with the switches of the export that a graph names."""
    return dataclasses.replace(
        _with_decode(spec, graph.decode),
        input=graph.input,
        antialias=graph.antialias,
        flip_test=graph.flip_test,
        joint_lookup=graph.joint_lookup,
    )


def _refuse_for_finder(arguments: argparse.Namespace) -> None:
    """A finder's proof has bounds of its own."""
    plain = Bounds()
    if (arguments.max_drift, arguments.min_confidence) != (plain.max_px, plain.min_confidence):
        raise InputError(
            "--max-drift and --min-confidence are for pose models, and the checkpoint holds a "
            "finder, whose bounds are fixed"
        )


def _bounds(arguments: argparse.Namespace) -> Bounds:
    return Bounds(max_px=arguments.max_drift, min_confidence=arguments.min_confidence)
