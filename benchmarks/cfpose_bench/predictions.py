"""A pose model over a dataset: keypoint results and the time that each photo took."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cfpose_bench.dataset import KeypointDataset
from cfpose_bench.oks import OKS_NMS, oks_nms, padded_area
from cfpose_bench.scores import pose_scores
from cfpose_sdk.errors import DatasetError, ImageError
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import Skeleton

Boxes = Mapping[int, NDArray[np.float64]]
Photos = Mapping[int, Poses | None]  # image id -> its poses; None where the photo is damaged


class PoseModel(Protocol):
    """What the harness measures: cfpose's PoseEstimator, or an adapter of a peer."""

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        """One pose for each given box, (N, 4) or (N, 5) with scores; None: the model finds them."""
        ...


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
    """Run the model on every photo, one at a time, and join what it found.

    `boxes` holds (N, 4) or, with a score, (N, 5) person boxes by photo, and none for photos that it
    lacks; without it the model finds the people. The first photo runs `warmup` times unmeasured.
    The other options are those of `join_photos`.
    """
    for image_id in [next(iter(dataset.photos))] * warmup:
        predict_photo(model, dataset, image_id, boxes)
    # disable=None: a progress bar on a terminal, nothing when piped
    bar = tqdm(dataset.photos, desc=label, unit="photo", disable=None)
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
) -> Predictions:
    """COCO results of the poses of many photos.

    A pose's score is its box's times the mean of its joints' above `joint_threshold` (None: of all
    joints). `oks_threshold` None keeps repeated poses; `padded_to`, a crop's (width, height), takes
    the area of the padded box for OKS-NMS instead of the box's own. A damaged photo is reported and
    counts as one without poses.
    """
    results: list[dict[str, Any]] = []
    unreadable = [dataset.photos[i].name for i, poses in photos.items() if poses is None]
    for image_id, poses in photos.items():
        if poses is None:
            continue
        found = poses.to_coco(image_id)
        if joint_threshold is not None:
            scores = pose_scores(poses.box_scores, poses.confidence, joint_threshold)
            found = [{**r, "score": float(s)} for r, s in zip(found, scores, strict=True)]
        if oks_threshold is not None:
            found = suppress_repeats(found, skeleton, oks_threshold, padded_to)
        results += found
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


def plain_poses(poses: Poses) -> dict[str, Any]:
    """What is measured of the poses of one photo, as JSON values; `poses_of` reads them back."""
    return {
        "xy": poses.xy.tolist(),
        "confidence": poses.confidence.tolist(),
        "boxes": poses.boxes.tolist(),
        "box_scores": poses.box_scores.tolist(),
        "covariance": None if poses.covariance is None else poses.covariance.tolist(),
        "size_wh": list(poses.image_size_wh),
        "speed_ms": dict(poses.speed_ms),
    }


def poses_of(record: Mapping[str, Any], skeleton: Skeleton) -> Poses:
    """Poses of a record as `plain_poses` writes it; `covariance` may be missing.

    Raises ValueError when the arrays do not fit each other.
    """
    people, joints, covariance = len(record["boxes"]), len(skeleton), record.get("covariance")
    return Poses(
        xy=np.array(record["xy"], dtype=np.float32).reshape(people, joints, 2),
        confidence=np.array(record["confidence"], dtype=np.float32).reshape(people, joints),
        boxes=np.array(record["boxes"], dtype=np.float32).reshape(people, 4),
        box_scores=np.array(record["box_scores"], dtype=np.float32),
        skeleton=skeleton,
        image_size_wh=(record["size_wh"][0], record["size_wh"][1]),
        speed_ms=record["speed_ms"],
        covariance=(
            None
            if covariance is None
            else np.array(covariance, dtype=np.float32).reshape(people, joints, 2, 2)
        ),
    )
