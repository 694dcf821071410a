"""One model in two runtimes, where more than crops goes in: whole frames, and finders.

What takes crops alone is `compare_runtimes`' work. Needs no PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.rules import read_finder_spec
from cfpose_export.proof.compare import (
    Agreement,
    Floats,
    JointDifferences,
    Values,
    agreement_of,
    joined,
)
from cfpose_export.proof.frame import SIZES_WH, first_photo, limit_boxes
from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.boxes import letterbox
from cfpose_sdk.crops import crop_transforms, invert_transforms
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import demo_photos, write_file
from cfpose_sdk.media.image import Image, read_image
from cfpose_sdk.spec import FinderSpec, ModelSpec

COMPARED = 10  # best candidates of a photo; the many below score next to nothing
FLOOR = 0.5  # score of the reference from which a candidate is compared; finders ask for more
TALL_WH = (720, 1280)  # beside SIZES_WH, which lie


@dataclass(frozen=True)
class FinderBound:
    """How far the boxes of a finder may move."""

    px: float  # letterbox pixels, of any side of a box
    score: float
    far: float = 0.0  # share of the candidates that may move by more


FULL_FINDER = FinderBound(0.05, 1e-3)
LOW_FINDERS: Mapping[str, FinderBound] = {
    "fp16": FinderBound(1.0, 0.01),
    # where two candidates of a person tie, any rounding may choose the other
    "bf16": FinderBound(2.0, 0.02, far=0.05),
}
FRAME_FINDER = FinderBound(1.0, 0.02)  # whose letterbox may be off by a grey level


@dataclass(frozen=True)
class FinderAgreement:
    """How far the best candidates of all photos are apart."""

    reference: str  # providers
    candidate: str
    photos: int
    candidates: int  # compared
    max_px: float  # letterbox pixels, of any box side
    score_max: float
    px: tuple[float, ...] = ()  # of each candidate, largest first
    nonfinite: int = 0  # numbers of the candidate

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def compare_finders(
    reference: Backend,
    candidate: Backend,
    spec: FinderSpec,
    folder: Path | None,
    floor: float = FLOOR,
) -> FinderAgreement:
    """Run both on the photos of a folder (None: the demo's); each takes letterboxes or frames.

    Compared are candidates that score `floor` in the reference.
    """
    px: list[Floats] = [np.zeros(0)]
    score: list[Floats] = [np.zeros(0)]
    paths, nonfinite = photo_paths(folder), 0
    for path in paths:
        image = read_image(path)
        ours, theirs = (run_finder(backend, spec, image) for backend in (reference, candidate))
        nonfinite += sum(int((~np.isfinite(value)).sum()) for value in theirs)
        sure = ours[1] >= floor
        far, gap = nearest_gaps(ours[0][sure], ours[1][sure], *theirs)
        px.append(far)
        score.append(gap)
    best = JointDifferences(len(paths), np.concatenate(px), np.concatenate(score))
    return FinderAgreement(
        reference.provider, candidate.provider, len(paths), best.joints,
        best.max_px, best.confidence_max,
        tuple(round(float(px), 4) for px in np.sort(best.px)[::-1]), nonfinite,
    )  # fmt: skip


def judge_finders(agreement: FinderAgreement, bound: FinderBound) -> None:
    """Raise ExportError unless candidates were compared and keep to the bound; NaN does not."""
    if agreement.candidates == 0:
        raise ExportError(
            f"no candidate on {agreement.photos} photos scores enough to be compared, so the "
            f"comparison says nothing; give photos of people (--photos)"
        )
    near = sum(px <= bound.px for px in agreement.px)  # NaN is not
    far = len(agreement.px) - near
    if agreement.nonfinite or not (
        far <= bound.far * agreement.candidates and agreement.score_max <= bound.score
    ):
        raise ExportError(
            f"{agreement.candidate} is not {agreement.reference}: {far} of {agreement.candidates} "
            f"boxes differ by more than {bound.px:g} letterbox px (allowed "
            f"{int(bound.far * agreement.candidates)}; the most {agreement.max_px:.3g}), scores by "
            f"{agreement.score_max:.3g} (allowed {bound.score:g}), and {agreement.nonfinite} "
            f"numbers are not finite"
        )


def write_frame_finder(path: Path, model: onnx.ModelProto, folder: Path | None) -> FinderAgreement:
    """Give a finder whole frames, compare it with itself on OpenCV's letterboxes, and write it.

    Raises ExportError, and leaves `path` as it was, where boxes that it finds move by more than
    FRAME_FINDER.
    """
    framed, spec = frame_finder(model), read_finder_spec(model)
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / name for name in ("letterboxes.onnx", "frames.onnx")]
        for graph, written in zip((model, framed), paths, strict=True):
            onnx.save_model(graph, written)
        with (
            open_backend(paths[0], device="cpu") as ours,
            open_backend(paths[1], device="cpu") as theirs,
        ):
            agreement = compare_finders(ours, theirs, spec, folder, spec.threshold)
    judge_finders(agreement, FRAME_FINDER)
    write_file(path, framed.SerializeToString(deterministic=True))
    return agreement


def run_finder(
    backend: Backend, spec: FinderSpec, image: Image
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (M, 4) in letterbox pixels and scores (M,) of one photo."""
    if backend.inputs == ("frame",):
        found = backend.run({"frame": image})
    else:
        canvas, _ = letterbox(image, spec.size_wh, spec.pad_value)
        found = backend.run({"images": canvas[None]})
    return found["boxes"][0], found["scores"][0]


def nearest_gaps(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    other_boxes: NDArray[np.float32],
    other_scores: NDArray[np.float32],
) -> tuple[Floats, Floats]:
    """Box and score differences of the best candidates, (M,) each, to the nearest of the others.

    The nearest, because candidates of all but equal score may change places.
    """
    best, best_scores = boxes[:COMPARED], scores[:COMPARED]
    if len(other_boxes) == 0 or len(best) == 0:
        return np.full(len(best), math.inf), np.full(len(best), math.inf)
    gaps = np.abs(best[:, None] - other_boxes[None]).max(axis=2)
    nearest = gaps.argmin(axis=1)
    return gaps.min(axis=1), np.abs(best_scores - other_scores[nearest])


def photo_paths(folder: Path | None) -> list[Path]:
    """The photos of a folder; None: the demo's. Raises InputError where there is none."""
    folder = demo_photos() if folder is None else folder
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise InputError(f"{folder} holds no .jpg or .png photo; the proof needs at least one")
    return paths


def compare_frames(
    reference: Backend,
    candidate: Backend,
    spec: ModelSpec,
    min_confidence: float,
    folder: Path | None,
) -> Agreement:
    """Run two models of frames on one photo of people in several sizes, lying and standing.

    Distances are in crop pixels. Boxes are the photo's, and tiny, huge, cut and outside ones; one
    run has none.
    """
    photo, boxes = first_photo(demo_photos() if folder is None else folder)
    runs: list[tuple[Values, Values]] = []
    for size_wh in (*SIZES_WH, TALL_WH):
        frame = np.asarray(cv2.resize(photo, size_wh), np.uint8)
        scaled = limit_boxes(boxes, photo.shape[1::-1], size_wh)
        maps = crop_transforms(scaled, spec.size_wh, spec.box_scale, geometry=spec.geometry)
        step = invert_transforms(maps)[:, 0, 0]
        for chosen in (slice(0, 0), slice(0, 1), slice(1, None)):
            feeds: dict[str, NDArray[Any]] = {"frame": frame, "boxes": scaled[chosen]}
            size = candidate.max_batch or len(scaled)
            ours, theirs = (_in_chunks(backend, feeds, size) for backend in (reference, candidate))
            runs.append((_to_crops(ours, step[chosen]), _to_crops(theirs, step[chosen])))
    expected, got = (joined([run[side] for run in runs]) for side in (0, 1))
    return agreement_of(reference, candidate, expected, got, min_confidence)


def _in_chunks(backend: Backend, feeds: dict[str, NDArray[Any]], size: int) -> Values:
    starts = range(0, max(1, len(feeds["boxes"])), size)
    parts = [
        backend.run({**feeds, "boxes": feeds["boxes"][first : first + size]}) for first in starts
    ]
    return joined(parts)


def _to_crops(outputs: Values, step: NDArray[np.float64]) -> Values:
    """Lengths in frame pixels → in crop pixels; `step` (N,) frame pixels a crop pixel."""
    scaled = dict(outputs)
    for name, power in (("keypoints", 1), ("coarse", 1), ("covariance", 2)):
        if name in scaled:
            by = step.reshape(-1, *[1] * (scaled[name].ndim - 1))
            scaled[name] = scaled[name] / by**power
    return scaled
