"""Detectors whose boxes are distances from grid points: RTMDet, PicoDet, NanoDet.

    rtmdet    a level: [1, h, w, C + 4], or [1, C, h, w] and [1, 4, h, w]: score logits, and left,
              top, right, bottom in input pixels from (stride · column, stride · row)
    picodet   a level: [1, h·w, C] scores and [1, h·w, 4·B] logits over B distances in cells, from
              the cells' middles; the picture is stretched, not letterboxed
    nanodet   [1, M, C + 4·B]: the same in one; with a stride of 64 (NanoDet-Plus) from the cells'
              corners, without one from their middles
    mmdeploy  [1, N, 5] boxes in input pixels with their score, and [1, N] classes; suppressed

Distances over bins are their mean (generalised focal loss, Li et al., NeurIPS 2020). Sources: the
exporters of MMDetection and MMDeploy, PaddleDetection and NanoDet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.detectors.base import Layout

Outputs = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]
Found = tuple[Float64, Float64]  # boxes (N, 4) xyxy in input pixels, scores (N,)

BINS = 8  # distances 0 to 7 cells
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))


def recognise_levels(
    shapes: Sequence[Shape], size_wh: tuple[int, int], classes: int
) -> Layout | None:
    """The layout of a run's outputs, or None. `classes`: that the file names, 0 where none."""
    if sorted(len(shape) for shape in shapes) == [2, 3]:
        boxes = max(shapes, key=len)
        return "mmdeploy" if boxes[2] == 5 and min(shapes, key=len)[1] == boxes[1] else None
    if all(len(shape) == 4 for shape in shapes) and _rtmdet_levels(shapes, size_wh) is not None:
        return "rtmdet"
    if all(len(shape) == 3 for shape in shapes):
        counts = {sum(_cells(size_wh, s)): s for s in _STRIDES}
        if len(shapes) == 1:
            rest = shapes[0][2] - 4 * BINS
            known = (classes,) if classes else (1, 80)
            return "nanodet" if shapes[0][1] in counts and rest in known else None
        if len(shapes) in (6, 8) and _picodet_levels(shapes, size_wh) is not None:
            return "picodet"
    return None


def classes_of(outputs: Outputs, layout: Layout, size_wh: tuple[int, int]) -> int | None:
    """Number of class columns; None for mmdeploy, which numbers them, and for what does not fit."""
    shapes = [output.shape for output in outputs.values()]
    if layout == "nanodet":
        return int(shapes[0][2]) - 4 * BINS if len(shapes[0]) == 3 else None
    if layout == "picodet":
        levels = _picodet_levels(shapes, size_wh)
        return None if levels is None else int(shapes[levels[0][1]][2])
    rows = _rtmdet_levels(shapes, size_wh) if layout == "rtmdet" else None
    if rows is None:
        return None
    _, scores, distances = rows[0]
    return int(shapes[scores][1] if distances is not None else shapes[scores][3] - 4)


def decode_levels(
    outputs: Outputs,
    layout: Layout,
    size_wh: tuple[int, int],
    person_class: int,
    threshold: float,
) -> Found:
    """Boxes of people with a score ≥ threshold, before suppression."""
    values = list(outputs.values())
    if layout == "mmdeploy":
        boxes, labels = max(values, key=np.ndim)[0], min(values, key=np.ndim)[0]
        kept = (boxes[:, 4] >= threshold) & (np.round(labels) == person_class)
        rows = boxes[kept].astype(np.float64)
        return rows[:, :4], rows[:, 4]
    if layout == "nanodet":
        return _nanodet(values[0][0], size_wh, person_class, threshold)
    shapes = [value.shape for value in values]
    parts = []
    if layout == "picodet":
        for stride, scores, distances in _picodet_levels(shapes, size_wh) or ():
            found = values[scores][0][:, person_class].astype(np.float64)
            reach = _mean_distance(values[distances][0]) * stride
            parts.append(_boxes(size_wh, stride, found, reach, threshold, middle=True))
    else:
        for stride, scores, apart in _rtmdet_levels(shapes, size_wh) or ():
            level = (
                np.moveaxis(values[scores][0], 0, -1) if apart is not None else values[scores][0]
            )
            logits = level[..., person_class].reshape(-1).astype(np.float64)
            away = np.moveaxis(values[apart][0], 0, -1) if apart is not None else level[..., -4:]
            found = 1 / (1 + np.exp(-logits))
            reach = away.reshape(-1, 4).astype(np.float64)
            parts.append(_boxes(size_wh, stride, found, reach, threshold, middle=False))
    return np.concatenate([boxes for boxes, _ in parts]), np.concatenate([s for _, s in parts])


def _nanodet(
    rows: NDArray[np.floating], size_wh: tuple[int, int], person_class: int, threshold: float
) -> Found:
    strides = next(s for s in _STRIDES if sum(_cells(size_wh, s)) == len(rows))
    parts, first = [], 0
    for stride, count in zip(strides, _cells(size_wh, strides), strict=True):
        level = rows[first : first + count].astype(np.float64)
        reach = _mean_distance(level[:, -4 * BINS :]) * stride
        middle = 64 not in strides
        scores = level[:, person_class]
        parts.append(_boxes(size_wh, stride, scores, reach, threshold, middle=middle))
        first += count
    return np.concatenate([boxes for boxes, _ in parts]), np.concatenate([s for _, s in parts])


def _boxes(
    size_wh: tuple[int, int],
    stride: int,
    scores: Float64,
    reach: Float64,
    threshold: float,
    *,
    middle: bool,
) -> Found:
    """Boxes around the grid points of a level, from (M, 4) left, top, right, bottom."""
    columns, rows = (math.ceil(side / stride) for side in size_wh)
    y, x = np.mgrid[:rows, :columns]
    points = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5 * middle) * stride
    kept = np.flatnonzero(scores >= threshold)
    points, reach = points[kept], reach[kept]
    return np.concatenate([points - reach[:, :2], points + reach[:, 2:]], axis=1), scores[kept]


def _mean_distance(logits: NDArray[np.floating]) -> Float64:
    """(M, 4·B) logits over distances → (M, 4) mean distances in cells."""
    values = logits.reshape(len(logits), 4, -1).astype(np.float64)
    mass = np.exp(values - values.max(axis=2, keepdims=True))
    mean: Float64 = (mass @ np.arange(values.shape[2])) / mass.sum(axis=2)
    return mean


def _cells(size_wh: tuple[int, int], strides: Sequence[int]) -> list[int]:
    """Number of cells of each stride; a cell that the picture does not fill counts."""
    return [math.ceil(size_wh[0] / s) * math.ceil(size_wh[1] / s) for s in strides]


def _rtmdet_levels(
    shapes: Sequence[Shape], size_wh: tuple[int, int]
) -> list[tuple[int, int, int | None]] | None:
    """(stride, output of scores, output of distances or None for one output) of each level."""
    levels: list[tuple[int, int, int | None]] = []
    for stride in _STRIDES[0]:
        grid = (math.ceil(size_wh[1] / stride), math.ceil(size_wh[0] / stride))
        whole = [i for i, s in enumerate(shapes) if s[:3] == (1, *grid) and s[3] > 4]
        apart = [i for i, s in enumerate(shapes) if s[0] == 1 and s[2:] == grid]
        distances = [i for i in apart if shapes[i][1] == 4]
        scores = [i for i in apart if shapes[i][1] != 4]
        if len(shapes) == 3 and len(whole) == 1:
            levels.append((stride, whole[0], None))
        elif len(shapes) == 6 and len(distances) == len(scores) == 1:
            levels.append((stride, scores[0], distances[0]))
        else:
            return None
    return levels


def _picodet_levels(
    shapes: Sequence[Shape], size_wh: tuple[int, int]
) -> list[tuple[int, int, int]] | None:
    """(stride, output of scores, output of distances) of each level."""
    levels = []
    for stride in _STRIDES[len(shapes) == 8]:
        (count,) = _cells(size_wh, [stride])
        here = [i for i, shape in enumerate(shapes) if shape[:2] == (1, count)]
        distances = [i for i in here if shapes[i][2] == 4 * BINS]
        scores = [i for i in here if shapes[i][2] != 4 * BINS]
        if not len(distances) == len(scores) == 1:
            return None
        levels.append((stride, scores[0], distances[0]))
    return levels
