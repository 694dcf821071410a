"""Person boxes of the finder's photos: annotated ones, and a labelling detector's for the rest.

The labelling detector is YOLOX (Ge et al., 2021) exported with raw outputs: BGR 0-255 letterboxed
to 416 x 416, output (1, 3549, 85) on strides 8, 16 and 32.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cfpose_bench.data.annotations import is_counted, read_annotations
from cfpose_sdk.arrays import Float64
from cfpose_sdk.boxes import iou_matrix
from cfpose_sdk.commands import watched
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.detectors.base import OpenDetector
from cfpose_sdk.errors import ArtifactError, DatasetError
from cfpose_sdk.files import sha256, write_file
from cfpose_training.config import FinderConfig, PhotoSource
from cfpose_training.data.photo_cache import PHOTO_SUFFIXES, PhotoCache
from cfpose_training.data.photo_sizes import SizeWh

LABELLER_SIZE = 416
LEAST_SCORE = 0.05  # of the boxes that are kept in the cache
NMS_IOU = 0.45
SAME_PERSON_IOU = 0.5  # a detector box that overlaps ground truth this much adds nothing


@dataclass(frozen=True)
class LabelledPhoto:
    """Boxes (N, 4) xyxy in photo pixels; the loss leaves out the regions `ignored`."""

    path: Path
    people: Float64
    ignored: Float64


@dataclass(frozen=True)
class PhotoTruth:
    """A photo and its annotated boxes; none where it has no annotations."""

    path: Path
    people: Float64  # (N, 4) xyxy, all but crowds
    crowds: Float64  # (M, 4)
    counted: Float64  # (P, 4) those of `people` with a labelled keypoint
    size_wh: SizeWh | None = None  # as annotated


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
            size_wh=(image["width"], image["height"])
            if {"width", "height"} <= image.keys()
            else None,
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

    Annotated boxes stay. A detection that overlaps none of them is a person when its score is
    `label_score` or more, and a region to ignore from `ignore_score` on. Detections are kept in
    `folder`.
    """
    detections = _detect_all([photo.path for photo in photos], cache, labeller, folder)
    labelled = []
    for photo, scored in zip(photos, detections, strict=True):
        annotated = np.concatenate([photo.people, photo.crowds])
        if len(annotated) and len(scored):
            scored = scored[iou_matrix(scored[:, :4], annotated).max(axis=1) < SAME_PERSON_IOU]
        is_person = scored[:, 4] >= config.label_score
        is_ignored = ~is_person & (scored[:, 4] >= config.ignore_score)
        labelled.append(
            LabelledPhoto(
                photo.path,
                people=np.concatenate([photo.people, scored[is_person, :4]]),
                ignored=np.concatenate([photo.crowds, scored[is_ignored, :4]]),
            )
        )
    return labelled


def _detect_all(
    paths: Sequence[Path], cache: PhotoCache, labeller: Path, folder: Path
) -> list[Float64]:
    """(N, 5) boxes and scores of every photo; kept in `folder`, where the next call reads them."""
    try:
        content = labeller.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read the labelling detector {labeller}: {error}") from error
    key = sha256(content + "\n".join(map(str, paths)).encode())[:16]
    kept = folder / f"detections-{key}.json"
    if not kept.is_file():
        rows: list[list[list[float]]] = []
        with contextlib.closing(open_labeller(labeller)) as detector:
            for index in tqdm(
                range(len(paths)), desc="labelling", unit="photo", disable=not watched()
            ):
                detections = detector(cache[index])
                scored = np.column_stack([detections.boxes, detections.scores])
                rows.append(scored.tolist())
        write_file(kept, json.dumps(rows))
    return [np.array(r, dtype=np.float64).reshape(-1, 5) for r in json.loads(kept.read_text())]


def open_labeller(labeller: Path) -> OpenDetector:
    """The labelling detector: YOLOX as exported, boxes from a low score on.

    `label_photos` decides which of them count. Raises ArtifactError when the file is no such graph.
    """
    options = DetectorOptions(
        threshold=LEAST_SCORE,
        nms_iou=NMS_IOU,
        layout="yolox",
        person_class=0,
        size_wh=(LABELLER_SIZE, LABELLER_SIZE),
    )
    return open_detector(labeller, options, device="cpu")


def _xyxy(people: Sequence[dict[str, Any]]) -> Float64:
    boxes = np.array([person["bbox"] for person in people], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _is_held_out(number: int, source: PhotoSource) -> bool:
    return bool(source.holdout_every) and number % source.holdout_every == 0
