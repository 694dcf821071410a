"""Predict all photos of a data set with one model; keep predictions and times on disk.

The `Store` lets an interrupted run go on: one file a model and kind of boxes, named by a hash of
all that decides the predictions: the bytes of the model's files, the detector's and the boxes,
the device, threads, flip test and photos' folder. A line a photo; a last line that was cut off is
dropped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cfpose_bench.accuracy.oks import OKS_NMS, oks_nms, padded_area, pose_scores
from cfpose_bench.data.dataset import Boxes, KeypointDataset, Photos
from cfpose_bench.data.json_lines import JsonLines, read_whole_lines
from cfpose_bench.models.base import PoseModel, plain_poses, poses_of
from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError, ImageError, InputError
from cfpose_sdk.files import digest_of
from cfpose_sdk.keypoints import raw_score
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import Skeleton


class Store:
    """The predictions of one model under one kind of boxes. Raises InputError when not writable."""

    def __init__(self, folder: Path, key: Mapping[str, Any], skeleton: Skeleton) -> None:
        self.path = folder / f"{digest_of(key)[:24]}.jsonl"
        try:
            lines = read_whole_lines(self.path)
            self.done = _read_photos(lines, skeleton)
            self._file = JsonLines(self.path, lines)
            if not lines:
                self._file.add({"key": dict(key)})
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error

    def add(self, image_id: int, turn: int, poses: Poses | None) -> None:
        """Keep one photo's poses; None says that the photo cannot be read."""
        self.done[image_id] = (turn, poses)
        plain = None if poses is None else plain_poses(poses)
        self._file.add({"photo": image_id, "turn": turn, "poses": plain})

    def close(self) -> None:
        """Close the file; it stays for the next run."""
        self._file.close()


def _read_photos(lines: Sequence[bytes], skeleton: Skeleton) -> dict[int, tuple[int, Poses | None]]:
    """image id -> the round it ran in, and its poses."""
    done: dict[int, tuple[int, Poses | None]] = {}
    for record in map(json.loads, lines):
        if "photo" in record:
            plain = record["poses"]
            poses = None if plain is None else poses_of(plain, skeleton)
            done[record["photo"]] = (record["turn"], poses)
    return done


@dataclass(frozen=True)
class Predictions:
    """COCO keypoint results of all photos, after OKS-NMS, and what happened on the way."""

    results: tuple[dict[str, Any], ...]
    speed_ms: tuple[Mapping[str, float], ...]  # stage -> ms, one of each photo that was read
    unreadable: tuple[str, ...]  # photos that are damaged; they count as photos without poses


def predict_dataset(
    model: PoseModel,
    dataset: KeypointDataset,
    skeleton: Skeleton,
    *,
    boxes: Boxes | None = None,
    joint_threshold: float | None = None,
    oks_threshold: float | None = OKS_NMS,
    warmup: int = 3,
    label: str = "",
) -> Predictions:
    """Run the model on every photo, one at a time, and join its poses.

    `boxes` holds (N, 4) or, with a score, (N, 5) person boxes by photo, and none for photos that it
    lacks; without it the model detects the people. The first photo runs `warmup` times unmeasured.
    The other options are those of `join_photos`.
    """
    for image_id in [next(iter(dataset.photos))] * warmup:
        predict_photo(model, dataset, image_id, boxes)
    bar = tqdm(dataset.photos, desc=label, unit="photo", disable=not watched())
    photos = {image_id: predict_photo(model, dataset, image_id, boxes) for image_id in bar}
    return join_photos(
        photos, dataset, skeleton, joint_threshold=joint_threshold, oks_threshold=oks_threshold
    )


def join_photos(
    photos: Photos,
    dataset: KeypointDataset,
    skeleton: Skeleton,
    *,
    joint_threshold: float | None = None,
    oks_threshold: float | None = OKS_NMS,
    padded_to: tuple[int, int] | None = None,
    calibration: tuple[float, float] = (1.0, 0.0),
) -> Predictions:
    """COCO results of the poses of many photos.

    A pose's score is its box's times the mean of its joints' above `joint_threshold` (None: of all
    joints); `calibration` is taken off the confidence first, see `raw_score`. `oks_threshold` None
    keeps repeated poses; `padded_to`, a crop's (width, height), takes the area of the padded box
    for OKS-NMS instead of the box's own. A damaged photo is reported and counts as one without
    poses.
    """
    results: list[dict[str, Any]] = []
    unreadable = [dataset.photos[i].name for i, poses in photos.items() if poses is None]
    for image_id, poses in photos.items():
        if poses is None:
            continue
        entries = poses.to_coco(image_id)
        if joint_threshold is not None or calibration != (1.0, 0.0):
            joints = raw_score(poses.confidence.astype(np.float64), calibration)
            scores = pose_scores(poses.box_scores, joints, joint_threshold)
            entries = [{**r, "score": float(s)} for r, s in zip(entries, scores, strict=True)]
        if oks_threshold is not None:
            entries = suppress_repeats(entries, skeleton, oks_threshold, padded_to)
        results += entries
    for name in unreadable:
        print(f"cfpose-bench: {name} cannot be read; it counts without poses", file=sys.stderr)
    speed = tuple(dict(poses.speed_ms) for poses in photos.values() if poses is not None)
    return Predictions(tuple(results), speed, tuple(unreadable))


def suppress_repeats(
    results: list[dict[str, Any]],
    skeleton: Skeleton,
    threshold: float,
    padded_to: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """OKS-NMS of one photo's COCO results, with the area of each result's (padded) person box."""
    if len(results) < 2:
        return results
    points = np.array([r["keypoints"] for r in results]).reshape(len(results), -1, 3)[..., :2]
    sides = np.array([r["bbox"][2:] for r in results], dtype=np.float64)
    areas = sides.prod(axis=1) if padded_to is None else padded_area(sides, padded_to)
    scores = [r["score"] for r in results]
    return [results[i] for i in oks_nms(points, scores, areas, skeleton.oks_sigmas, threshold)]


def predict_photo(
    model: PoseModel, dataset: KeypointDataset, image_id: int, boxes: Boxes | None
) -> Poses | None:
    """Poses of one photo, without the photo; None when it cannot be read.

    Raises DatasetError when there is not one pose for each given box.
    """
    path = dataset.photos[image_id]
    try:
        if boxes is None:
            return replace(model.predict(path), image=None)
        given = boxes.get(image_id, np.zeros((0, 4)))
        poses = replace(model.predict(path, boxes=given), image=None)
    except ImageError:
        return None
    if len(poses) != len(given):
        raise DatasetError(
            f"{path.name}: the model gave {len(poses)} poses for {len(given)} boxes, expected one "
            f"a box"
        )
    return poses
