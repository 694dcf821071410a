"""The estimator's detector: the bundled finder, a file, or a function; opened when it is needed."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.detectors.base import (
    Detections,
    Detector,
    OpenDetector,
    PersonFinder,
    Running,
    as_detections,
)
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.media.image import Image


@dataclass(frozen=True)
class Found:
    """The people of one frame, and the milliseconds that finding them took."""

    people: Detections
    milliseconds: float


class Finding:
    """Opens what it is given now, the bundled finder only when it is needed: who brings boxes needs
    none. Closes what it opened. Threads may share it.
    """

    def __init__(
        self,
        detector: str | os.PathLike[str] | Detector | None,
        options: DetectorOptions | None,
        running: Running,
    ) -> None:
        if callable(detector) and options is not None:
            raise InputError("detector_options belong to a detector's file, not to a callable")
        self._options, self._running = options or DetectorOptions(), running
        self._lock = threading.Lock()
        self._closed = False
        self._finder: Detector | None = None
        self._own: OpenDetector | None = None
        if callable(detector):
            self._finder = detector
        elif detector is not None:
            self._finder = self._own = open_detector(detector, options, **running)

    def __call__(self, image: Image) -> Found:
        """People in a BGR image. Raises BoxError when a callable returns something else."""
        finder = self._open()
        start = time.perf_counter()
        people = as_detections(finder(image))
        return Found(people, (time.perf_counter() - start) * 1000)

    @property
    def description(self) -> str:
        """Its name, file and runtime, for logs and reports."""
        finder = self._finder
        if finder is None:
            return "bundled, not yet opened"
        if isinstance(finder, OpenDetector):
            return f"{finder.name} ({finder.path.name}, {finder.provider})"
        return str(getattr(finder, "__qualname__", type(finder).__qualname__))

    def close(self) -> None:
        """Free what was opened here."""
        with self._lock:
            self._closed = True
            if self._own is not None:
                self._own.close()

    def _open(self) -> Detector:
        with self._lock:
            if self._closed:
                raise BackendError("this detector is closed; open another PoseEstimator")
            if self._finder is None:
                given = self._options.only("threshold", "nms_iou", what="the bundled finder")
                self._finder = self._own = PersonFinder(**given, **self._running)
            return self._finder
