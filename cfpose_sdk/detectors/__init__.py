"""`open_detector`: a person detector from a file, a cfpose finder or one of another project."""

from __future__ import annotations

import os

from cfpose_sdk.backends import Device, open_backend
from cfpose_sdk.detectors.base import DetectorOptions, OpenDetector, PersonFinder, Running
from cfpose_sdk.detectors.graph import GraphDetector
from cfpose_sdk.detectors.ultralytics import UltralyticsDetector
from cfpose_sdk.files import FINDER_KEY, SPEC_KEY, as_path

__all__ = ["DetectorOptions", "open_detector"]


def open_detector(
    path: str | os.PathLike[str],
    options: DetectorOptions | None = None,
    *,
    device: Device = "auto",
    threads: int | None = None,
    allow_fallback: bool = False,
) -> OpenDetector:
    """Open a person detector: a cfpose finder, a YOLO, end-to-end, RF-DETR-style, RTMDet, PicoDet
    or NanoDet graph, or an Ultralytics checkpoint (.pt).

    Raises ArtifactError when the file is of no known kind, or leaves something open that an option
    would settle, MissingDependencyError without the package it needs, else as `open_backend`.
    """
    file, options = as_path(path), options or DetectorOptions()
    running: Running = {"device": device, "threads": threads, "allow_fallback": allow_fallback}
    if file.suffix.lower() == ".pt":
        return UltralyticsDetector(file, options, running)
    backend = open_backend(file, **running)
    try:
        if FINDER_KEY not in backend.metadata and SPEC_KEY not in backend.metadata:
            return GraphDetector(backend, options, running)
    except BaseException:
        backend.close()
        raise
    backend.close()  # cfpose's own: PersonFinder opens it, and raises for a pose model
    given = options.only("threshold", "nms_iou", what=f"{file.name}, which knows it")
    return PersonFinder(file, **given, **running)
