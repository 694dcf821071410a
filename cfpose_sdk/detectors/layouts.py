"""Which layout an output has, by its shape; what the shape leaves open is an error, not a guess."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.detectors.base import DetectorOptions, Layout, Pixels
from cfpose_sdk.detectors.decoders import is_decoded, strides_of
from cfpose_sdk.detectors.levels import classes_of, recognise_levels
from cfpose_sdk.errors import ArtifactError

Outputs = Mapping[str, NDArray[Any]]

_COCO_CLASSES, _COCO_PERSON = 80, 0
_DETR_CLASSES, _DETR_PERSON = 91, 1
_PIXELS: dict[Layout, Pixels] = {
    "yolox": "bgr255",
    "yolox-decoded": "bgr255",
    "yolov5": "rgb01",
    "yolov8": "rgb01",
    "end2end": "rgb01",
    "detr": "rgb-imagenet",
    "rtmdet": "bgr-imagenet",
    "mmdeploy": "bgr-imagenet",
    "picodet": "rgb-imagenet",
    "nanodet": "bgr-imagenet",
}
LEVELS: tuple[Layout, ...] = ("rtmdet", "mmdeploy", "picodet", "nanodet")


@dataclass(frozen=True)
class Reading:
    """How a detector's output is read and its input fed."""

    layout: Layout
    person_class: int
    pixels: Pixels


def class_names(metadata: Mapping[str, str]) -> dict[int, str]:
    """Ultralytics' `names` of the classes, {0: 'person', …}; empty where there are none."""
    try:
        names = ast.literal_eval(metadata.get("names", "{}"))
        return {int(number): str(name) for number, name in dict(names).items()}
    except (SyntaxError, TypeError, ValueError):
        return {}


def read_layout(
    label: str,
    outputs: Outputs,
    size_wh: tuple[int, int],
    metadata: Mapping[str, str],
    options: DetectorOptions,
) -> Reading:
    """Recognise the outputs of a run. Raises ArtifactError that names the option to pass."""
    names = class_names(metadata)
    layout = options.layout or _recognise(label, outputs, size_wh, len(names))
    classes = _classes(label, outputs, layout, size_wh)
    person = options.person_class
    if person is None:
        person = _person(label, layout, classes, names)
    if classes is not None and person >= classes:
        raise ArtifactError(f"{label} has {classes} classes, person_class {person} is none of them")
    if options.pixels is None and layout == "detr" and classes != _DETR_CLASSES:
        raise _unclear(label, outputs, "pixels", "it is no RF-DETR with 91 columns")
    return Reading(layout, person, options.pixels or _PIXELS[layout])


def _recognise(label: str, outputs: Outputs, size_wh: tuple[int, int], named: int) -> Layout:
    shapes = [output.shape for output in outputs.values()]
    if layout := recognise_levels(shapes, size_wh, named):
        return layout
    if len(shapes) == 2 and all(len(shape) == 3 for shape in shapes):
        (_, rows, columns), (_, others, width) = sorted(shapes, key=lambda shape: shape[2] != 4)
        if rows == others and columns == 4 and width != 4:
            return "detr"
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 1:
        raise _unclear(label, outputs, "layout", "no known detector has such outputs")
    _, first, second = shapes[0]
    (output,) = outputs.values()
    if strides_of(size_wh, first) and _fits(second - 5, named):
        decoded = is_decoded(output, size_wh)
        if decoded is None:
            raise _unclear(label, outputs, "layout", "neither pixels nor cell offsets fit")
        return "yolox-decoded" if decoded else "yolox"
    if first % 3 == 0 and strides_of(size_wh, first // 3) and _fits(second - 5, named):
        return "yolov5"
    if strides_of(size_wh, second) and _fits(first - 4, named or (1 if first == 5 else 0)):
        return "yolov8"
    gridded = strides_of(size_wh, first) or (first % 3 == 0 and strides_of(size_wh, first // 3))
    if second == 6 and not gridded:
        return "end2end"
    raise _unclear(label, outputs, "layout", "several layouts or none would fit")


def _fits(classes: int, named: int) -> bool:
    """Whether this many class columns are what the metadata names, or COCO's."""
    return classes == (named or _COCO_CLASSES)


def _classes(label: str, outputs: Outputs, layout: Layout, size_wh: tuple[int, int]) -> int | None:
    """Number of class columns; None for end2end and mmdeploy, which give their numbers."""
    shapes = [output.shape for output in outputs.values()]
    if layout in LEVELS:
        if layout != recognise_levels(shapes, size_wh, 0):
            raise ArtifactError(f"{label} has outputs {shapes}; they do not fit layout {layout!r}")
        return classes_of(outputs, layout, size_wh)
    if layout == "detr":
        if len(shapes) != 2:
            raise ArtifactError(f"{label} has {len(shapes)} outputs; layout 'detr' has two")
        return int(max(shapes, key=lambda shape: shape[2] != 4)[2])
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise ArtifactError(f"{label} has outputs {shapes}; layout {layout!r} has one of rank 3")
    if layout == "end2end":
        return None
    columns = shapes[0][1] - 4 if layout == "yolov8" else shapes[0][2] - 5
    if columns < 1:
        raise ArtifactError(f"{label} has output {shapes[0]}, which has no classes as {layout!r}")
    return int(columns)


def _person(label: str, layout: Layout, classes: int | None, names: Mapping[int, str]) -> int:
    people = [number for number, name in names.items() if name.lower() == "person"]
    if len(people) == 1:
        return people[0]
    if not names:
        if classes == 1 or (classes == _COCO_CLASSES and layout != "detr"):
            return _COCO_PERSON
        if layout == "mmdeploy":  # MMDetection's COCO and its person detectors agree
            return _COCO_PERSON
        if classes == _DETR_CLASSES and layout == "detr":
            return _DETR_PERSON
    known = f"names {sorted(names.values())[:8]}" if names else "does not name its classes"
    raise ArtifactError(
        f"{label} {known}, so that the number of the class of people is open; pass "
        f"detector_options=DetectorOptions(person_class=…)"
    )


def _unclear(label: str, outputs: Outputs, option: str, why: str) -> ArtifactError:
    shapes = {name: list(np.shape(output)) for name, output in outputs.items()}
    return ArtifactError(
        f"{label} has outputs {shapes}: {why}; pass detector_options=DetectorOptions({option}=…), "
        f"or wrap it in a function: detector=lambda image: boxes"
    )
