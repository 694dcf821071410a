"""The interface of a pose model under test, its facts, and its poses as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17, Skeleton


class PoseModel(Protocol):
    """A pose model under test: cfpose's PoseEstimator, or an adapter of a peer."""

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        """One pose for each given box, (N, 4) or (N, 5) with scores; None: the model detects."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known of a model once it is open."""

    name: str
    skeleton: Skeleton = COCO_17
    precision: str | None = None
    provider: str | None = None
    size_wh: tuple[int, int] | None = None  # of the crop, in pixels
    versions: Mapping[str, str] = field(default_factory=dict)  # in a peer's own environment
    is_peer: bool = False
    one_stage: bool = False  # detects the people itself, whatever boxes there are
    needs_boxes: bool = False  # cannot open cfpose's detectors
    flips_inside: bool = False  # its graph averages each crop with its mirror image
    calibration: tuple[float, float] = (1.0, 0.0)  # of its confidence, see ModelSpec


def plain_poses(poses: Poses) -> dict[str, Any]:
    """The poses of one photo as JSON values; `poses_of` reads them back."""
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
