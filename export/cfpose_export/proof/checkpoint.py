"""From a checkpoint to a proven graph file, and the check of such a file against its checkpoint."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from cfpose_export.graph.finder import OUTPUTS as FINDER_OUTPUTS
from cfpose_export.graph.finder import build_finder, check_finder_spec
from cfpose_export.graph.half_weights import halve_weights, has_half_weights
from cfpose_export.graph.rules import FRAME_INPUTS, POSE_OUTPUTS, check_graph, load_model, read_spec
from cfpose_export.graph.trace import build_pose
from cfpose_export.proof.compare import Agreement, Bounds, judge_agreement
from cfpose_export.proof.crops import read_people
from cfpose_export.proof.finder import (
    FinderDrift,
    judge_finder,
    measure_finder,
    write_proven_finder,
)
from cfpose_export.proof.frame import FrameDrift, judge_frame, measure_frame, write_proven_frame
from cfpose_export.proof.half_weights import HALF_BOUND, measure_half, write_proven_half
from cfpose_export.proof.pose import Drift, judge, measure, write_proven
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.spec import FINDER_KEY, Decode, Input, JointLookup, ModelSpec
from cfpose_training.checkpoints.files import load_finder, load_pose, load_tensors
from cfpose_training.nets.fused import FusedFinder, FusedPose

Report = Drift | FrameDrift | FinderDrift | Agreement


@dataclass(frozen=True)
class PoseSwitches:
    """What the export chooses for a pose graph; the checkpoint holds the rest."""

    decode: Decode | None = None  # None: the checkpoint's
    flip_test: bool = False
    joint_lookup: JointLookup = "gridsample"
    input: Input = "crops"
    antialias: int = 1


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    switches: PoseSwitches,
    bounds: Bounds,
    *,
    half_weights: bool = False,
    photos: Path | None = None,
) -> Iterator[Report]:
    """Write the graph of a pose or finder checkpoint; yields each proof that it has passed.

    `photos`: the folder that the proofs take their crops from; None: the demo photos. Raises
    InputError for a switch that does not go with the checkpoint, ExportError when a proof fails;
    `output` stays as it was then.
    """
    if (finder := _load_finder(checkpoint)) is not None:
        _refuse_switches(switches, bounds)
        model = build_finder(finder, half_weights=half_weights)
        yield write_proven_finder(output, finder, model, photos)
        return
    network, spec = load_pose(checkpoint)
    if switches.antialias != 1 and switches.input != "frame":
        raise InputError("--antialias goes with --input frame; crops come as they are")
    crops = read_people(photos, spec)
    fused = FusedPose(network, _as_switched(spec, switches))
    with tempfile.TemporaryDirectory() as folder:
        # each step reads the file of the one before; the last one writes `output`
        core = output if switches.input == "crops" else Path(folder) / "crops.onnx"
        whole = Path(folder) / "whole.onnx" if half_weights else core
        yield write_proven(whole, fused, build_pose(fused), crops, bounds)
        if half_weights:
            yield write_proven_half(core, load_model(whole), crops, bounds.min_confidence)
        if switches.input == "frame":
            yield write_proven_frame(output, load_model(core), switches.antialias, photos, bounds)


def check_against_checkpoint(
    path: Path, checkpoint: Path, bounds: Bounds, photos: Path | None = None
) -> Iterator[Report]:
    """Prove an .onnx file against its checkpoint; yields each report before it is judged.

    Raises ExportError when their specs differ or a proof fails.
    """
    model = load_model(path)
    if (finder := _load_finder(checkpoint)) is not None:
        _refuse_bounds(bounds)
        check_graph(model, "images", FINDER_OUTPUTS)
        check_finder_spec(finder, model)
        boxes = measure_finder(finder, model, photos)
        yield boxes
        judge_finder(boxes)
        return
    spec = read_spec(model)
    check_graph(model, "crops" if spec.input == "crops" else FRAME_INPUTS, POSE_OUTPUTS)
    network, trained = load_pose(checkpoint)
    if dataclasses.replace(spec, gate={}) != _as_exported(trained, spec):
        raise ExportError(
            f"{path} and {checkpoint} carry different specs: "
            f"{spec.to_json()} and {trained.to_json()}"
        )
    fused = FusedPose(network, dataclasses.replace(spec, input="crops", antialias=1))
    yield from _check_pose(fused, model, spec, bounds, photos)


def _load_finder(checkpoint: Path) -> FusedFinder | None:
    """The finder of a checkpoint; None when it holds a pose model.

    Raises ArtifactError when it is no checkpoint at all, SpecError for the finder's spec.
    """
    if FINDER_KEY not in load_tensors(checkpoint)[1]:
        return None
    return FusedFinder(*load_finder(checkpoint))


def _check_pose(
    fused: FusedPose, model: onnx.ModelProto, spec: ModelSpec, bounds: Bounds, photos: Path | None
) -> Iterator[Report]:
    """A crops-in graph against torch; a frame-in graph, and one of half weights, against a core
    that is against torch.
    """
    core = model
    half = has_half_weights(model)
    if half or spec.input == "frame":
        core = build_pose(fused)
    if spec.input == "frame":
        stored = core
        if half:
            stored = build_pose(fused)
            halve_weights(stored)
        frames = measure_frame(stored, model, photos, bounds)
        yield frames
        judge_frame(frames, bounds)
    elif half:
        crops = read_people(photos, spec)
        agreement = measure_half(core, model, crops, bounds.min_confidence)
        yield agreement
        judge_agreement(agreement, HALF_BOUND)
    drift = measure(fused, core, read_people(photos, spec), bounds)
    yield drift
    judge(drift, bounds)


def _as_switched(spec: ModelSpec, switches: PoseSwitches) -> ModelSpec:
    """The spec of the crops-in graph."""
    return dataclasses.replace(
        _with_decode(spec, switches.decode),
        flip_test=switches.flip_test,
        joint_lookup=switches.joint_lookup,
    )


def _as_exported(spec: ModelSpec, graph: ModelSpec) -> ModelSpec:
    """A checkpoint's spec with the switches of the export that a graph names."""
    return dataclasses.replace(
        _with_decode(spec, graph.decode),
        input=graph.input,
        antialias=graph.antialias,
        flip_test=graph.flip_test,
        joint_lookup=graph.joint_lookup,
    )


def _with_decode(spec: ModelSpec, decode: Decode | None) -> ModelSpec:
    """The spec with another decoder; its calibration goes, because it fits one raw score only."""
    if decode is None or decode == spec.decode:
        return spec
    window = 0.0 if decode == "argmax" else spec.oks_window
    return dataclasses.replace(spec, decode=decode, oks_window=window, calibration=(1.0, 0.0))


def _refuse_switches(switches: PoseSwitches, bounds: Bounds) -> None:
    """Raise InputError when a finder is asked for what only a pose model has."""
    if switches.decode is not None or switches.flip_test or switches.input != "crops":
        raise InputError(
            "--decode, --flip-test and --input are for pose models, and the checkpoint holds a "
            "finder"
        )
    _refuse_bounds(bounds)
    if switches.antialias != 1 or switches.joint_lookup != "gridsample":
        raise InputError(
            "--antialias and --joint-lookup are for pose models, and the checkpoint holds a finder"
        )


def _refuse_bounds(bounds: Bounds) -> None:
    """A finder's proof has bounds of its own."""
    if bounds != Bounds():
        raise InputError(
            "--max-drift and --min-confidence are for pose models, and the checkpoint holds a "
            "finder, whose bounds are fixed"
        )
