"""The commands that start from a checkpoint, and need PyTorch: `onnx`, `check --checkpoint`."""

from __future__ import annotations

import argparse
import dataclasses

from cfpose_export.finder import OUTPUTS as FINDER_OUTPUTS
from cfpose_export.finder import (
    build_finder,
    is_finder,
    judge_finder,
    load_fused_finder,
    measure_finder,
    write_proven_finder,
)
from cfpose_export.fuse import FusedPose
from cfpose_export.graph import POSE_OUTPUTS, check_graph, load_model, read_spec
from cfpose_export.onnx import build_pose
from cfpose_export.parity import Bounds, judge, measure, write_proven
from cfpose_export.proof_crops import read_people
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.spec import Decode, ModelSpec
from cfpose_training.checkpoint import load_pose


def export(arguments: argparse.Namespace) -> None:
    """`cfpose-export onnx`: prints the proof."""
    if is_finder(arguments.checkpoint):
        if arguments.decode is not None:
            raise InputError("--decode is for pose models, and the checkpoint holds a finder")
        finder = load_fused_finder(arguments.checkpoint)
        photos = arguments.photos
        print(write_proven_finder(arguments.output, finder, build_finder(finder), photos).to_json())
        return
    network, spec = load_pose(arguments.checkpoint)
    crops = read_people(arguments.photos, spec)
    fused = FusedPose(network, _with_decode(spec, arguments.decode))
    drift = write_proven(arguments.output, fused, build_pose(fused), crops, _bounds(arguments))
    print(drift.to_json())


def check(arguments: argparse.Namespace) -> None:
    """`cfpose-export check x.onnx --checkpoint C`: prints the proof."""
    model = load_model(arguments.model)
    if is_finder(arguments.checkpoint):
        finder = load_fused_finder(arguments.checkpoint)
        check_graph(model, "images", FINDER_OUTPUTS)
        found = measure_finder(finder, model, arguments.photos)
        print(found.to_json())
        judge_finder(found)
        return
    check_graph(model, "crops", POSE_OUTPUTS)
    network, expected = load_pose(arguments.checkpoint)
    spec = read_spec(model)
    if dataclasses.replace(spec, gate={}) != _with_decode(expected, spec.decode):
        raise ExportError(
            f"{arguments.model} and {arguments.checkpoint} carry different specs: "
            f"{spec.to_json()} and {expected.to_json()}"
        )
    bounds = _bounds(arguments)
    drift = measure(FusedPose(network, spec), model, read_people(arguments.photos, spec), bounds)
    print(drift.to_json())
    judge(drift, bounds)


def _with_decode(spec: ModelSpec, decode: Decode | None) -> ModelSpec:
    """The spec with another decoder; its calibration goes, because it fits one raw score only."""
    if decode is None or decode == spec.decode:
        return spec
    return dataclasses.replace(spec, decode=decode, calibration=(1.0, 0.0))


def _bounds(arguments: argparse.Namespace) -> Bounds:
    return Bounds(max_px=arguments.max_drift, min_confidence=arguments.min_confidence)
