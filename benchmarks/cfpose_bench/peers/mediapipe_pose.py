"""Adapter of MediaPipe Pose for `serve.py`: BlazePose, whose model its wheel carries.

The file to name is the wheel's own, mediapipe/modules/pose_landmark/pose_landmark_full.tflite.
MediaPipe finds one person of a picture by itself, so it gets each box as a picture, a quarter wider
and taller; where it finds nobody there, the joints lie in the middle and score 0. Of its 33 points
COCO's 17 are taken, and `visibility` is their score. Runs where mediapipe is installed.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import mediapipe
import numpy as np

MARGIN = 1.25  # sides of the picture, in sides of the box
LEAST_DETECTION = 0.1  # a person is known to be there
COCO_17 = (0, 2, 5, 7, 8, *range(11, 17), *range(23, 29))  # among BlazePose's points


class Model:
    """One MediaPipe Pose graph, box by box."""

    def __init__(self, path: str) -> None:
        own = Path(mediapipe.__file__).parent / "modules" / "pose_landmark" / Path(path).name
        if not own.is_file() or own.read_bytes() != Path(path).read_bytes():
            raise ValueError(f"{path} is not a pose model of the installed mediapipe")
        complexity = ("lite", "full", "heavy").index(own.stem.rpartition("_")[2])
        self.pose = mediapipe.solutions.pose.Pose(
            static_image_mode=True,
            model_complexity=complexity,
            min_detection_confidence=LEAST_DETECTION,
        )
        self.facts = {
            "provider": "mediapipe, CPU",
            "versions": {"mediapipe": importlib.metadata.version("mediapipe")},
        }

    def predict(self, image: Any, boxes: Any) -> tuple[Any, Any]:
        """COCO's joints in (N, 4) boxes of a BGR photo."""
        found = [self._one(image, box) for box in np.asarray(boxes, dtype=float)]
        return np.stack([xy for xy, _ in found]), np.stack([score for _, score in found])

    def _one(self, image: Any, box: Any) -> tuple[Any, Any]:
        x1, y1, x2, y2 = picture_of(box, (image.shape[1], image.shape[0]))
        seen = self.pose.process(np.ascontiguousarray(image[y1:y2, x1:x2, ::-1])).pose_landmarks
        if seen is None:
            return np.tile((box[:2] + box[2:]) / 2, (17, 1)), np.zeros(17)
        points = [seen.landmark[index] for index in COCO_17]
        shares = np.array([[point.x, point.y] for point in points])
        # shares of the picture's sides, which begin half a pixel before its first pixel's middle
        xy = shares * (x2 - x1, y2 - y1) + (x1 - 0.5, y1 - 0.5)
        return xy, np.clip([point.visibility for point in points], 0, 1)


def picture_of(box: Any, size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """The widened box in whole pixels of the photo, at least one of each."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * MARGIN
    low = np.clip(np.floor(middle - half), 0, np.array(size_wh) - 1).astype(int)
    high = np.clip(np.ceil(middle + half), low + 1, size_wh).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def open_model(path: str, *, device: str, threads: int) -> Model:
    """Open MediaPipe's own model file; it chooses its threads itself, on the CPU."""
    return Model(path)
