"""MoveNet single-pose (ONNX) as a model under test, in person boxes.

Input int32 [1, S, S, 3] RGB; output [1, 1, 17, 3] = (y, x, score) relative to the square crop.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from cfpose_sdk.backends import Device, open_backend
from cfpose_sdk.crops import crop_transforms, extract_crops, invert_transforms, transform_points
from cfpose_sdk.detectors.base import Detector, as_detections
from cfpose_sdk.errors import ArtifactError, InputError
from cfpose_sdk.media.image import Image, check_image, read_image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17

# input side in pixels, and the square crop's side as a multiple of the box's longer side
VARIANTS = {"lightning": (192, 1.25), "thunder": (256, 1.1)}


class MoveNet:
    """MoveNet Lightning or Thunder in person boxes; the file's name says which.

    `detector` is used where no boxes are given. Raises ArtifactError for any other file
    name.
    """

    def __init__(
        self,
        path: str | Path,
        detector: Detector | None = None,
        *,
        device: Device = "auto",
        threads: int | None = None,
    ) -> None:
        name = Path(path).stem.lower()
        variant = next((VARIANTS[v] for v in VARIANTS if v in name), None)
        if variant is None:
            raise ArtifactError(
                f"{path}: the name of a MoveNet file must contain one of {', '.join(VARIANTS)}"
            )
        self.side, self.box_scale = variant
        self.detector = detector
        self.backend = open_backend(path, device=device, threads=threads)

    def close(self) -> None:
        """Free the model."""
        self.backend.close()

    def predict(self, image: Image | str | Path, boxes: object = None) -> Poses:
        """Poses in (N, 4) xyxy boxes, or in the detector's; as PoseEstimator.predict."""
        clock = [time.perf_counter()]
        frame = read_image(image) if isinstance(image, str | Path) else check_image(image)
        clock.append(time.perf_counter())
        if boxes is None:
            if self.detector is None:
                raise InputError("this MoveNet has no detector; pass boxes")
            boxes = self.detector(frame)
        people = as_detections(boxes)
        clock.append(time.perf_counter())
        to_crop = crop_transforms(people.boxes, (self.side, self.side), self.box_scale)
        crops = extract_crops(frame, to_crop, (self.side, self.side))
        clock.append(time.perf_counter())
        (name,) = self.backend.inputs
        raw = [self.backend.run({name: c[None, :, :, ::-1].astype(np.int32)}) for c in crops]
        clock.append(time.perf_counter())
        yxs = np.array([r[self.backend.outputs[0]] for r in raw]).reshape(-1, len(COCO_17), 3)
        xy = transform_points(invert_transforms(to_crop), yxs[..., 1::-1] * self.side)
        clock.append(time.perf_counter())
        spans = np.diff(clock) * 1e3
        speed = dict(zip(("read", "detect", "crop", "infer", "post"), spans.tolist(), strict=True))
        return Poses(
            xy=xy.astype(np.float32),
            confidence=np.clip(yxs[..., 2], 0, 1).astype(np.float32),
            boxes=people.boxes,
            box_scores=people.scores,
            skeleton=COCO_17,
            image_size_wh=(frame.shape[1], frame.shape[0]),
            speed_ms={**speed, "total": float(spans.sum())},
        )
