"""The decoders in float64 NumPy, map by map: what the graph must agree with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfpose_export.adopt.decode.heatmap import CEILING, FLOORS, MAX_STEP, Maps, blur_matrix
from cfpose_export.adopt.decode.simcc import Vectors
from cfpose_sdk.arrays import Float64
from cfpose_sdk.keypoints import (
    SUBBIN_RADIUS_PX,
    SUBBIN_STEPS,
    WINDOW_STEPS,
    person_area,
)


class Decoded(NamedTuple):
    """(N, K, 2) keypoints and their start in crop pixels, (N, K) raw scores."""

    xy: Float64
    coarse: Float64
    score: Float64


def decode_maps(values: NDArray[np.floating], maps: Maps) -> Decoded:
    """(N, K, h, w) heatmaps."""
    heat = np.asarray(values, np.float64)
    width, _ = maps.size_wh
    flat = heat.reshape(*heat.shape[:2], -1)
    peak = flat.argmax(axis=2)
    at = np.stack([peak % width, peak // width], axis=-1).astype(np.float64)
    stride = np.asarray(maps.stride_xy)
    if maps.decode == "window":
        refined = _centroids(heat, at, maps)
    else:
        refined = np.array(
            [[_refined(m, p, maps) for m, p in zip(*pair, strict=True)]
             for pair in zip(heat, at, strict=True)]
        ).reshape(at.shape)  # fmt: skip
    return Decoded(refined * stride, at * stride, flat.max(axis=2, initial=-np.inf))


def _refined(heat: Float64, at: Float64, maps: Maps) -> Float64:
    """(2,) map pixels of one (h, w) map's keypoint."""
    (width, height), (x, y) = maps.size_wh, (int(v) for v in at)
    if maps.decode == "argmax":
        return at
    if maps.decode == "shift":
        if not (1 < x < width - 1 and 1 < y < height - 1):
            return at
        slope = [heat[y, x + 1] - heat[y, x - 1], heat[y + 1, x] - heat[y - 1, x]]
        quarter: Float64 = at + 0.25 * np.sign(slope)
        return quarter
    mirrored = maps.decode == "dark-udp"
    across, down = (blur_matrix(n, *maps.blur, mirrored=mirrored) for n in (width, height))
    smooth = np.maximum(down.T @ heat @ across, FLOORS[maps.decode])
    logs = np.log(np.minimum(smooth, CEILING) if mirrored else smooth)
    if mirrored:
        logs = np.pad(logs, 1, mode="edge")
        x, y, reach = x + 1, y + 1, 1
    elif not (1 < x < width - 2 and 1 < y < height - 2):
        return at
    else:
        reach = 2
    first = np.array([logs[y, x + 1] - logs[y, x - 1], logs[y + 1, x] - logs[y - 1, x]]) / 2
    here = 2 * logs[y, x]
    xx = (logs[y, x + reach] - here + logs[y, x - reach]) / reach**2
    yy = (logs[y + reach, x] - here + logs[y - reach, x]) / reach**2
    if mirrored:
        corners = logs[y + 1, x + 1] + logs[y - 1, x - 1] + here
        sides = logs[y, x + 1] + logs[y, x - 1] + logs[y + 1, x] + logs[y - 1, x]
        xy = (corners - sides) / 2
    else:
        xy = (logs[y + 1, x + 1] + logs[y - 1, x - 1] - logs[y + 1, x - 1] - logs[y - 1, x + 1]) / 4
    hessian = np.array([[xx, xy], [xy, yy]])
    if np.linalg.det(hessian) == 0:
        return at
    newton: Float64 = np.linalg.solve(hessian, first)
    moved: Float64 = at - newton.clip(-MAX_STEP, MAX_STEP)
    return moved


def _centroids(heat: Float64, at: Float64, maps: Maps) -> Float64:
    stride = np.asarray(maps.stride_xy)
    side = np.sqrt(person_area(at * stride))[:, None] * np.asarray(maps.windows)
    likely, centre = np.maximum(heat, 0), at.copy()
    places = [np.arange(length, dtype=np.float64) for length in maps.size_wh]
    for n, k in np.ndindex(at.shape[:2]):
        widths = np.maximum(side[n, k] / stride, 1.0)
        for _ in range(WINDOW_STEPS):
            across, down = (
                np.exp(-0.5 * ((p - c) / w) ** 2)
                for p, c, w in zip(places, centre[n, k], widths, strict=True)
            )
            near = likely[n, k] * down[:, None] * across
            total = max(near.sum(), 1e-12)
            step = [near.sum(0) @ (places[0] - centre[n, k, 0]),
                    near.sum(1) @ (places[1] - centre[n, k, 1])]  # fmt: skip
            centre[n, k] += np.array(step) / total
    return centre


def decode_vectors(x: NDArray[np.floating], y: NDArray[np.floating], vectors: Vectors) -> Decoded:
    """(N, K, bins) SimCC vectors of both axes."""
    parts = [_axis(np.asarray(values, np.float64), vectors) for values in (x, y)]
    xy, coarse = (np.stack([part[i] for part in parts], axis=-1) for i in range(2))
    peaks = np.stack([part[2] for part in parts])
    scores = {"min": peaks.min(axis=0), "max": peaks.max(axis=0), "mean": peaks.mean(axis=0)}
    return Decoded(xy, coarse, scores[vectors.score])


def _axis(values: Float64, vectors: Vectors) -> tuple[Float64, Float64, Float64]:
    """Coordinate, start and peak of one axis."""
    if vectors.values == "probabilities":
        mass = np.maximum(values, 0)
        mass = mass / np.maximum(mass.sum(-1, keepdims=True), 1e-12)
    else:
        hot = values / vectors.temperature
        mass = np.exp(hot - hot.max(-1, keepdims=True))
        mass /= mass.sum(-1, keepdims=True)
    peak = (mass if vectors.values == "logits" else values).max(-1)
    winner = values.argmax(-1).astype(np.float64)
    centre, bins = winner, np.arange(values.shape[-1])
    if vectors.decode == "subbin":
        for _ in range(SUBBIN_STEPS):
            distance = (bins - centre[..., None]) / (SUBBIN_RADIUS_PX * vectors.split_ratio)
            near = mass * np.maximum(0.0, 1.0 - distance**2)
            centre = (near * bins).sum(-1) / np.maximum(near.sum(-1), 1e-12)
    return centre / vectors.split_ratio, winner / vectors.split_ratio, peak


def decode_triples(values: NDArray[np.floating], size_wh: tuple[int, int]) -> Decoded:
    """(N, 1, K, 3) or (N, K, 3) relative (y, x, score)."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1, 3)
    xy = rows[..., 1::-1] * np.asarray(size_wh)
    return Decoded(xy, xy, rows[..., 2])
