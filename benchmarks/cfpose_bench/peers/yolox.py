"""YOLOX (ONNX, raw output) as a person detector: its boxes as a file for `--boxes`.

Input float32 [1, 3, S, S] BGR 0..255, letterboxed at the top left with 114; output [1, M, 85] =
(cx, cy, w, h, objectness, 80 classes), centres as offsets in cells of strides 8, 16, 32 and sizes
as logarithms of cells. Class 0 is a person.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends import open_backend
from cfpose_sdk.boxes import letterbox, nms
from cfpose_sdk.detectors.base import Detections
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.media.image import Image

STRIDES = (8, 16, 32)


class YoloX:
    """Finds people; a detector for PoseEstimator too. Raises ArtifactError for another graph."""

    def __init__(
        self,
        path: str | Path,
        *,
        threshold: float = 0.05,
        nms_iou: float = 0.45,
        side: int = 416,
        threads: int | None = None,
    ) -> None:
        self.threshold, self.nms_iou, self.side = threshold, nms_iou, side
        self.backend = open_backend(path, device="cpu", threads=threads)
        self.centres, self.strides = _cells(side)

    def close(self) -> None:
        """Free the model."""
        self.backend.close()

    def __call__(self, image: Image) -> Detections:
        """People by falling score (objectness × class), clipped to the frame."""
        canvas, scale = letterbox(image, (self.side, self.side), 114)
        (name,) = self.backend.inputs
        pixels = canvas.transpose(2, 0, 1)[None].astype(np.float32)
        raw = self.backend.run({name: np.ascontiguousarray(pixels)})[self.backend.outputs[0]][0]
        if raw.shape != (len(self.centres), 85):
            raise ArtifactError(
                f"{self.backend.path.name} answers {raw.shape}, expected a YOLOX of side "
                f"{self.side}: ({len(self.centres)}, 85)"
            )
        centre = (raw[:, :2] + self.centres) * self.strides
        half = np.exp(raw[:, 2:4]) * self.strides / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1) / scale
        scores = raw[:, 4] * raw[:, 5]
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
        keep = (scores >= self.threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        boxes, scores = boxes[keep], np.clip(scores[keep], 0, 1)
        kept = nms(boxes, scores, self.nms_iou)
        return Detections(boxes[kept], scores[kept])


def _cells(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(M, 2) x, y of each cell in cells, and (M, 1) its stride."""
    centres, strides = [], []
    for stride in STRIDES:
        count = side // stride
        y, x = np.mgrid[:count, :count]
        centres.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        strides.append(np.full((count * count, 1), stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)
