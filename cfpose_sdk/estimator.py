"""PoseEstimator: people of an image by a detector, their poses by the pose network."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.backends import Backend, Device, RuntimeOptions, open_backend
from cfpose_sdk.backends.bundled import BUNDLED_MODEL as BUNDLED_MODEL
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.backends.tuned import Precision, Tuned, chosen
from cfpose_sdk.detectors import DetectorOptions
from cfpose_sdk.detectors.base import (
    Detector,
    Running,
    TimedDetections,
    as_detections,
)
from cfpose_sdk.detectors.lazy import LazyDetector, tuned_running
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.inference import DetectedFrame, PoseNetwork, estimate
from cfpose_sdk.media.frames import Footage, Frame, Picture, Source, load_frame
from cfpose_sdk.media.image import Image
from cfpose_sdk.media.names import PathLike
from cfpose_sdk.media.sources import open_source
from cfpose_sdk.results import Poses
from cfpose_sdk.spec import ModelSpec
from cfpose_sdk.streaming.smoothing import SmoothOptions
from cfpose_sdk.streaming.stream import Broken, PoseStream, Response, StreamOptions
from cfpose_sdk.streaming.tracking import TrackOptions


@dataclass(frozen=True)
class EstimatorInfo:
    """The open models: file and name of the pose model, its runtime and device, the detector."""

    model: str
    name: str
    provider: str
    device: str
    detector: str
    calibrated: bool = True  # whether confidence and covariance were fitted on labelled photos
    fallen: str = ""  # nodes of the pose model that run on the CPU although a GPU was asked for
    tuned: str = ""  # how `cfpose tune` has both networks run; "": as the options say


class PoseEstimator:
    """Poses of the people in images. Threads may share one estimator.

    `model`: an exported artifact; None is the bundled default, "cfpose-s", "cfpose-m" the bundled
    one of that name (a name has no suffix, a file has one); a checkpoint with the extra train; or
    an open Backend, which stays the caller's to close. `detector`: None for the finder that was
    built to go along with an engine, else the bundled one, beside an engine in onnxruntime;
    a finder artifact, a foreign detector's file (see `open_detector`), or any callable image →
    boxes (N, 4), or (N, 5) with scores. At most `batch_size` people go through the network at once;
    a model that takes whole frames cuts the crops itself, and runs once a frame and chunk of its
    people; on a GPU the frame is uploaded once for the finder and all chunks.
    `options` are of the pose model's runtime, see `RuntimeOptions`. `precision` "tuned": pose model
    and bundled finder run as `cfpose tune` found fastest on this machine; None never changes a
    precision.
    `max_people`: of those that the detector finds in an image, only so many are kept, the best
    scored. `allow_fallback`: when CUDA is there but does not load, warn and run on the CPU instead
    of raising. It can be pickled, and opens its files anew in the other process. Raises
    ArtifactError (SpecError) for a file that is no cfpose artifact, BackendError for a device that
    is not there.
    """

    def __init__(
        self,
        model: PathLike | Backend | None = None,
        *,
        detector: PathLike | Detector | None = None,
        detector_options: DetectorOptions | None = None,
        device: Device = "auto",
        batch_size: int = 32,
        threads: int | None = None,
        options: RuntimeOptions | None = None,
        allow_fallback: bool = False,
        max_people: int | None = None,
        precision: Precision | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_people", max_people)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be 1 or more, got {value}")
        self._arguments: dict[str, Any] = {
            "detector": detector, "detector_options": detector_options, "device": device,
            "batch_size": batch_size, "threads": threads, "options": options,
            "allow_fallback": allow_fallback, "max_people": max_people, "precision": precision,
        }  # fmt: skip
        running: Running = {"device": device, "threads": threads, "allow_fallback": allow_fallback}
        self._closed = False
        self._model = model
        given = BUNDLED_MODEL if model is None else model
        self._tuned = chosen(given, precision, device, options)
        self._backend = _open_model(given, options, running, self._tuned)
        try:
            self._network = PoseNetwork(self._backend, batch_size)
            self._detector = LazyDetector(
                detector, detector_options, running, max_people, beside=self._backend,
                tuned=self._tuned,
            )  # fmt: skip
        except BaseException:
            if self._backend is not model:
                self._backend.close()
            raise
        self.spec: ModelSpec = self._network.spec

    @property
    def info(self) -> EstimatorInfo:
        """The open models, for logs and reports."""
        backend = self._backend
        return EstimatorInfo(
            str(backend.path), self.spec.name, backend.provider, backend.device,
            self._detector.description,
            self.spec.calibrated, backend.fallen, self._tuned.told if self._tuned else "",
        )  # fmt: skip

    def predict(self, image: Picture, boxes: object = None) -> Poses:
        """Poses in one BGR uint8 image (H, W, 3), or in the photo at a path.

        An image in a GPU's memory (`__cuda_array_interface__`, DLPack) is read there by an engine
        that takes frames, on the same GPU, and else copied to the host with a warning; a callable
        detector gets it as it is, and the Poses carry no image.

        `boxes`: (N, 4) xyxy of the people, (N, 5) with scores, or Detections; [] means no people,
        and None runs the detector. Raises ImageError, BoxError.
        """
        return self._estimate([load_frame(image)], [boxes])[0]

    def predict_batch(
        self, images: Sequence[Picture], boxes: Sequence[object] | None = None
    ) -> list[Poses]:
        """Poses in each of several images of any sizes; the crops of all share batches.

        `boxes`, if given, has an entry for each image, as in `predict`.
        """
        if isinstance(images, str | os.PathLike) or getattr(images, "ndim", 4) != 4:
            raise InputError("predict_batch takes a list of images; for one image use predict")
        given = [None] * len(images) if boxes is None else list(boxes)
        if len(given) != len(images):
            raise InputError(
                f"boxes must have an entry for each of the {len(images)} images, got {len(given)}"
            )
        return self._estimate([load_frame(image) for image in images], given)

    def stream(
        self,
        source: Source,
        *,
        prefetch: int | None = None,
        detect_every: int = 1,
        track: bool | TrackOptions = False,
        smooth: bool | SmoothOptions = False,
        broken: Broken = "warn",
        reconnect_s: float = 0.0,
        batch_frames: int = 1,
    ) -> PoseStream:
        """Poses frame by frame: of a folder or glob of photos, a video file, a camera index, a URL,
        or an iterable of arrays and paths.

        `prefetch`: frames that wait for the detector, and for the pose network; a thread reads and
        a thread detects. 0 does all in the caller's thread. None is 4, and 0 for a caller's own
        generator, which then stays in the caller's thread. `detect_every`: run the detector on
        every n-th frame only; in between the boxes follow the poses, and a pose that fades is
        dropped. `track` gives `ids`; `smooth` filters `xy` by id, keeps `xy_raw`, and tracks too.
        `broken`: a file, or a frame of a video, that cannot be read is a RuntimeWarning and is
        skipped, or with "raise" ends the stream. `reconnect_s`: a camera or address that is lost is
        opened again for so many seconds, with growing pauses; each gap is a RuntimeWarning, and
        people get new ids after it. `batch_frames`: so many frames of files wait for each other and
        go through the pose network together, for more frames a second; those of a camera or address
        never wait.
        Raises InputError now when the source cannot be opened.
        """
        options = StreamOptions(
            prefetch, detect_every, track, smooth, broken, reconnect_s, batch_frames
        )
        return self.open_stream(open_source(source, reconnect_s=reconnect_s), options)

    def open_stream(
        self, footage: Footage, options: StreamOptions, on_broken: Response | None = None
    ) -> PoseStream:
        """`stream` for an opened source; `on_broken` gets the error of what cannot be read."""
        self._check_open()
        if self.spec.input == "frame":  # each runs alone, and may hold memory of a GPU
            options = replace(options, batch_frames=1)
        return PoseStream(_Engine(self), footage, options, on_broken)

    def close(self) -> None:
        """Free the models that this estimator opened; a later call to it raises BackendError."""
        self._closed = True
        if self._backend is not self._model:
            self._backend.close()
        self._detector.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options, opened anew where it is unpickled: in a worker process, say.

        Raises InputError for a detector or Backend that cannot be pickled, BackendError when it is
        closed.
        """
        self._check_open()
        for name, value in (("detector", self._arguments["detector"]), ("model", self._model)):
            try:
                pickle.dumps(value)
            except Exception as error:  # pickle raises whatever the object's own code raises
                raise InputError(
                    f"a PoseEstimator can go to another process only with a {name} that can be "
                    f"pickled, got {value!r} ({error}); give a file, or a function of a module"
                ) from error
        return functools.partial(PoseEstimator, self._model, **self._arguments), ()

    def __repr__(self) -> str:
        """The open models, for notebooks and consoles."""
        info, closed = self.info, ", closed" if self._closed else ""
        size = "x".join(map(str, self.spec.size_wh))
        return (
            f"PoseEstimator({info.name}: {len(self.spec.skeleton)} joints, {self.spec.input} of "
            f"{size}, {info.provider}; detector: {info.detector}{closed})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _estimate(self, frames: Sequence[Frame], given: Sequence[object]) -> list[Poses]:
        self._check_open()
        detected = (
            DetectedFrame(frame, self._detect(frame.image, boxes))
            for frame, boxes in zip(frames, given, strict=True)
        )
        if self.spec.input == "frame":  # one by one: each may hold memory of a GPU
            return [poses for each in detected for poses in estimate(self._network, [each])]
        return estimate(self._network, list(detected))

    def _detect(self, image: Image | GpuImage, boxes: object) -> TimedDetections:
        """The caller's boxes, or where there are none (None) the detector's."""
        if boxes is None:
            return self._detector(image)
        if isinstance(boxes, TimedDetections):
            return boxes
        return TimedDetections(as_detections(boxes), 0.0)

    def _check_open(self) -> None:
        if self._closed:
            name = self._backend.path.name
            raise BackendError(f"this PoseEstimator ({name}) is closed; open another")


def _open_model(
    model: PathLike | Backend, options: RuntimeOptions | None, running: Running, tuned: Tuned | None
) -> Backend:
    """The backend of a file, of a bundled model, or the caller's own."""
    if tuned is not None:
        running = tuned_running(running, tuned, tuned.setting.pose.device)
        return open_backend(tuned.model, **running, options=tuned.options)
    if not isinstance(model, Backend):
        return open_backend(model_file(model), **running, options=options)
    if options is not None:
        raise InputError("options belong to a model's file, not to an open Backend")
    return model


class _Engine:
    """The two steps of a stream: detect people and estimate poses, each in its own thread."""

    def __init__(self, estimator: PoseEstimator) -> None:
        self.detect = estimator._detector
        self._estimate = estimator._estimate

    def poses(self, frames: Sequence[Frame], people: Sequence[TimedDetections]) -> list[Poses]:
        return self._estimate(frames, people)
