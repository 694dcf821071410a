"""Detections, the options and protocols of detectors, and PersonFinder, cfpose's own finder."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Literal,
    Protocol,
    Self,
    TypedDict,
    cast,
    get_args,
    runtime_checkable,
)

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.backends import Backend, Device, HeldImage, open_backend
from cfpose_sdk.backends.base import Arrays
from cfpose_sdk.backends.bundled import BUNDLED_FINDER as BUNDLED_FINDER
from cfpose_sdk.boxes import box_array, check_boxes, fitting, letterbox, nms
from cfpose_sdk.errors import ArtifactError, BoxError, InputError
from cfpose_sdk.files import as_path
from cfpose_sdk.media.gpu_image import on_host
from cfpose_sdk.media.image import Image
from cfpose_sdk.spec import FINDER_KEY, FinderSpec

Layout = Literal[
    "yolox", "yolox-decoded", "yolov5", "yolov8", "end2end", "detr",
    "rtmdet", "mmdeploy", "picodet", "nanodet",
]  # fmt: skip
Pixels = Literal["bgr255", "rgb01", "rgb-imagenet", "bgr-imagenet"]


@dataclass(frozen=True)
class DetectorOptions:
    """Each None is read from the file, or, where it cannot be, is an error that names the option.

    `threshold`: boxes scored below are dropped; None is the artifact's own, else 0.25. `nms_iou`:
    of two boxes that overlap more the lower-scored is dropped; None is the artifact's own, else
    0.5 (end2end, detr and mmdeploy need none and do none). `layout`: what the output holds, see the
    modules of this package. `person_class`: the number of the class of people. `size_wh`: of the
    input, where the graph leaves it open. `pixels`: how they are fed; None is the layout's custom.
    Raises InputError when a value is out of range.
    """

    threshold: float | None = None
    nms_iou: float | None = None
    layout: Layout | None = None
    person_class: int | None = None
    size_wh: tuple[int, int] | None = None
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} must lie in [0, 1], got {value}")
        for name, choices in (("layout", get_args(Layout)), ("pixels", get_args(Pixels))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise InputError(f"{name} must be one of {choices}, got {value!r}")
        if self.person_class is not None and self.person_class < 0:
            raise InputError(f"person_class must be 0 or more, got {self.person_class}")
        if self.size_wh is not None and not (
            len(self.size_wh) == 2 and all(isinstance(s, int) and s > 0 for s in self.size_wh)
        ):
            raise InputError(f"size_wh must be two positive integers, got {self.size_wh}")

    def only(self, *names: str, what: str) -> dict[str, Any]:
        """The given ones among `names`; raises InputError when others were set."""
        given = {key: v for key, v in dataclasses.asdict(self).items() if v is not None}
        if others := sorted(given.keys() - set(names)):
            raise InputError(f"{', '.join(others)} cannot be chosen for {what}; leave it out")
        return given


@dataclass(frozen=True, eq=False)
class Detections:
    """M people: boxes (M, 4) float32 xyxy in frame pixels, scores (M,) float32 in [0, 1].

    Raises BoxError when a box has no area, a number is not finite, or the shapes differ.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        boxes = check_boxes(self.boxes).astype(np.float32)
        scores = _numbers(self.scores)
        if scores.shape != (len(boxes),):
            raise BoxError(f"scores must have shape ({len(boxes)},), got {scores.shape}")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise BoxError(f"scores must lie in [0, 1], got {scores.min()} to {scores.max()}")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class TimedDetections:
    """The people of one frame, and the milliseconds that the detector took."""

    people: Detections
    milliseconds: float
    held: HeldImage | None = None  # the frame, where it lies in a GPU's memory now


class Running(TypedDict):
    """The options of `open_backend` that a detector shares with the pose model."""

    device: Device
    threads: int | None
    allow_fallback: bool


@runtime_checkable
class OpenDetector(Protocol):
    """A detector that came from a file. Threads may share it."""

    name: str
    path: Path
    provider: str

    def __call__(self, image: Image) -> Detections: ...

    def close(self) -> None: ...


# Any callable that takes a BGR image and returns Detections, (N, 4) boxes, or (N, 5) with scores.
Detector = Callable[[Image], Any]


def as_detections(value: object) -> Detections:
    """Detections, (N, 4) xyxy boxes, or (N, 5) with a score column → Detections.

    Arrays, lists and torch tensors; of another project, supervision's say, what has `xyxy` and
    `confidence`. Boxes without scores get 1. Raises BoxError on anything else; nothing is clipped
    or dropped.
    """
    if isinstance(value, Detections):
        return value
    if value is None:
        raise BoxError("the detector returned None; expected (N, 4) boxes, [] for nobody")
    if hasattr(value, "xyxy"):
        confidence = getattr(value, "confidence", None)
        if confidence is None:
            return as_detections(value.xyxy)
        return Detections(check_boxes(value.xyxy).astype(np.float32), _numbers(confidence))
    array = box_array(value)
    if array.ndim == 2 and array.shape[1] == 5 and array.dtype.kind in "iuf":
        return Detections(check_boxes(array[:, :4]).astype(np.float32), array[:, 4])
    boxes = check_boxes(array)
    return Detections(boxes.astype(np.float32), np.ones(len(boxes), dtype=np.float32))


def _numbers(scores: object) -> NDArray[np.float32]:
    """Scores of any numeric type as float32. Raises BoxError for others."""
    array = box_array(scores)
    if array.dtype.kind not in "iuf" and array.size:
        raise BoxError(f"scores must be numbers, got {array.dtype} from {type(scores).__name__}")
    with np.errstate(over="ignore"):  # infinity is refused by its value
        return array.astype(np.float32)


def hold(backend: Backend, image: Image | GpuImage) -> HeldImage | None:
    """`Backend.hold`, or `adopt` for an image that lies on a GPU already."""
    return backend.adopt(image) if isinstance(image, GpuImage) else backend.hold(image)


def as_given(detector: Detector, image: Image | GpuImage, name: str) -> object:
    """The image for a detector that does not read it on a GPU; a caller's function gets its own."""
    if not isinstance(image, GpuImage):
        return image
    if not isinstance(detector, OpenDetector) and image.given is not None:
        return image.given
    return on_host(image, f"the detector, {name}, reads it there")


def padded(image: Image, least: int) -> Image:
    """The image with black at its right and lower border, until no side is below `least`."""
    missing = [(0, max(0, least - side)) for side in image.shape[:2]]
    return np.pad(image, [*missing, (0, 0)]) if any(m for _, m in missing) else image


class PersonFinder:
    """A finder artifact: `images` uint8 (N, H, W, 3) → `boxes` (N, M, 4), `scores` (N, M); or
    `frame` uint8 (h, w, 3), letterboxed inside. A graph that leaves H and W open gets letterboxes
    without most of their margin, on a CPU.

    Without a path: the bundled one; an open Backend stays the caller's to close. `threshold` and
    `nms_iou` override the artifact's own; `beside` is that of `open_backend`. Raises ArtifactError
    when the file is no cfpose finder, else as `open_backend`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Backend | None = None,
        threshold: float | None = None,
        nms_iou: float | None = None,
        *,
        device: Device = "auto",
        threads: int | None = None,
        allow_fallback: bool = False,
        beside: Backend | None = None,
    ) -> None:
        for name, value in (("threshold", threshold), ("nms_iou", nms_iou)):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} must lie in [0, 1], got {value}")
        self._given = path if isinstance(path, Backend) else None
        if isinstance(path, Backend):
            self.path = path.path
        else:
            self.path = BUNDLED_FINDER if path is None else as_path(path)
        self._again = functools.partial(
            type(self), path, threshold, nms_iou,
            device=device, threads=threads, allow_fallback=allow_fallback,
        )  # fmt: skip
        self._backend = self._given or open_backend(
            self.path, device=device, threads=threads, allow_fallback=allow_fallback, beside=beside
        )
        try:
            self.spec = _finder_spec(self._backend)
        except BaseException:
            self.close()
            raise
        self.name = self.spec.name
        self.provider = self._backend.provider  # the runtime that really runs it
        self.device, self.store = self._backend.device, self._backend.store
        # the margin costs as much as the picture; a GPU would plan anew for each shape
        open_sides = self._backend.input_shapes.get("images", ())[1:3] == (None, None)
        self._cuts = open_sides and self.device == "cpu"
        self.threshold = self.spec.threshold if threshold is None else threshold
        self.nms_iou = self.spec.nms_iou if nms_iou is None else nms_iou

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options, opened anew where it is unpickled."""
        return self._again, ()

    def hold(self, image: Image | GpuImage) -> HeldImage | None:
        """`Backend.hold` or `adopt` of a finder that takes frames, None of another."""
        if not self._takes_frames:
            return None
        return hold(self._backend, image)

    def __call__(self, image: Image | HeldImage) -> Detections:
        """People in a BGR image by falling score, clipped to the frame.

        Boxes that have no area there are dropped.
        """
        outputs, scale = self._run(image)
        boxes, scores = outputs["boxes"][0], outputs["scores"][0]
        confident = scores >= self.threshold
        height, width = image.shape[:2]
        edges = np.array([width, height, width, height], dtype=np.float32)
        boxes, scores = (boxes[confident] / scale).clip(0, edges), scores[confident]
        solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        boxes, scores = boxes[solid], scores[solid]
        kept = nms(boxes, scores, self.nms_iou)
        return Detections(boxes[kept], scores[kept])

    def close(self) -> None:
        """Free the model that was opened here."""
        if self._given is None:
            self._backend.close()

    @property
    def _takes_frames(self) -> bool:
        return self._backend.inputs == ("frame",)

    def _run(self, image: Image | HeldImage) -> tuple[Arrays, float]:
        """The network's outputs, and the letterbox pixels a frame pixel."""
        if self._takes_frames:
            small = not isinstance(image, HeldImage)
            frame = padded(cast(Image, image), self._backend.least_side) if small else image
            return self._backend.run({"frame": frame}), fitting(frame.shape, self.spec.size_wh)
        pixels = image.array if isinstance(image, HeldImage) else image
        spec = self.spec
        canvas, scale = letterbox(pixels, spec.size_wh, spec.pad_value, cut=self._cuts)
        return self._backend.run({"images": canvas[None]}), scale

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finder_spec(backend: Backend) -> FinderSpec:
    text = backend.metadata.get(FINDER_KEY)
    if text is None:
        raise ArtifactError(
            f"{backend.path} is not a cfpose person finder (its metadata has no {FINDER_KEY!r}); "
            f"wrap a foreign detector in a function: detector=lambda image: boxes"
        )
    if backend.inputs not in (("images",), ("frame",)) or not {"boxes", "scores"} <= set(
        backend.outputs
    ):
        raise ArtifactError(
            f"{backend.path} has inputs {backend.inputs} and outputs {backend.outputs}; "
            f"expected images or frame → boxes, scores"
        )
    return FinderSpec.from_json(text)
