"""Run the pose network on crops, or on a whole frame, and return Poses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.backends import Backend, HeldImage
from cfpose_sdk.backends.foreign import adopt_hint
from cfpose_sdk.crops import crop_transforms, extract_crops, invert_transforms, transform_points
from cfpose_sdk.detectors.base import TimedDetections, hold, padded
from cfpose_sdk.errors import ArtifactError, BackendError
from cfpose_sdk.media.frames import Frame
from cfpose_sdk.media.gpu_image import on_host
from cfpose_sdk.media.image import Image
from cfpose_sdk.results import Poses
from cfpose_sdk.spec import SPEC_KEY, ModelSpec

Arrays = dict[str, NDArray[Any]]
_INPUTS = {"crops": ("crops",), "frame": ("frame", "boxes")}


class PoseNetwork:
    """An opened artifact and its spec. Threads may share it.

    At most `batch_size` people go through at once, fewer where the artifact takes fewer. Raises
    ArtifactError (SpecError) for a file that is no cfpose artifact.
    """

    def __init__(self, backend: Backend, batch_size: int) -> None:
        self.backend = backend
        self.batch_size = min(batch_size, backend.max_batch or batch_size)
        self.spec = _model_spec(backend)

    def run_frame(self, image: Image | GpuImage | HeldImage, boxes: NDArray[np.floating]) -> Arrays:
        """Outputs of a model that cuts its own crops, for (N, 4) xyxy boxes of one BGR image.

        All chunks of boxes read the same frame, on a GPU from its memory. Without boxes nothing is
        run.
        """
        if len(boxes) == 0:
            return {}
        boxes, size = np.asarray(boxes, dtype=np.float32), self.batch_size
        own = None if isinstance(image, HeldImage) else hold(self.backend, image)
        frame = image if own is None else own
        if not isinstance(frame, HeldImage):
            frame = padded(self.readable(frame), self.backend.least_side)
        try:
            return self.joined(
                [
                    self.backend.run({"frame": frame, "boxes": boxes[first : first + size]})
                    for first in range(0, len(boxes), size)
                ]
            )
        finally:
            if own is not None:
                own.close()

    def readable(self, image: Image | GpuImage) -> Image:
        """The image on the host, for a model that does not read it on a GPU."""
        takes = "takes crops, which are cut" if self.spec.input == "crops" else "reads frames"
        name, provider = self.backend.path.name, self.backend.provider
        return on_host(image, f"{name} ({provider}) {takes} there")

    def joined(self, parts: list[Arrays]) -> Arrays:
        """The outputs of all chunks together; raises BackendError where a joint is not finite."""
        if len(parts) == 1:
            outputs = parts[0]
        else:
            outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name in outputs.keys() & {"keypoints", "confidence"}:
            if not np.isfinite(outputs[name]).all():
                raise BackendError(
                    f"{self.backend.path.name} returned NaN or infinite {name} on "
                    f"{self.backend.provider}; check the model with: cfpose doctor"
                )
        return outputs


class CropRun:
    """Runs a model that takes crops on `total` people of any number of images.

    One buffer of a chunk's size holds the crops: memory does not grow with the number of people.
    `infer_ms` is the time in the network.
    """

    def __init__(self, model: PoseNetwork, total: int) -> None:
        self._model = model
        width, height = model.spec.size_wh
        self._buffer = np.empty((min(total, model.batch_size), height, width, 3), np.uint8)
        self._filled = 0
        self._parts: list[Arrays] = []
        self.infer_ms = 0.0

    def add(self, image: Image, maps: NDArray[np.float64]) -> float:
        """Cut the next people by (N, 2, 3) maps, run full chunks; the milliseconds of cutting."""
        spent = 0.0
        while len(maps):
            start = time.perf_counter()
            free = self._buffer[self._filled : self._filled + len(maps)]
            extract_crops(image, maps[: len(free)], self._model.spec.size_wh, out=free)
            spent += time.perf_counter() - start
            self._filled += len(free)
            maps = maps[len(free) :]
            if self._filled == len(self._buffer):
                self._flush()
        return spent * 1000

    def outputs(self) -> Arrays:
        """Network outputs of all people, in the order they were added; {} for no people."""
        if self._filled:
            self._flush()
        return self._model.joined(self._parts) if self._parts else {}

    def _flush(self) -> None:
        start = time.perf_counter()
        self._parts.append(self._model.backend.run({"crops": self._buffer[: self._filled]}))
        self.infer_ms += (time.perf_counter() - start) * 1000
        self._filled = 0


def _model_spec(backend: Backend) -> ModelSpec:
    """The artifact's spec; raises where the graph's inputs and outputs do not fit it."""
    text = backend.metadata.get(SPEC_KEY)
    if text is None:
        hint = adopt_hint(
            backend.path, backend.input_shapes, backend.input_types, backend.output_shapes
        )
        raise ArtifactError(
            f"{backend.path} is not a cfpose artifact (its metadata has no {SPEC_KEY!r}); {hint}"
        )
    spec = ModelSpec.from_json(text)
    expected = _INPUTS[spec.input]
    if backend.inputs != expected or not {"keypoints", "confidence"} <= set(backend.outputs):
        raise ArtifactError(
            f"{backend.path} has inputs {backend.inputs} and outputs {backend.outputs}; "
            f"expected {', '.join(expected)} → keypoints, confidence"
        )
    return spec


@dataclass(frozen=True)
class DetectedFrame:
    """A frame and the people in it."""

    frame: Frame
    detections: TimedDetections


def estimate(model: PoseNetwork, frames: Sequence[DetectedFrame]) -> list[Poses]:
    """Poses in each frame; the crops of all share batches. Raises BackendError."""
    if model.spec.input == "frame":
        return [_estimate_whole(model, detected) for detected in frames]
    return _estimate_crops(model, frames)


def _estimate_crops(model: PoseNetwork, frames: Sequence[DetectedFrame]) -> list[Poses]:
    total = sum(len(detected.detections.people) for detected in frames)
    run, all_maps, crop_ms = CropRun(model, total), [], []
    for detected in frames:
        start = time.perf_counter()
        boxes, spec = detected.detections.people.boxes, model.spec
        maps = crop_transforms(boxes, spec.size_wh, spec.box_scale, geometry=spec.geometry)
        mapping_ms = _since(start)
        all_maps.append(maps)
        crop_ms.append(mapping_ms + run.add(model.readable(detected.frame.image), maps))
    outputs = run.outputs()
    results, first = [], 0
    for n, detected in enumerate(frames):
        people = len(detected.detections.people)
        part = {name: values[first : first + people] for name, values in outputs.items()}
        infer_ms = run.infer_ms * people / total if total else 0.0
        results.append(_poses(model, detected, all_maps[n], part, crop_ms[n], infer_ms))
        first += people
    return results


def _estimate_whole(model: PoseNetwork, detected: DetectedFrame) -> Poses:
    """One frame through a model that cuts its own crops; its time is all `infer`."""
    start = time.perf_counter()
    held = detected.detections.held
    try:
        image = detected.frame.image if held is None else held
        outputs = model.run_frame(image, detected.detections.people.boxes)
    finally:
        if held is not None:
            held.close()
    infer_ms = _since(start) if len(detected.detections.people) else 0.0
    return _poses(model, detected, None, outputs, 0.0, infer_ms)


def _poses(
    model: PoseNetwork,
    detected: DetectedFrame,
    maps: NDArray[np.float64] | None,
    outputs: Arrays,
    crop_ms: float,
    infer_ms: float,
) -> Poses:
    """Network outputs → Poses in frame pixels; maps (N, 2, 3) lead from the frame to the crop.

    None: the outputs are in frame pixels already.
    """
    start = time.perf_counter()
    frame, people = detected.frame, detected.detections.people
    height, width = frame.image.shape[:2]
    spent = {"read": frame.read_ms, "detect": detected.detections.milliseconds}
    spent |= {"crop": crop_ms, "infer": infer_ms}
    shared: dict[str, Any] = {
        "skeleton": model.spec.skeleton, "image_size_wh": (width, height),
        "image": None if isinstance(frame.image, GpuImage) else frame.image,
        "source": frame.name, "frame": frame.number, "time_s": frame.time_s,
        "calibrated": model.spec.calibrated,
    }  # fmt: skip
    if len(people) == 0:
        return Poses.empty(speed_ms=_with_total({**spent, "post": 0.0}), **shared)
    xy, covariance = outputs["keypoints"], outputs.get("covariance")
    if maps is not None:
        back = invert_transforms(maps)
        xy = transform_points(back, xy)
        if covariance is not None:
            linear = back[:, None, :, :2]
            covariance = linear @ covariance @ np.swapaxes(linear, -1, -2)
    return Poses(
        xy=xy.astype(np.float32),
        confidence=outputs["confidence"].clip(0, 1),
        boxes=people.boxes,
        box_scores=people.scores,
        speed_ms=_with_total({**spent, "post": _since(start)}),
        covariance=covariance,
        **shared,
    )


def _with_total(spent: dict[str, float]) -> dict[str, float]:
    return {**spent, "total": sum(spent.values())}


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
