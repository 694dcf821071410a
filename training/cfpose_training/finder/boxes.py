"""Person boxes for photos: ground truth where there is any, a labelling detector for the rest.

The labelling detector is YOLOX (Ge et al., 2021) exported with raw outputs: BGR 0-255 letterboxed
to 416 x 416, output (1, 3549, 85) on strides 8, 16 and 32.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cfpose_bench.data.annotations import is_counted, read_annotations
from cfpose_sdk.arrays import Float64
from cfpose_sdk.backends import open_backend
from cfpose_sdk.boxes import iou_matrix, letterbox, nms
from cfpose_sdk.errors import ArtifactError, DatasetError
from cfpose_training.config import FinderConfig, PhotoSource
from cfpose_training.data.photo_cache import PhotoCache

LABELLER_SIZE = 416
LABELLER_STRIDES = (8, 16, 32)
LABELLER_PAD = 114
NMS_IOU = 0.45
SAME_PERSON_IOU = 0.5  # a detector box that overlaps ground truth this much adds nothing
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class LabelledPhoto:
    """Boxes (N, 4) xyxy in photo pixels; `ignored` are regions that neither reward nor punish."""

    path: Path
    people: Float64
    ignored: Float64


@dataclass(frozen=True)
class PhotoTruth:
    """A photo and its annotated boxes; none where nobody has labelled it."""

    path: Path
    people: Float64  # (N, 4) xyxy, everybody
    crowds: Float64  # (M, 4)
    counted: Float64  # (P, 4) those of `people` with a labelled keypoint


def list_photos(source: PhotoSource, root: Path, *, held_out: bool = False) -> list[PhotoTruth]:
    """Photos of a source with their annotated boxes, in a fixed order.

    Raises DatasetError when the folder or the annotation file does not fit.
    """
    folder = root / source.images
    if source.annotations:
        return _annotated_photos(source, root, folder, held_out)
    paths = sorted(p for p in folder.glob(source.files) if p.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise DatasetError(f"{folder} holds no photos {source.files} ({', '.join(PHOTO_SUFFIXES)})")
    none = np.zeros((0, 4))
    return [
        PhotoTruth(path, none, none, none)
        for index, path in enumerate(paths)
        if _is_held_out(index, source) == held_out
    ]


def _annotated_photos(
    source: PhotoSource, root: Path, folder: Path, held_out: bool
) -> list[PhotoTruth]:
    record = read_annotations(root / source.annotations)
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in record["images"]}
    for person in record["annotations"]:
        by_image[person["image_id"]].append(person)
    return [
        PhotoTruth(
            folder / image["file_name"],
            people=_xyxy([p for p in by_image[image["id"]] if not p["iscrowd"]]),
            crowds=_xyxy([p for p in by_image[image["id"]] if p["iscrowd"]]),
            counted=_xyxy([p for p in by_image[image["id"]] if is_counted(p)]),
        )
        for image in record["images"]
        if _is_held_out(image["id"], source) == held_out
        and fnmatchcase(image["file_name"], source.files)
    ]


def label_photos(
    photos: Sequence[PhotoTruth],
    cache: PhotoCache,
    labeller: Path,
    config: FinderConfig,
    folder: Path,
) -> list[LabelledPhoto]:
    """Merge ground truth with the labelling detector's boxes.

    Ground truth stands. A detector box away from it counts as a person from `label_score` on, and
    between `ignore_score` and that as a region to ignore. Detections are kept in `folder`.
    """
    detections = _detect_all([photo.path for photo in photos], cache, labeller, folder)
    labelled = []
    for photo, found in zip(photos, detections, strict=True):
        known = np.concatenate([photo.people, photo.crowds])
        if len(known) and len(found):
            found = found[iou_matrix(found[:, :4], known).max(axis=1) < SAME_PERSON_IOU]
        sure = found[:, 4] >= config.label_score
        unsure = ~sure & (found[:, 4] >= config.ignore_score)
        labelled.append(
            LabelledPhoto(
                photo.path,
                people=np.concatenate([photo.people, found[sure, :4]]),
                ignored=np.concatenate([photo.crowds, found[unsure, :4]]),
            )
        )
    return labelled


def _detect_all(
    paths: Sequence[Path], cache: PhotoCache, labeller: Path, folder: Path
) -> list[Float64]:
    """(N, 5) detector boxes and scores of every photo; kept, so that the next call reads them."""
    try:
        digest = hashlib.sha256(labeller.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read the labelling detector {labeller}: {error}") from error
    digest.update("\n".join(map(str, paths)).encode())
    kept = folder / f"detections-{digest.hexdigest()[:16]}.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        with open_backend(labeller, device="cpu") as backend:
            for index in tqdm(range(len(paths)), desc="labelling", unit="photo", disable=None):
                canvas, scale = letterbox(
                    cache[index], (LABELLER_SIZE, LABELLER_SIZE), LABELLER_PAD
                )
                feed = canvas.transpose(2, 0, 1)[None].astype(np.float32)
                (raw,) = backend.run({backend.inputs[0]: feed}).values()
                rows.append(decode_yolox(raw[0], scale).tolist())
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(rows))
        os.replace(partial, kept)
    return [np.array(r, dtype=np.float64).reshape(-1, 5) for r in json.loads(kept.read_text())]


def decode_yolox(raw: NDArray[np.float32], scale: float, threshold: float = 0.05) -> Float64:
    """(3549, 85) raw rows → (N, 5) person boxes xyxy in photo pixels and scores, after NMS."""
    cells, strides = [], []
    for stride in LABELLER_STRIDES:
        side = LABELLER_SIZE // stride
        y, x = np.divmod(np.arange(side * side), side)
        cells.append(np.stack([x, y], axis=1))
        strides.append(np.full((side * side, 1), stride))
    grid, step = np.concatenate(cells), np.concatenate(strides)
    centre = (raw[:, :2] + grid) * step
    half = np.exp(raw[:, 2:4].astype(np.float64)) * step / 2
    scores = raw[:, 4].astype(np.float64) * raw[:, 5]
    chosen = scores >= threshold
    boxes = np.concatenate([centre - half, centre + half], axis=1)[chosen] / scale
    scores = scores[chosen]
    kept = nms(boxes, scores, NMS_IOU)
    return np.concatenate([boxes[kept], scores[kept, None]], axis=1)


def _xyxy(people: Sequence[dict[str, Any]]) -> Float64:
    boxes = np.array([person["bbox"] for person in people], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _is_held_out(number: int, source: PhotoSource) -> bool:
    return bool(source.holdout_every) and number % source.holdout_every == 0
