"""Person boxes: xyxy, continuous edges in pixels (COCO's x, y, x + w, y + h verbatim)."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import BoxError
from cfpose_sdk.media.image import Image

_FARTHEST = 1e9  # pixels; no photo is as wide, and float32 sums stay exact enough to be finite
_MOST = 1 << 24  # numbers of all boxes of an image


def check_boxes(boxes: object) -> Float64:
    """Return (N, 4) xyxy boxes as float64; an empty list gives (0, 4).

    Raises BoxError when the shape is another, a number is not finite, or a box has no area.
    """
    array = box_array(boxes)
    if array.shape in ((0,), (0, 4)):
        return np.zeros((0, 4))
    if array.dtype.kind not in "iuf":
        raise BoxError(f"boxes must be numbers, got {array.dtype} from {type(boxes).__name__}")
    if array.shape == (4,):
        raise BoxError("boxes must have shape (N, 4), got (4,); pass one box as [box]")
    if array.ndim != 2 or array.shape[1] != 4:
        raise BoxError(f"boxes must have shape (N, 4) as x1, y1, x2, y2, got {array.shape}")
    xyxy = array.astype(np.float64)
    near = (np.abs(xyxy) <= _FARTHEST).all(axis=1)  # NaN is not
    _raise_at(~near, xyxy, f"must be finite, within {_FARTHEST:g} pixels of the image's corner")
    flat = (xyxy[:, 2:] <= xyxy[:, :2]).any(axis=1)
    _raise_at(flat, xyxy, "must have x2 > x1 and y2 > y1 (xyxy, not xywh)")
    return xyxy


def box_array(boxes: object) -> NDArray[Any]:
    """Boxes as NumPy has them, of any shape: from arrays, lists, and torch tensors on any device,
    of any type, with or without a gradient. Raises BoxError for what NumPy does not take.
    """
    try:
        array = np.asarray(_on_host(boxes))
    except Exception as error:  # whatever the object's own conversion raises
        raise BoxError(
            f"boxes must be an (N, 4) array of x1, y1, x2, y2, got {type(boxes).__name__} that "
            f"NumPy does not take: {error}"
        ) from error
    if array.size > _MOST:  # a view may repeat one number as often as it likes
        raise BoxError(f"boxes must be {_MOST} numbers at most, got shape {array.shape}")
    return array


def _on_host(value: Any) -> Any:
    """Tensors, also in lists, as float arrays in the memory that NumPy reaches."""
    if isinstance(value, list | tuple):
        return [_on_host(each) for each in value]
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        host = value.detach().cpu()
        try:
            return np.asarray(host)
        except TypeError:  # bfloat16
            return np.asarray(host.float())
    return value


def iou_matrix(first: ArrayLike, second: ArrayLike) -> Float64:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes; 0 where both are empty."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(-1, 4)
    width, height = (
        np.minimum.outer(a[:, 2 + axis], b[:, 2 + axis]) - np.maximum.outer(a[:, axis], b[:, axis])
        for axis in (0, 1)
    )
    overlap = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union = np.add.outer(_area(a), _area(b)) - overlap
    iou: Float64 = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def nms(boxes: ArrayLike, scores: ArrayLike, iou: float) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices of the boxes to keep, by falling score.

    A box goes when it overlaps a kept one by more than `iou`; of equal scores the first wins.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    apart = iou_matrix(boxes, boxes) <= iou
    alive = np.ones(len(order), dtype=bool)
    kept = []
    for index in order.tolist():
        if alive[index]:
            kept.append(index)
            alive &= apart[index]
    return np.asarray(kept, dtype=np.intp)


def fitting(shape: tuple[int, ...], size_wh: tuple[int, int]) -> float:
    """Letterbox pixels a pixel of a (h, w, …) picture."""
    return min(size_wh[0] / shape[1], size_wh[1] / shape[0])


CUT_MULTIPLE = 64  # of a cut letterbox's sides: a multiple of every finder's coarsest cell


def letterbox(
    image: Image, size_wh: tuple[int, int], pad_value: int, *, cut: bool = False
) -> tuple[Image, float]:
    """Fit (h, w, 3) into a (H, W, 3) canvas, aspect true, at the top left; also returns the scale.

    Frame coordinates are letterbox coordinates / scale: edges of pixels meet edges, nothing is
    shifted. Rounding the picture to whole pixels moves its far edge by half a pixel at most.
    `cut` leaves out the margin beyond the next multiple of CUT_MULTIPLE behind the picture.
    """
    width, height = size_wh
    h, w = image.shape[:2]
    scale = fitting(image.shape, size_wh)
    fitted_wh = (max(1, round(w * scale)), max(1, round(h * scale)))
    if cut:
        width, height = (
            min(side, math.ceil(fitted / CUT_MULTIPLE) * CUT_MULTIPLE)
            for side, fitted in zip(size_wh, fitted_wh, strict=True)
        )
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[fitted_wh[1] :], canvas[:, fitted_wh[0] :] = pad_value, pad_value
    cv2.resize(image, fitted_wh, dst=canvas[: fitted_wh[1], : fitted_wh[0]], interpolation=how)
    return canvas, scale


def _area(boxes: Float64) -> Float64:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    area: Float64 = sides[:, 0] * sides[:, 1]
    return area


def _raise_at(bad: NDArray[np.bool_] | np.bool_, boxes: Float64, rule: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise BoxError(f"box {row} {rule}, got {boxes[row].tolist()}")
