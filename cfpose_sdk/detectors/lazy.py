"""LazyDetector, the detector of an estimator, opened when it is first needed."""

from __future__ import annotations

import os
import threading
import time
import warnings
from typing import Any, cast

import numpy as np

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.backends import Backend, Device, HeldImage
from cfpose_sdk.backends.tuned import Tuned
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.detectors.base import (
    BUNDLED_FINDER,
    Detections,
    Detector,
    OpenDetector,
    PersonFinder,
    Running,
    TimedDetections,
    as_detections,
    as_given,
)
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.media.image import Image


def tuned_running(running: Running, tuned: Tuned, device: Device) -> Running:
    """The options of a network that runs as it was tuned."""
    return {**running, "device": device, "threads": tuned.threads(running["threads"])}


def _is_bundled(detector: OpenDetector) -> bool:
    return detector.path == BUNDLED_FINDER


class LazyDetector:
    """The estimator's detector: a file, a function, or the bundled finder.

    A file is opened now, the bundled finder only when it is first needed: a caller who gives boxes
    needs none. It closes what it opened. Threads may share it.
    """

    def __init__(
        self,
        detector: str | os.PathLike[str] | Detector | None,
        options: DetectorOptions | None,
        running: Running,
        max_people: int | None = None,
        *,
        beside: Backend | None = None,
        tuned: Tuned | None = None,
    ) -> None:
        self._max_people, self._beside, self._tuned = max_people, beside, tuned
        if callable(detector) and options is not None:
            raise InputError("detector_options belong to a detector's file, not to a callable")
        self._options, self._running = options or DetectorOptions(), running
        self._lock = threading.Lock()
        self._closed = False
        self._detector: Detector | None = None
        self._opened: OpenDetector | None = None
        if callable(detector):
            self._detector = detector
        elif detector is not None:
            self._detector = self._opened = open_detector(
                detector, options, **running, beside=beside
            )
        elif beside is not None and beside.finder is not None:
            self._detector = self._opened = PersonFinder(
                beside.finder, **self._finder_options(), **running, beside=beside
            )

    def __call__(self, image: Image | GpuImage) -> TimedDetections:
        """People in a BGR image. Raises BoxError when a callable returns something else."""
        detector = self._open()
        start = time.perf_counter()
        held = self._held(detector, image)
        given = as_given(detector, image, self.description) if held is None else held
        people = as_detections(detector(cast(Image, given)))
        if self._max_people is not None and len(people) > self._max_people:
            kept = np.sort(np.argsort(-people.scores, kind="stable")[: self._max_people])
            people = Detections(people.boxes[kept], people.scores[kept])
        return TimedDetections(people, (time.perf_counter() - start) * 1000, held)

    @property
    def description(self) -> str:
        """Its name, file and runtime, for logs and reports."""
        detector = self._detector
        if detector is None:
            return f"bundled, not yet opened{self._why_not_along()}"
        if isinstance(detector, OpenDetector):
            alone = self._why_not_along() if _is_bundled(detector) else ""
            return f"{detector.name} ({detector.path.name}, {detector.provider}){alone}"
        return str(getattr(detector, "__qualname__", type(detector).__qualname__))

    def close(self) -> None:
        """Free the detector that was opened here."""
        with self._lock:
            self._closed = True
            if self._opened is not None:
                self._opened.close()

    def _open(self) -> Detector:
        with self._lock:
            if self._closed:
                raise BackendError("this detector is closed; open another PoseEstimator")
            if self._detector is None:
                options = {**self._finder_options(), **self._bundled_running()}
                if self._tuned is not None:
                    options["path"] = self._tuned.finder
                finder = PersonFinder(**options)
                self._detector = self._opened = finder
                if finder.device == "cpu" and (why := self._why_not_along()):
                    warnings.warn(f"people are found on the CPU{why}", RuntimeWarning, stacklevel=4)
            return self._detector

    def _finder_options(self) -> dict[str, Any]:
        return self._options.only(
            "threshold",
            "nms_iou",
            what="the finder of an engine" if self._is_along else "the bundled finder",
        )

    def _held(self, detector: Detector, image: Image | GpuImage) -> HeldImage | None:
        """The image in the GPU's memory, where finder and pose model read it there."""
        if self._beside is None or self._beside.store is None:
            return None
        same = isinstance(detector, PersonFinder) and detector.store == self._beside.store
        return detector.hold(image) if same and isinstance(detector, PersonFinder) else None

    def _bundled_running(self) -> Running:
        """How the bundled finder runs: as the pose model does, where that is no engine."""
        if self._tuned is not None:
            return tuned_running(self._running, self._tuned, self._tuned.setting.finder.device)
        return {**self._running, "device": "auto"} if self._is_engine else self._running

    @property
    def _is_along(self) -> bool:
        return self._beside is not None and self._beside.finder is not None

    @property
    def _is_engine(self) -> bool:
        return self._beside is not None and self._beside.path.suffix.lower() in (".engine", ".plan")

    def _why_not_along(self) -> str:
        """That an engine has no finder beside it, and what would build one; "" of other models."""
        if self._beside is None or not self._is_engine:
            return ""
        name = self._beside.path.name
        return (
            f": {name} was built without a finder, so the bundled one runs in onnxruntime; run: "
            f"cfpose-export engine --model MODEL.onnx -o {name}"
        )
