"""A pose model over a dataset: keypoint results and the time that each photo took."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cfpose_bench.dataset import KeypointDataset
from cfpose_bench.oks import OKS_NMS, oks_nms
from cfpose_bench.scores import pose_scores
from cfpose_sdk.errors import DatasetError, ImageError
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import Skeleton

Boxes = Mapping[int, NDArray[np.float64]]


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
    """Run the model on every photo, one at a time.

    `boxes` holds (N, 4) or, with a score, (N, 5) person boxes by photo, and none for photos that it
    lacks; without it the model finds the people. A pose's score is its box's times the mean of its
    joints' above `joint_threshold` (None: of all joints). `oks_threshold` None keeps repeated
    poses. The first photo runs `warmup` times unmeasured. A damaged photo is reported and counts
    as one without poses.
    """
    results: list[dict[str, Any]] = []
    speed: list[Mapping[str, float]] = []
    unreadable: list[str] = []
    for image_id in [next(iter(dataset.photos))] * warmup:
        _predict(model, dataset, image_id, boxes)
    # disable=None: a progress bar on a terminal, nothing when piped
    for image_id, path in tqdm(dataset.photos.items(), desc=label, unit="photo", disable=None):
        poses = _predict(model, dataset, image_id, boxes)
        if poses is None:
            unreadable.append(path.name)
            continue
        found = poses.to_coco(image_id)
        if joint_threshold is not None:
            scores = pose_scores(poses.box_scores, poses.confidence, joint_threshold)
            found = [{**r, "score": float(s)} for r, s in zip(found, scores, strict=True)]
        if oks_threshold is not None:
            found = suppress_repeats(found, skeleton, oks_threshold)
        results += found
        speed.append(dict(poses.speed_ms))
    for name in unreadable:
        print(f"cfpose-bench: {name} cannot be read; it counts without poses", file=sys.stderr)
    return Predictions(tuple(results), tuple(speed), tuple(unreadable))


def suppress_repeats(
    results: list[dict[str, Any]], skeleton: Skeleton, threshold: float
) -> list[dict[str, Any]]:
    """OKS-NMS of one photo's COCO results, with the area of each result's person box."""
    if len(results) < 2:
        return results
    points = np.array([r["keypoints"] for r in results]).reshape(len(results), -1, 3)[..., :2]
    areas = [r["bbox"][2] * r["bbox"][3] for r in results]
    scores = [r["score"] for r in results]
    return [results[i] for i in oks_nms(points, scores, areas, skeleton.oks_sigmas, threshold)]


def _predict(
    model: PoseModel, dataset: KeypointDataset, image_id: int, boxes: Boxes | None
) -> Poses | None:
    """Poses of one photo; None when the photo cannot be read."""
    path = dataset.photos[image_id]
    try:
        if boxes is None:
            return model.predict(path)
        given = boxes.get(image_id, np.zeros((0, 4)))
        poses = model.predict(path, boxes=given)
    except ImageError:
        return None
    if len(poses) != len(given):
        raise DatasetError(
            f"{path.name}: the model gave {len(poses)} poses for {len(given)} boxes, expected one "
            f"a box"
        )
    return poses
