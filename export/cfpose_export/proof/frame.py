"""The proof of a frame-in graph: against the same core on crops that are cut in float64."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from cfpose_export.graph.frame_input import CORE_INPUT, core_graph, frame_graph
from cfpose_export.graph.rules import logits_of, read_spec, with_outputs, write_spec
from cfpose_export.proof.compare import (
    Bounds,
    Values,
    compare_joints,
    joined,
    keypoint_distances,
    spread_problem,
)
from cfpose_export.proof.crops import PEOPLE_FILE
from cfpose_sdk.arrays import Float64
from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.crops import Geometry, crop_transforms, invert_transforms, transform_points
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import demo_photos, write_file
from cfpose_sdk.media.image import read_image
from cfpose_sdk.spec import ModelSpec


def sample_crops(
    frame: NDArray[np.uint8],
    boxes: ArrayLike,
    size_wh: tuple[int, int],
    box_scale: float,
    antialias: int = 1,
    geometry: Geometry = "classic",
) -> Float64:
    """(N, H, W, 3) unrounded crops of one (h, w, 3) frame for (N, 4) xyxy boxes.

    Bilinear, black outside the frame. With `antialias` s > 1 each crop pixel is the mean of s × s
    samples, evenly spaced over a square of side √((step² − 2) / (1 − 1 / s²)) frame pixels, where
    `step` is the frame pixels a crop pixel; a single sample where that root is not real.
    """
    width, height = size_wh
    back = invert_transforms(crop_transforms(boxes, size_wh, box_scale, geometry=geometry))
    v, u = np.mgrid[:height, :width]
    lattice = np.stack([u, v], axis=-1).reshape(1, -1, 2)
    points = transform_points(back, np.broadcast_to(lattice, (len(back), *lattice.shape[1:])))
    total = np.zeros((len(back), height * width, 3))
    step = back[:, 0, 0]
    reach = np.zeros_like(step)
    if antialias > 1:
        reach = np.sqrt(np.maximum(step**2 - 2, 0) / (1 - 1 / antialias**2))
    places = (np.arange(antialias) + 0.5) / antialias - 0.5
    for dy in places:
        for dx in places:
            moved = points + (reach[:, None] * np.array([dx, dy]))[:, None]
            total += _bilinear(frame, moved)
    return total.reshape(len(back), height, width, 3) / antialias**2


def _bilinear(frame: NDArray[np.uint8], points: Float64) -> Float64:
    """(N, P, 3) values of a frame at (N, P, 2) positions; each of the 4 taps outside counts 0."""
    height, width = frame.shape[:2]
    x, y = points[..., 0], points[..., 1]
    total = np.zeros((*x.shape, 3))
    for column in (np.floor(x), np.floor(x) + 1):
        for row in (np.floor(y), np.floor(y) + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * inside
            i = np.clip(column, 0, width - 1).astype(np.int64)
            j = np.clip(row, 0, height - 1).astype(np.int64)
            total += weight[..., None] * frame[j, i]
    return total


SIZES_WH = ((320, 240), (1280, 720), (3840, 2160))
MAX_GREY = 0.25  # of 255; a float32 position in a 4K frame is good to some 1e-4 pixels
MAX_FLIPS = 0.01  # of the coordinates
FLIP_PX = 0.5  # crop pixels that a coarse coordinate moves


@dataclass(frozen=True)
class FrameDrift:
    """How far a frame-in graph is from its core on float64 crops, over all frames and boxes.

    Where two bins of a joint score all but the same, the last digits of a sample decide which of
    them wins: a bin flip. The decoder then starts elsewhere, and the refiner spreads that over the
    whole person. Flips are counted, and those people are left out of the pixel figures.
    """

    frames: int
    people: int
    joints: int  # compared: confidence reached the bound
    max_px: float  # keypoints, frame pixels
    max_crop_px: float  # keypoints, crop pixels
    confidence_max: float
    grey_max: float  # of the sampled crops, in levels of 255
    bin_flips: int  # coordinates of any joint
    coordinates: int
    provider: str
    spread_max: float | None = None  # covariances, as of `spread_gap`; None: the graph has none

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def measure_frame(
    crops_model: onnx.ModelProto, model: onnx.ModelProto, folder: Path | None, bounds: Bounds
) -> FrameDrift:
    """Run `model` and the core of `crops_model` on a photo of people in frames of SIZES_WH.

    The boxes are the photo's, and tiny, huge, cut and outside ones; one run has none. The photo is
    the first in the folder's people.json (None: the demo's). Judges nothing. Raises InputError
    without such a photo, ArtifactError or BackendError when a graph cannot be opened or run.
    """
    spec = read_spec(model)
    photo, boxes = first_photo(demo_photos() if folder is None else folder)
    with tempfile.TemporaryDirectory() as temporary:
        whole, core = Path(temporary) / "frame.onnx", Path(temporary) / "core.onnx"
        names = logits_of(model)
        onnx.save_model(with_outputs(model, (CORE_INPUT, *names)), whole)
        onnx.save_model(with_outputs(core_graph(crops_model), names), core)
        with open_backend(whole, device="cpu") as frame_in, open_backend(core, device="cpu") as on:
            empty = frame_in.run({"frame": photo, "boxes": np.zeros((0, 4), np.float32)})
            if bad := {name: v.shape for name, v in empty.items() if len(v)}:
                raise ExportError(f"no boxes gave outputs of shapes {bad}")
            runs = []
            for size_wh in SIZES_WH:
                frame = cv2.resize(photo, size_wh).astype(np.uint8)
                scaled = limit_boxes(boxes, photo.shape[1::-1], size_wh)
                runs.append(_run_both(spec, frame_in, on, frame, scaled, names))
            provider = frame_in.provider
    return _drift(runs, provider, bounds.min_confidence)


def judge_frame(drift: FrameDrift, bounds: Bounds) -> None:
    """Raise ExportError when a bound is broken, or when no joint was compared."""
    if drift.joints == 0:
        raise ExportError(
            f"no joint of {drift.people} people reaches confidence {bounds.min_confidence}, so the "
            f"comparison says nothing; give photos of people (--photos), or for an untrained "
            f"network --min-confidence 0"
        )
    limits: Mapping[str, float] = {
        "max_px": bounds.max_px,
        "max_crop_px": bounds.max_px,
        "confidence_max": bounds.max_confidence,
        "grey_max": MAX_GREY,
        "bin_flips": MAX_FLIPS * drift.coordinates,
    }
    figures = dataclasses.asdict(drift)
    # not ≤, rather than >: NaN fails too
    bad = [f"{n} {figures[n]:.3g}, allowed {x:g}" for n, x in limits.items() if not figures[n] <= x]
    if problem := spread_problem(drift.spread_max, bounds.max_spread):
        bad.append(problem)
    if bad:
        raise ExportError("the frame-in graph is not the model: " + "; ".join(bad))


def write_proven_frame(
    path: Path, crops_model: onnx.ModelProto, antialias: int, folder: Path | None, bounds: Bounds
) -> FrameDrift:
    """Build the frame-in graph of a proven crops-in graph, prove it, and write it whole.

    The proof joins the core's in the spec's `gate`. Raises ExportError, and leaves `path` as it
    was, when the crops-in graph carries no proof or this one fails.
    """
    if not read_spec(crops_model).gate:
        raise ExportError("the crops-in graph carries no proof; write it with: cfpose-export onnx")
    model = frame_graph(crops_model, antialias)
    drift = measure_frame(crops_model, model, folder, bounds)
    judge_frame(drift, bounds)
    spec = read_spec(model)
    proof = {
        "sizes_wh": [list(size) for size in SIZES_WH],
        # rounded up, so that another machine's last digits do not change the file
        "max_px": math.ceil(drift.max_px * 100) / 100,
        "bin_flips": drift.bin_flips,
    }
    write_spec(model, dataclasses.replace(spec, gate={**spec.gate, "frame": proof}))
    write_file(path, model.SerializeToString(deterministic=True))
    return drift


def first_photo(folder: Path) -> tuple[NDArray[np.uint8], Float64]:
    """The first photo with people of a folder, and their boxes. Raises InputError."""
    listing = folder / PEOPLE_FILE
    try:
        people = {name: boxes for name, boxes in json.loads(listing.read_text()).items() if boxes}
        name, boxes = next(iter(people.items()))
    except (OSError, ValueError, AttributeError, StopIteration) as error:
        raise InputError(f"{listing} names no people; the proof needs at least one") from error
    return read_image(folder / name), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def limit_boxes(
    boxes: Float64, from_wh: tuple[int, ...], to_wh: tuple[int, int]
) -> NDArray[np.float32]:
    """The people of a photo in a frame of another size, and boxes at the limits."""
    width, height = to_wh
    scale = np.array([width / from_wh[0], height / from_wh[1]] * 2)
    limits = [
        [width / 2, height / 2, width / 2 + 3, height / 2 + 5],  # tiny
        [-width, -height, 2 * width, 2 * height],  # huge
        [-0.2 * width, 0.5 * height, 0.2 * width, 1.3 * height],  # across the border
        [2 * width, 2 * height, 3 * width, 3 * height],  # outside
    ]
    return np.concatenate([boxes * scale, limits]).astype(np.float32)


class _FrameRun(NamedTuple):
    """The people of one frame: outputs of both graphs, in frame pixels, and what else is judged."""

    expected: Values  # of the core, moved into the frame
    got: Values
    step: NDArray[Any]  # (N, 1) frame pixels a crop pixel
    grey: NDArray[Any]  # (N,) largest difference of the sampled crops
    flips: NDArray[np.bool_]  # (N, K, 2) whether a bin flipped


def _drift(runs: Sequence[_FrameRun], provider: str, min_confidence: float) -> FrameDrift:
    """The report of all frames together."""
    expected = joined([run.expected for run in runs])
    got = joined([run.got for run in runs], list(expected))
    step, grey, flips = (
        np.concatenate(parts)
        for parts in zip(*((run.step, run.grey, run.flips) for run in runs), strict=True)
    )
    compared = expected["confidence"] >= min_confidence
    compared &= ~np.asarray(flips.any(axis=(1, 2)))[:, None]
    joints = compare_joints(expected, got, compared)
    crop_px = (keypoint_distances(expected, got) / step)[compared]
    return FrameDrift(
        frames=len(SIZES_WH),
        people=joints.crops,
        joints=joints.joints,
        max_px=joints.max_px,
        max_crop_px=float(crop_px.max()) if joints.joints else math.nan,
        confidence_max=joints.confidence_max,
        grey_max=float(grey.max()),
        bin_flips=int(flips.sum()),
        coordinates=flips.size,
        provider=provider,
        spread_max=joints.spread_max,
    )


def _run_both(
    spec: ModelSpec,
    whole: Backend,
    core: Backend,
    frame: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    names: Sequence[str],
) -> _FrameRun:
    """The frame-in graph on one frame, and its core on float64 crops of the same boxes."""
    crops = sample_crops(frame, boxes, spec.size_wh, spec.box_scale, spec.antialias, spec.geometry)
    in_crops = core.run({CORE_INPUT: crops.astype(np.float32)})
    got = whole.run({"frame": frame, "boxes": boxes})
    onto = crop_transforms(boxes, spec.size_wh, spec.box_scale, geometry=spec.geometry)
    back = invert_transforms(onto)
    step = back[:, :1, 0]
    expected: dict[str, NDArray[Any]] = {
        "keypoints": transform_points(back, in_crops["keypoints"]),
        "confidence": in_crops["confidence"],
    }
    if "covariance" in in_crops:
        expected["covariance"] = in_crops["covariance"] * step[..., None, None] ** 2
    if names:
        winners = [[o[name].argmax(axis=2) for name in names] for o in (got, in_crops)]
        flips = np.stack(winners[0], axis=-1) != np.stack(winners[1], axis=-1)
    else:  # a graph without bins: its coarse poses tell
        moved = got["coarse"] - transform_points(back, in_crops["coarse"])
        flips = np.abs(moved) / step[..., None] > FLIP_PX
    grey = np.abs(got[CORE_INPUT] - crops).max(axis=(1, 2, 3))
    return _FrameRun(expected, got, step, grey, flips)
