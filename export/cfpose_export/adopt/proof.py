"""The proof of an adopted graph: the file's own network, decoded by NumPy in float64."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from cfpose_export.adopt.adoption import Plan
from cfpose_export.adopt.decode.mirror import mirrored_places
from cfpose_export.adopt.reference import Decoded, decode_maps, decode_triples, decode_vectors
from cfpose_export.adopt.source import run_network
from cfpose_export.graph.frame_input import CORE_INPUT, core_graph, frame_graph
from cfpose_export.graph.rules import read_spec, write_spec
from cfpose_export.proof.compare import MAX_PX, run_graph
from cfpose_export.proof.crops import Crops
from cfpose_export.proof.frame import sample_crops
from cfpose_sdk.backends import open_backend
from cfpose_sdk.crops import crop_transforms, invert_transforms, transform_points
from cfpose_sdk.errors import ExportError
from cfpose_sdk.files import demo_photos
from cfpose_sdk.keypoints import calibrate
from cfpose_sdk.media.image import read_image

MAX_CONFIDENCE = 1e-3
MAX_FLIPS = 0.01  # of the joints: two peaks of all but the same height
_FLIP = 0.5  # map pixels or bins that the coarse pose moves


@dataclass(frozen=True)
class AdoptionDrift:
    """How far the graph is from the file's network, over joints of enough confidence.

    Where two peaks of a joint are all but equal the last digit decides; such flips are counted and
    left out of the pixels.
    """

    crops: int
    joints: int
    max_px: float  # crop pixels; of a frame-in graph too
    confidence_max: float
    flips: int

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def summary(self) -> dict[str, object]:
        """For the spec's `gate`; rounded up, so that other last digits give the same file."""
        up = math.ceil(self.max_px * 1000) / 1000 if math.isfinite(self.max_px) else self.max_px
        return {
            "reference": "the file's network, decoded in float64", "crops": self.crops,
            "joints": self.joints, "max_px": up, "flips": self.flips,
        }  # fmt: skip


def measure_adoption(
    plan: Plan, model: onnx.ModelProto, crops: Crops, min_confidence: float
) -> AdoptionDrift:
    """Compare on (N, H, W, 3) crops, in one run and in those of a single crop. Judges nothing."""
    expected = expected_poses(plan, crops)
    got = run_graph(model, crops)
    return _drift(
        plan, expected, got["keypoints"], got["coarse"], got["confidence"], min_confidence
    )


def measure_adopted_frame(
    crops_model: onnx.ModelProto, model: onnx.ModelProto, min_confidence: float
) -> AdoptionDrift:
    """Compare a frame-in graph with its core on crops sampled in float64: the demo's people."""
    spec, folder = read_spec(model), demo_photos()
    name, boxes = next(
        item for item in json.loads((folder / "people.json").read_text()).items() if item[1]
    )
    photo, boxes = read_image(folder / name), np.asarray(boxes, np.float32)
    scale = (spec.size_wh, spec.box_scale)
    crops = sample_crops(photo, boxes, *scale, spec.antialias, spec.geometry)
    with tempfile.TemporaryDirectory() as temporary:
        whole, core = Path(temporary) / "frame.onnx", Path(temporary) / "core.onnx"
        onnx.save_model(model, whole)
        onnx.save_model(core_graph(crops_model), core)
        with open_backend(whole, device="cpu") as frame_in, open_backend(core, device="cpu") as on:
            expected = on.run({CORE_INPUT: crops.astype(np.float32)})
            got = frame_in.run({"frame": photo, "boxes": boxes})
    onto = crop_transforms(boxes, *scale, geometry=spec.geometry)
    back = invert_transforms(onto)
    step = back[:, :1, 0]
    far, moved = (
        np.linalg.norm(got[n] - transform_points(back, expected[n]), axis=2) / step
        for n in ("keypoints", "coarse")
    )
    return _figures(far, moved > _FLIP, expected["confidence"], got["confidence"], min_confidence)


def judge_adoption(drift: AdoptionDrift, max_px: float = MAX_PX) -> None:
    """Raise ExportError unless the drift keeps to the bounds and says something at all."""
    if drift.joints == 0:
        raise ExportError(
            f"no joint of {drift.crops} crops reaches the confidence to be compared; is the preset "
            f"the network's? Look with --check PHOTOS.json; for an untrained one: "
            f"--min-confidence 0"
        )
    limits = {"max_px": max_px, "confidence_max": MAX_CONFIDENCE, "flips": MAX_FLIPS * drift.joints}
    found = dataclasses.asdict(drift)
    # not ≤, rather than >: NaN fails too
    if bad := [
        f"{n} {found[n]:.3g}, allowed {x:g}" for n, x in limits.items() if not found[n] <= x
    ]:
        raise ExportError(f"the adopted graph is not the file's network: {'; '.join(bad)}")


def prove(
    plan: Plan, model: onnx.ModelProto, crops: Crops, min_confidence: float
) -> tuple[onnx.ModelProto, AdoptionDrift]:
    """The graph with its proof in the spec. Raises ExportError when it fails."""
    drift = measure_adoption(plan, model, crops, min_confidence)
    judge_adoption(drift)
    proven = onnx.ModelProto()
    proven.CopyFrom(model)
    write_spec(proven, dataclasses.replace(read_spec(model), gate=drift.summary()))
    return proven, drift


def prove_frame(
    crops_model: onnx.ModelProto, antialias: int, min_confidence: float
) -> tuple[onnx.ModelProto, AdoptionDrift]:
    """The frame-in twin with its proof in the spec. Raises ExportError when it fails."""
    model = frame_graph(crops_model, antialias)
    drift = measure_adopted_frame(crops_model, model, min_confidence)
    judge_adoption(drift)
    spec = read_spec(model)
    gate = {**spec.gate, "frame": {"max_px": drift.summary()["max_px"], "flips": drift.flips}}
    write_spec(model, dataclasses.replace(spec, gate=gate))
    return model, drift


def expected_poses(plan: Plan, crops: Crops) -> Decoded:
    """(N, H, W, 3) crops through the file's network and the float64 decoders."""
    answers = _answers(plan, crops)
    if plan.spec.flip_test:
        there = _answers(plan, crops[:, :, ::-1])
        answers = [
            (a.astype(np.float64) + _unmirrored(plan, b, n)) / 2
            for n, (a, b) in enumerate(zip(answers, there, strict=True))
        ]
    if plan.answer.family == "heatmap":
        return decode_maps(answers[0], plan.maps)
    if plan.answer.family == "simcc":
        return decode_vectors(answers[0], answers[1], plan.vectors)
    return decode_triples(answers[0], plan.spec.size_wh)


def _answers(plan: Plan, crops: Crops) -> list[NDArray[np.floating]]:
    """The network's pose outputs, of the file as it is, in its own batches."""
    preset, source = plan.preset, plan.source
    pixels = crops.astype(np.float32)
    if preset.colour == "rgb":
        pixels = pixels[..., ::-1]
    mean, std = (np.asarray(v, np.float32) for v in (preset.mean, preset.std))
    if preset.colour == "bgr":
        mean, std = mean[::-1], std[::-1]
    fed = source.pixels((pixels - mean) / std)
    size = source.batch or max(1, len(fed))
    parts = []
    for first in range(0, len(fed), size):
        part = fed[first : first + size]
        full = np.resize(part, (size, *part.shape[1:])) if source.batch else part
        values = run_network(source.model, {source.input: full}, source.path.name)
        parts.append([values[name][: len(part)] for name in plan.answer.outputs])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _unmirrored(plan: Plan, values: NDArray[np.floating], which: int) -> NDArray[np.float64]:
    """An answer for mirrored crops, as the crops themselves would have it."""
    order, answer = plan.flip_order, np.asarray(values, np.float64)
    if plan.answer.family == "coordinates":
        width = plan.spec.size_wh[0]
        turned = answer[..., order, :]
        turned[..., 1] = (width - 1) / width - turned[..., 1]
        return turned
    swapped = answer[:, order]
    if plan.answer.family == "simcc":
        if which == 1:
            return swapped
        return swapped[..., mirrored_places(plan, "x", answer.shape)]
    return swapped[..., mirrored_places(plan, "maps", answer.shape)]


def _drift(
    plan: Plan,
    expected: Decoded,
    xy: NDArray[np.floating],
    coarse: NDArray[np.floating],
    confidence: NDArray[np.floating],
    min_confidence: float,
) -> AdoptionDrift:
    far = np.linalg.norm(xy - expected.xy, axis=2)
    flipped = np.zeros(far.shape, dtype=bool)
    if plan.answer.family != "coordinates":
        unit = plan.stride_xy if plan.answer.family == "heatmap" else 1 / plan.spec.split_ratio
        flipped = np.asarray((np.abs(coarse - expected.coarse) / unit > _FLIP).any(axis=2))
    sure = np.clip(expected.score, 0, 1)
    if plan.spec.calibration != (1.0, 0.0):
        sure = calibrate(sure, plan.spec.calibration)
    return _figures(far, flipped, sure, confidence, min_confidence)


def _figures(
    far: NDArray[np.floating],
    flipped: NDArray[np.bool_],
    expected: NDArray[np.floating],
    confidence: NDArray[np.floating],
    min_confidence: float,
) -> AdoptionDrift:
    compared = expected >= min_confidence
    kept = compared & ~flipped
    gap = np.abs(expected - confidence)
    return AdoptionDrift(
        crops=len(far),
        joints=int(compared.sum()),
        max_px=float(far[kept].max()) if kept.any() else math.nan,
        confidence_max=float(gap[kept].max()) if kept.any() else math.nan,
        flips=int((flipped & compared).sum()),
    )
