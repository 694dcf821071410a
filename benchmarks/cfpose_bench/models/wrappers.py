"""Wrappers of a model: the flip test, and a detector that returns exactly N boxes.

SimCC's own flip test averages the vectors before decoding. `cfpose-export onnx --flip-test` puts it
into the graph, and such a graph is not flipped here. Another graph gives keypoints only, so the two
sets of coordinates and confidences are averaged.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.models.base import PoseModel
from cfpose_sdk.detectors.base import Detections, OpenDetector, as_detections
from cfpose_sdk.errors import InputError
from cfpose_sdk.media.image import Image, read_image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import Skeleton


class CountedFinder:
    """Runs an opened detector; with `people` set, its boxes are repeated or cut to that many.

    The boxes are taken by falling score, and from the first again when they are too few. It owns
    and closes the detector. Raises InputError when people are to be repeated and none are detected.
    """

    def __init__(self, finder: OpenDetector) -> None:
        self._finder = finder
        self.people: int | None = None  # None: as many as are detected

    def __call__(self, image: Image) -> Detections:
        """People in a BGR image."""
        detections = as_detections(self._finder(image))
        if self.people is None:
            return detections
        if len(detections) == 0:
            raise InputError("the finder found nobody to repeat; take another photo")
        boxes = np.resize(detections.boxes, (self.people, 4))
        return Detections(boxes, np.resize(detections.scores, self.people))

    def close(self) -> None:
        """Free the detector."""
        self._finder.close()


class FlipTested:
    """Runs a model on the photo and its mirror image; its times are the sums of both runs."""

    def __init__(self, model: PoseModel) -> None:
        self.model = model

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        """As the model's own; pixel x of the photo is W − 1 − x of its mirror image."""
        start = time.perf_counter()
        frame = read_image(image)
        read_ms = (time.perf_counter() - start) * 1e3
        here = self.model.predict(frame, boxes=boxes)
        width = frame.shape[1]
        people = as_detections(np.column_stack([here.boxes, here.box_scores]))
        turned = people.boxes.copy()
        turned[:, [0, 2]] = width - 1 - people.boxes[:, [2, 0]]
        mirrored = np.ascontiguousarray(frame[:, ::-1])
        there = self.model.predict(mirrored, boxes=np.column_stack([turned, people.scores]))
        xy, confidence = unmirror(there.xy, there.confidence, here.skeleton, width)
        speed = {s: ms + there.speed_ms.get(s, 0.0) for s, ms in here.speed_ms.items()}
        speed["read"] = read_ms
        speed["total"] = speed.get("total", 0.0) + read_ms
        return Poses(
            xy=((here.xy + xy) / 2).astype(np.float32),
            confidence=((here.confidence + confidence) / 2).astype(np.float32),
            boxes=here.boxes,
            box_scores=here.box_scores,
            skeleton=here.skeleton,
            image_size_wh=here.image_size_wh,
            speed_ms=speed,
        )


def unmirror(
    xy: NDArray[np.float32], confidence: NDArray[np.float32], skeleton: Skeleton, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, K, 2) joints of a mirrored photo → of the photo, left and right swapped back."""
    order = np.arange(len(skeleton))
    for left, right in skeleton.flip_pairs:
        order[[left, right]] = right, left
    back = xy[:, order].copy()
    back[..., 0] = width - 1 - back[..., 0]
    return back, confidence[:, order]
