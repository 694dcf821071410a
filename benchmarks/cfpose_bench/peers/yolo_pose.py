"""One-stage YOLO-pose graphs (ONNX) as peers; they find the people themselves.

    raw         [1, 5 + 3 K, M]  cx, cy, w, h in input pixels; score; x, y, confidence a joint
    end-to-end  [1, N, 6 + 3 K]  x1, y1, x2, y2, score, class; likewise; suppressed already

Input float32 [1, 3, H, W] RGB 0..1, letterboxed at the top left with 114. Source of the layouts:
the exporter of Ultralytics, which is not imported.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends import Device, open_backend
from cfpose_sdk.boxes import letterbox, nms
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.media.image import Image, check_image, read_image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17, Skeleton

THRESHOLD = 0.001  # as Ultralytics evaluates: AP needs the poses of low score too
NMS_IOU = 0.7
MOST = 300  # poses a photo
_PAD_VALUE = 114
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))

Found = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


class YoloPose:
    """A YOLO-pose graph of a fixed input; COCO's 17 joints.

    Raises ArtifactError for a graph of other inputs or outputs.
    """

    skeleton: Skeleton = COCO_17

    def __init__(
        self,
        path: str | Path,
        *,
        threshold: float = THRESHOLD,
        nms_iou: float = NMS_IOU,
        device: Device = "auto",
        threads: int | None = None,
    ) -> None:
        self.threshold, self.nms_iou = threshold, nms_iou
        self.backend = open_backend(path, device=device, threads=threads)
        shape = self.backend.input_shapes.get(self.backend.inputs[0], ())
        if len(self.backend.inputs) != 1 or len(shape) != 4 or not (shape[2] and shape[3]):
            self.backend.close()
            raise ArtifactError(
                f"{path} has inputs {self.backend.inputs} of shape {list(shape)}; expected one "
                f"image [1, 3, H, W] of fixed size"
            )
        self.size_wh = (shape[3], shape[2])

    def close(self) -> None:
        """Free the model."""
        self.backend.close()

    def predict(self, image: Image | str | Path, /, boxes: Any = None) -> Poses:
        """Poses of the people that it finds, by falling score; `boxes` are not asked."""
        clock = [time.perf_counter()]
        frame = read_image(image) if isinstance(image, str | Path) else check_image(image)
        clock.append(time.perf_counter())
        canvas, scale = letterbox(frame, self.size_wh, _PAD_VALUE)
        planes = canvas[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        feed = {self.backend.inputs[0]: np.ascontiguousarray(planes)}
        clock.append(time.perf_counter())
        outputs = self.backend.run(feed)
        clock.append(time.perf_counter())
        found, scores, joints = self._decode(outputs)
        height, width = frame.shape[:2]
        found = (found / scale).clip(0, [width, height, width, height]).astype(np.float32)
        solid = (found[:, 2:] > found[:, :2]).all(axis=1)
        order = np.flatnonzero(solid)[np.argsort(-scores[solid], kind="stable")][:MOST]
        clock.append(time.perf_counter())
        spans = np.diff(clock) * 1e3
        speed = dict(zip(("read", "crop", "infer", "post"), spans.tolist(), strict=True))
        return Poses(
            xy=(joints[order, :, :2] / scale).astype(np.float32),
            confidence=joints[order, :, 2].clip(0, 1).astype(np.float32),
            boxes=np.asarray(found[order], dtype=np.float32),
            box_scores=scores[order].clip(0, 1).astype(np.float32),
            skeleton=self.skeleton,
            image_size_wh=(width, height),
            speed_ms={**speed, "detect": 0.0, "total": float(spans.sum())},
        )

    def _decode(self, outputs: dict[str, NDArray[Any]]) -> Found:
        """Boxes (N, 4) xyxy, scores (N,) and joints (N, K, 3), in input pixels."""
        values, joints = list(outputs.values()), len(self.skeleton)
        shape = values[0].shape
        if len(values) == 1 and len(shape) == 3 and shape[0] == 1:
            if shape[2] == 6 + 3 * joints and shape[1] not in self._cells():
                rows = values[0][0].astype(np.float64)
                rows = rows[rows[:, 4] >= self.threshold]
                return rows[:, :4], rows[:, 4], rows[:, 6:].reshape(-1, joints, 3)
            if shape[1] == 5 + 3 * joints and shape[2] in self._cells():
                return self._suppressed(values[0][0].T.astype(np.float64))
        raise ArtifactError(
            f"{self.backend.path.name} answers {[list(v.shape) for v in values]}; expected "
            f"[1, {5 + 3 * joints}, M] of the strides 8, 16, 32, or [1, N, {6 + 3 * joints}]"
        )

    def _suppressed(self, rows: NDArray[np.float64]) -> Found:
        rows = rows[rows[:, 4] >= self.threshold]
        half = rows[:, 2:4] / 2
        corners = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
        kept = nms(corners, rows[:, 4], self.nms_iou)
        return corners[kept], rows[kept, 4], rows[kept, 5:].reshape(-1, len(self.skeleton), 3)

    def _cells(self) -> tuple[int, ...]:
        width, height = self.size_wh
        return tuple(sum((width // s) * (height // s) for s in strides) for strides in _STRIDES)
