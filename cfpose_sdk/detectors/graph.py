"""A foreign detector's graph: image in, boxes of people out, whatever its layout."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any, Self, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.boxes import letterbox, nms
from cfpose_sdk.detectors.base import Detections, DetectorOptions, Pixels, Running
from cfpose_sdk.detectors.decoders import decode_detr, decode_end2end, decode_yolo
from cfpose_sdk.detectors.layouts import Outputs, Reading, read_layout
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.media.image import Image
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB

_PAD_VALUE = 114  # the grey that YOLO detectors are trained with
_THRESHOLD, _NMS_IOU = 0.25, 0.5
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class GraphDetector:
    """Runs an opened model with one image input [1, 3, H, W]; owns and closes it.

    The graph is run once on a grey picture to see what comes out. Raises ArtifactError when input
    or outputs are of no known kind; it names the `DetectorOptions` that would settle it.
    """

    def __init__(self, backend: Backend, options: DetectorOptions, running: Running) -> None:
        self._backend, self._options, self._running = backend, options, running
        self.path, self.name, self.provider = backend.path, backend.path.stem, backend.provider
        self.size_wh = _size(backend, options)
        self._type = _type(backend)
        self.reading = self._read()
        self.threshold = _THRESHOLD if options.threshold is None else options.threshold

    @classmethod
    def open(cls, path: Path, options: DetectorOptions, running: Running) -> Self:
        """Open the file of a foreign detector. Raises as the class and `open_backend`."""
        backend = open_backend(path, **running)
        try:
            return cls(backend, options, running)
        except BaseException:
            backend.close()
            raise

    def __call__(self, image: Image) -> Detections:
        """People in a BGR image by falling score, clipped to the frame; boxes without area go."""
        stretched = self.reading.layout == "detr"
        outputs, scale_xy = self._run(image, self.reading.pixels, stretched)
        found, scores = self._decode(outputs)
        height, width = image.shape[:2]
        # float32 before the check: what has an area in float64 may have none in the result
        boxes = np.asarray(
            (found / np.tile(scale_xy, 2)).clip(0, [width, height, width, height]), dtype=np.float32
        )
        solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & np.isfinite(scores)
        boxes, scores = boxes[solid], scores[solid].clip(0, 1)
        order = np.argsort(-scores, kind="stable")
        if self.reading.layout not in ("end2end", "detr"):
            iou = _NMS_IOU if self._options.nms_iou is None else self._options.nms_iou
            order = nms(boxes, scores, iou)
        return Detections(boxes[order], np.asarray(scores[order], dtype=np.float32))

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options, opened anew where it is unpickled."""
        return functools.partial(type(self).open, self.path, self._options, self._running), ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Reading:
        width, height = self.size_wh
        grey = np.full((height, width, 3), 128, np.uint8)
        outputs, _ = self._run(grey, self._options.pixels or "bgr255", stretched=False)
        label, metadata = self.path.name, self._backend.metadata
        return read_layout(label, outputs, self.size_wh, metadata, self._options)

    def _run(
        self, image: Image, pixels: Pixels, stretched: bool
    ) -> tuple[Outputs, NDArray[np.float64]]:
        """Network outputs, and the (2,) input pixels a frame pixel along x and y."""
        height, width = image.shape[:2]
        if stretched:
            canvas = cast(Image, cv2.resize(image, self.size_wh, interpolation=cv2.INTER_LINEAR))
            scale_xy = np.array(self.size_wh) / (width, height)
        else:
            canvas, scale = letterbox(image, self.size_wh, _PAD_VALUE)
            scale_xy = np.array([scale, scale])
        (name,) = self._backend.inputs
        return self._backend.run({name: _tensor(canvas, pixels).astype(self._type)}), scale_xy

    def _decode(self, outputs: Outputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        layout, person = self.reading.layout, self.reading.person_class
        if layout == "detr":
            boxes, logits = sorted(outputs.values(), key=lambda output: output.shape[2] != 4)
            return decode_detr(boxes, logits, self.size_wh, person, self.threshold)
        (output,) = outputs.values()
        if layout == "end2end":
            return decode_end2end(output, person, self.threshold)
        return decode_yolo(output, layout, self.size_wh, person, self.threshold)


def _tensor(canvas: Image, pixels: Pixels) -> NDArray[np.float32]:
    """(H, W, 3) BGR bytes → (1, 3, H, W) as the network was trained."""
    planes = np.asarray(canvas, dtype=np.float32)
    if pixels != "bgr255":
        planes = planes[:, :, ::-1] / np.float32(255)
    if pixels == "rgb-imagenet":
        mean, std = (np.asarray(v, np.float32) for v in (IMAGENET_MEAN_RGB, IMAGENET_STD_RGB))
        planes = (planes - mean) / std
    return np.ascontiguousarray(planes.transpose(2, 0, 1)[None])


def _type(backend: Backend) -> np.dtype[Any]:
    given = backend.input_types.get(backend.inputs[0], "tensor(float)")
    if given not in _TYPES:
        raise ArtifactError(
            f"{backend.path.name} takes {given}; expected float32 or float16 pixels of a detector"
        )
    return np.dtype(_TYPES[given])


def _size(backend: Backend, options: DetectorOptions) -> tuple[int, int]:
    """Input (width, height), from the graph, the options or Ultralytics' metadata."""
    label = Path(backend.path).name
    if len(backend.inputs) != 1:
        raise ArtifactError(f"{label} has inputs {backend.inputs}; expected one image")
    shape = backend.input_shapes.get(backend.inputs[0])
    if shape is not None and (len(shape) != 4 or shape[1] not in (3, None)):
        raise ArtifactError(f"{label} has input {list(shape)}; expected [1, 3, height, width]")
    height, width = (None, None) if shape is None else shape[2:]
    if height is not None and width is not None:
        if options.size_wh not in (None, (width, height)):
            raise ArtifactError(f"{label} takes {width} x {height}, size_wh is {options.size_wh}")
        return width, height
    if options.size_wh is not None:
        return options.size_wh
    try:
        height, width = ast.literal_eval(backend.metadata.get("imgsz", ""))
        return int(width), int(height)
    except (SyntaxError, TypeError, ValueError):
        raise ArtifactError(
            f"{label} leaves the size of its input open; pass "
            f"detector_options=DetectorOptions(size_wh=(640, 640))"
        ) from None
