"""The float64 reference of the frame graph's sampler, straight from `cfpose_sdk.crops`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfpose_sdk.crops import crop_transforms, invert_transforms, transform_points

Float64 = NDArray[np.float64]


def sample_crops(
    frame: NDArray[np.uint8],
    boxes: ArrayLike,
    size_wh: tuple[int, int],
    box_scale: float,
    antialias: int = 1,
) -> Float64:
    """(N, H, W, 3) unrounded crops of one (h, w, 3) frame for (N, 4) xyxy boxes.

    Bilinear, black outside the frame. With `antialias` s > 1 each crop pixel is the mean of s × s
    samples, evenly spaced over a square of side √((step² − 2) / (1 − 1 / s²)) frame pixels, where
    `step` is the frame pixels a crop pixel; a single sample where that root is not real.
    """
    width, height = size_wh
    back = invert_transforms(crop_transforms(boxes, size_wh, box_scale))
    v, u = np.mgrid[:height, :width]
    lattice = np.stack([u, v], axis=-1).reshape(1, -1, 2)
    points = transform_points(back, np.broadcast_to(lattice, (len(back), *lattice.shape[1:])))
    total = np.zeros((len(back), height * width, 3))
    step = back[:, 0, 0]
    reach = np.zeros_like(step)
    if antialias > 1:
        reach = np.sqrt(np.maximum(step**2 - 2, 0) / (1 - 1 / antialias**2))
    places = (np.arange(antialias) + 0.5) / antialias - 0.5
    for dy in places:
        for dx in places:
            moved = points + (reach[:, None] * np.array([dx, dy]))[:, None]
            total += _bilinear(frame, moved)
    return total.reshape(len(back), height, width, 3) / antialias**2


def _bilinear(frame: NDArray[np.uint8], points: Float64) -> Float64:
    """(N, P, 3) values of a frame at (N, P, 2) positions; each of the 4 taps outside counts 0."""
    height, width = frame.shape[:2]
    x, y = points[..., 0], points[..., 1]
    total = np.zeros((*x.shape, 3))
    for column in (np.floor(x), np.floor(x) + 1):
        for row in (np.floor(y), np.floor(y) + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * inside
            i = np.clip(column, 0, width - 1).astype(np.int64)
            j = np.clip(row, 0, height - 1).astype(np.int64)
            total += weight[..., None] * frame[j, i]
    return total
