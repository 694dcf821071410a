"""Ultralytics' own checkpoints (.pt), through their own package (AGPL-3.0; the extra ultralytics).

An exported .onnx of the same model needs none of it; see `decoders`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Self

import numpy as np

from cfpose_sdk.detectors.base import Detections, DetectorOptions, Running
from cfpose_sdk.detectors.layouts import class_names
from cfpose_sdk.errors import ArtifactError, BackendError, require
from cfpose_sdk.files import check_model_file
from cfpose_sdk.media.image import Image


class UltralyticsDetector:
    """People in a BGR image by a YOLO checkpoint. Raises MissingDependencyError without the extra,
    ArtifactError when the file cannot be opened or has no class "person".
    """

    def __init__(self, path: Path, options: DetectorOptions, running: Running) -> None:
        options.only("threshold", "nms_iou", "person_class", "size_wh", what=f"{path.name}")
        check_model_file(path, "a checkpoint")
        require("ultralytics", extra="ultralytics", why=f"running {path.name}")
        from ultralytics import YOLO

        self.path, self.name = path, path.stem
        self._options, self._running = options, running
        try:
            self._model: Any = YOLO(str(path))
        except Exception as error:  # torch and ultralytics raise many kinds
            raise ArtifactError(f"ultralytics cannot open {path}: {error}") from error
        names = class_names({"names": str(dict(self._model.names))})
        people = [number for number, name in names.items() if name.lower() == "person"]
        if options.person_class is None and len(people) != 1:
            raise ArtifactError(
                f"{path.name} names no class 'person'; pass "
                f"detector_options=DetectorOptions(person_class=…)"
            )
        self._person = people[0] if options.person_class is None else options.person_class
        # ultralytics chooses a device itself when it gets None
        device = running["device"]
        self._device = None if device == "auto" else device
        self.provider = f"ultralytics on {device}"

    def __call__(self, image: Image) -> Detections:
        if self._model is None:
            raise BackendError(f"{self.path.name} is closed; open it again")
        options = self._options
        given: dict[str, Any] = {"verbose": False, "classes": [self._person]}
        given["conf"] = 0.25 if options.threshold is None else options.threshold
        if options.nms_iou is not None:
            given["iou"] = options.nms_iou
        if options.size_wh is not None:
            given["imgsz"] = (options.size_wh[1], options.size_wh[0])
        if self._device is not None:
            given["device"] = self._device
        result = self._model.predict(image, **given)[0].boxes
        height, width = image.shape[:2]
        boxes = np.asarray(result.xyxy.cpu().numpy(), np.float32).reshape(-1, 4)
        boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
        scores = np.asarray(result.conf.cpu().numpy(), np.float32).reshape(-1).clip(0, 1)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Detections(boxes[solid], scores[solid])

    def close(self) -> None:
        """Let the model go."""
        self._model = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options, opened anew where it is unpickled."""
        return functools.partial(type(self), self.path, self._options, self._running), ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
