"""Raw outputs of person detectors → boxes, scores and classes.

    yolox          [1, M, 5 + C]  cx, cy in cells, log w, h of each grid cell; objectness; classes
    yolox-decoded  [1, M, 5 + C]  cx, cy, w, h in input pixels; objectness; classes
    yolov5         [1, 3 M, 5 + C]  the same, three anchors a cell
    yolov8         [1, 4 + C, M]  cx, cy, w, h in input pixels; classes (also YOLO11, YOLO26 raw)
    detr           [1, N, 4] as cx, cy, w, h in [0, 1], and logits [1, N, C]
    end2end        [1, N, 6]  x1, y1, x2, y2 in input pixels, score, class

M counts the cells of the strides 8, 16, 32 (and 64). Scores of the YOLO layouts are probabilities
already. Sources: the exporters of Megvii's YOLOX (Ge et al., 2021) and of Ultralytics.

RF-DETR stretches the picture to the input instead of letterboxing it, and a query's score is the
sigmoid of its person logit; its 91 columns are COCO's category ids, in which a person is 1.
YOLOv10, YOLO26 and other YOLOs with `nms=True` export end-to-end; there is no suppression to do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.detectors.base import Layout
from cfpose_sdk.errors import ArtifactError

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_MOST_RAW = 8  # cells: raw offsets stay well below, decoded centres reach across the picture


def strides_of(size_wh: tuple[int, int], count: int) -> tuple[int, ...] | None:
    """The strides whose cells make up `count` rows; None when none do."""
    for strides in _STRIDES:
        if count == sum((size_wh[0] // s) * (size_wh[1] // s) for s in strides):
            return strides
    return None


def decode_yolo(
    output: NDArray[np.floating],
    layout: Layout,
    size_wh: tuple[int, int],
    person_class: int,
    threshold: float,
) -> tuple[Float64, Float64]:
    """(1, …) output → boxes (N, 4) xyxy in input pixels, scores (N,) ≥ threshold.

    Raises ArtifactError when a raw YOLOX has not one row for each cell of an input of this size.
    """
    rows = output[0].T if layout == "yolov8" else output[0]
    if layout == "yolov8":
        scores = rows[:, 4 + person_class].astype(np.float64)
    else:
        scores = rows[:, 4].astype(np.float64) * rows[:, 5 + person_class]
    kept = np.flatnonzero(scores >= threshold)
    cxcywh = rows[kept, :4].astype(np.float64)
    if layout == "yolox":
        levels = strides_of(size_wh, len(rows))
        if levels is None:
            raise ArtifactError(
                f"a YOLOX of input {size_wh[0]} x {size_wh[1]} cannot have {len(rows)} rows, one a "
                f"cell; give the size that it was exported for"
            )
        cells, strides = _grid(size_wh, levels)
        cxcywh[:, :2] = (cxcywh[:, :2] + cells[kept]) * strides[kept, None]
        cxcywh[:, 2:] = np.exp(cxcywh[:, 2:]) * strides[kept, None]
    return centred_to_corners(cxcywh), scores[kept]


def centred_to_corners(cxcywh: Float64) -> Float64:
    """(N, 4) cx, cy, w, h → x1, y1, x2, y2."""
    half = cxcywh[:, 2:] / 2
    return np.concatenate([cxcywh[:, :2] - half, cxcywh[:, :2] + half], axis=1)


def is_decoded(output: NDArray[np.floating], size_wh: tuple[int, int]) -> bool | None:
    """Whether a YOLOX output holds pixels (True) or cell offsets (False); None: neither fits.

    The centres of all cells together span the picture when decoded, and a few cells when raw.
    """
    centres = np.abs(output[0, :, :2].astype(np.float64))
    if centres.max() < _MOST_RAW:
        return False
    return True if (centres.max(axis=0) > np.array(size_wh) / 2).all() else None


def _grid(size_wh: tuple[int, int], strides: tuple[int, ...]) -> tuple[Float64, Float64]:
    """(M, 2) x, y of each cell and (M,) its stride, row by row, fine to coarse."""
    cells, steps = [], []
    for stride in strides:
        y, x = np.mgrid[: size_wh[1] // stride, : size_wh[0] // stride]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        steps.append(np.full(len(cells[-1]), stride))
    return np.concatenate(cells).astype(np.float64), np.concatenate(steps).astype(np.float64)


def decode_detr(
    boxes: NDArray[np.floating],
    logits: NDArray[np.floating],
    size_wh: tuple[int, int],
    person_class: int,
    threshold: float,
) -> tuple[Float64, Float64]:
    """Boxes (N, 4) xyxy in input pixels and scores (N,) ≥ threshold."""
    scores = 1 / (1 + np.exp(-logits[0, :, person_class].astype(np.float64)))
    kept = scores >= threshold
    return centred_to_corners(boxes[0, kept].astype(np.float64) * np.tile(size_wh, 2)), scores[kept]


def decode_end2end(
    output: NDArray[np.floating], person_class: int, threshold: float
) -> tuple[Float64, Float64]:
    """(1, N, 6) → boxes (N, 4) xyxy in input pixels, scores (N,) ≥ threshold, of people."""
    rows = output[0].astype(np.float64)
    kept = (rows[:, 4] >= threshold) & (np.round(rows[:, 5]) == person_class)
    return rows[kept, :4], rows[kept, 4]
