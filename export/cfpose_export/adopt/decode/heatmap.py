"""Heatmaps [N, K, h, w] → coordinates in crop pixels: the decode subgraph.

The peak of each map, moved by a quarter of a pixel towards the larger neighbour (Newell et al.,
ECCV 2016), or to the maximum of a Gaussian through its neighbours: DARK (Zhang et al., CVPR 2020)
with differences two pixels wide, or as UDP's authors write it (Huang et al., CVPR 2020), one pixel
wide; or to the centroid within the window of `cfpose_sdk.keypoints`, in two dimensions. All is
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from cfpose_export.adopt.decode.text import fragment
from cfpose_sdk.keypoints import AREA_SHARE, MIN_AREA_PX, WINDOW_STEPS
from cfpose_sdk.spec import Reading

FLOORS = {"dark": 1e-10, "dark-udp": 1e-3}  # of a map before its logarithm, as the authors have it
CEILING = 50.0
MAX_STEP = 2.0  # map pixels from the peak; a Gaussian through noise may lie anywhere
_TINY = 1e-12
# points of the differences, (x, y)
_STAR = (
    (0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (2, 0), (-2, 0), (0, 2), (0, -2),
    (1, 1), (-1, 1), (1, -1), (-1, -1),
)  # fmt: skip
_SQUARE = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))
_CROSS = ((1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class Maps:
    """What the decoder must know: the maps' size, the crop pixels a map pixel, the method."""

    joints: int
    size_wh: tuple[int, int]
    stride_xy: tuple[float, float]
    decode: Reading
    blur: tuple[int, float] = (1, 1.0)
    windows: tuple[float, ...] = ()  # of `window`, for a person of area 1


def heatmap_decoder(maps: Maps) -> onnx.GraphProto:
    """`maps` → `xy`, `coarse_xy` [N, K, 2] crop pixels, `score` [N, K], `variances` [N, K, 2]."""
    width, height = maps.size_wh
    lines = [
        "flat = Reshape(maps, flat_shape)",
        "top = ReduceMax <keepdims = 1> (flat, axis2)",
        "score = Squeeze(top, axis2)",
        "peak = ArgMax <axis = 2, keepdims = 1> (flat)",
        "column = Mod(peak, map_width)",
        "row = Div(peak, map_width)",
        "column_f = Cast <to = 1> (column)",
        "row_f = Cast <to = 1> (row)",
        "at = Concat <axis = 2> (column_f, row_f)",
        "coarse_xy = Mul(at, stride)",
        *_refinement(maps),
        "xy = Mul(refined, stride)",
        *_SPREAD,
    ]
    constants = {
        "flat_shape": [0, maps.joints, width * height], "axis2": [2], "axis3": [3],
        "map_width": width, "map_height": height, "last_column": width - 1,
        "last_row": height - 1, "stride": np.array(maps.stride_xy, dtype=float),
        "cell": np.square(maps.stride_xy) / 12.0, "area": np.square(maps.stride_xy) * 1.0,
        "tiny": _TINY,
        "columns": np.arange(width).reshape(1, 1, -1) * 1.0,
        "rows": np.arange(height).reshape(1, 1, -1) * 1.0, "first": [0], "second": [1],
        **_constants(maps),
    }  # fmt: skip
    shape = f"N, {maps.joints}, {height}, {width}"
    outputs = "float[N, K, 2] xy, float[N, K, 2] coarse_xy, float[N, K] score, "
    return fragment(lines, f"float[{shape}] maps", outputs + "float[N, K, 2] variances", constants)


# moments of the squared map, whose noise is small, about the keypoint; a pixel is a uniform cell
_SPREAD = (
    "positive = Relu(maps)",
    "power = Mul(positive, positive)",
    "mass_x = ReduceSum <keepdims = 0> (power, axis2)",
    "mass_y = ReduceSum <keepdims = 0> (power, axis3)",
    "mass = ReduceSum <keepdims = 1> (mass_x, axis2)",
    "mass_safe = Max(mass, tiny)",
    "mean_x = Gather <axis = 2> (refined, first)",
    "mean_y = Gather <axis = 2> (refined, second)",
    "from_x = Sub(columns, mean_x)",
    "from_y = Sub(rows, mean_y)",
    "square_x = Mul(from_x, from_x)",
    "square_y = Mul(from_y, from_y)",
    "weighed_x = Mul(square_x, mass_x)",
    "weighed_y = Mul(square_y, mass_y)",
    "sum_x = ReduceSum <keepdims = 1> (weighed_x, axis2)",
    "sum_y = ReduceSum <keepdims = 1> (weighed_y, axis2)",
    "sums = Concat <axis = 2> (sum_x, sum_y)",
    "moments = Div(sums, mass_safe)",
    "moments_px = Mul(moments, area)",
    "variances = Add(moments_px, cell)",
)


def blur_matrix(length: int, kernel: int, sigma: float, *, mirrored: bool) -> NDArray[np.float64]:
    """(length, length): `map @ matrix` blurs an axis by a Gaussian of `kernel` pixels.

    Beyond the border there is nothing, or the map mirrored about its edge.
    """
    reach = kernel // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((length, length))
    for target in range(length):
        for step, weight in zip(range(-reach, reach + 1), weights, strict=True):
            source = target + step
            if mirrored:
                source %= 2 * length
                source = min(source, 2 * length - 1 - source)
            if 0 <= source < length:
                matrix[source, target] += weight
    return matrix


def _refinement(maps: Maps) -> list[str]:
    """The lines that make `refined`, in map pixels, from `at`."""
    if maps.decode == "argmax":
        return ["refined = Identity(at)"]
    if maps.decode == "window":
        return _window_lines()
    inside = [] if maps.decode == "dark-udp" else _inside_lines()
    if maps.decode == "shift":
        return [
            *_neighbour_lines("flat"), *inside,
            "slopes = Sign(differences)",
            "steps_in = Mul(slopes, inside)",
            "steps = Mul(steps_in, quarter)",
            "refined = Add(at, steps)",
        ]  # fmt: skip
    ceiling = ["smooth = Min(floored, ceiling)"] if maps.decode == "dark-udp" else []
    return [
        "blurred_x = MatMul(maps, blur_x)",
        "turned = Transpose <perm = [0, 1, 3, 2]> (blurred_x)",
        "blurred_y = MatMul(turned, blur_y)",
        "blurred = Transpose <perm = [0, 1, 3, 2]> (blurred_y)",
        "floored = Max(blurred, floor)",
        *(ceiling or ["smooth = Identity(floored)"]),
        "logs = Log(smooth)",
        "flat_logs = Reshape(logs, flat_shape)",
        *_neighbour_lines("flat_logs"),
        *inside,
        *_newton_lines(bool(inside)),
    ]


def _neighbour_lines(values: str) -> list[str]:
    """`differences` [N, K, D] of the values around the peak, borders repeated."""
    return [
        "columns_free = Add(column, points_x)",
        "rows_free = Add(row, points_y)",
        "columns_low = Max(columns_free, nought)",
        "rows_low = Max(rows_free, nought)",
        "columns_near = Min(columns_low, last_column)",
        "rows_near = Min(rows_low, last_row)",
        "row_starts = Mul(rows_near, map_width)",
        "places = Add(row_starts, columns_near)",
        f"near = GatherElements <axis = 2> ({values}, places)",
        "near4 = Unsqueeze(near, axis2)",
        "weighted = Mul(near4, stencil)",
        "differences = ReduceSum <keepdims = 0> (weighted, axis3)",
    ]


def _inside_lines() -> list[str]:
    """`inside` [N, K, 1], 1 where the neighbours lie within the map."""
    return [
        "after_left = Greater(column_f, border)",
        "after_top = Greater(row_f, border)",
        "before_right = Less(column_f, right_border)",
        "before_bottom = Less(row_f, bottom_border)",
        "inside_x = And(after_left, before_right)",
        "inside_y = And(after_top, before_bottom)",
        "inside_xy = And(inside_x, inside_y)",
        "inside = Cast <to = 1> (inside_xy)",
    ]


def _newton_lines(guarded: bool) -> list[str]:
    """The step to the maximum of the parabola that the differences describe."""
    slots = ("dx", "dy", "dxx", "dyy", "dxy")
    return [
        *(f"{name} = Gather <axis = 2> (differences, slot{n})" for n, name in enumerate(slots)),
        "straight = Mul(dxx, dyy)",
        "crossed = Mul(dxy, dxy)",
        "determinant = Sub(straight, crossed)",
        "is_flat = Equal(determinant, none)",
        "divisor = Where(is_flat, whole, determinant)",
        "x1 = Mul(dxy, dy)",
        "x2 = Mul(dyy, dx)",
        "x_part = Sub(x1, x2)",
        "y1 = Mul(dxy, dx)",
        "y2 = Mul(dxx, dy)",
        "y_part = Sub(y1, y2)",
        "parts = Concat <axis = 2> (x_part, y_part)",
        "newton = Div(parts, divisor)",
        "newton_low = Max(newton, step_low)",
        "newton_step = Min(newton_low, step_high)",
        "steps = Where(is_flat, none, newton_step)",
        *(
            ["steps_in = Mul(steps, inside)", "refined = Add(at, steps_in)"]
            if guarded
            else ["refined = Add(at, steps)"]
        ),
    ]


def _window_lines() -> list[str]:
    """Mean shift under Gaussian windows as wide as OKS forgives each joint of this person."""
    lines = [
        "likely = Relu(maps)",
        "axis_high = ReduceMax <keepdims = 1> (coarse_xy, axis1)",
        "axis_low = ReduceMin <keepdims = 1> (coarse_xy, axis1)",
        "extent = Sub(axis_high, axis_low)",
        "rectangle = ReduceProd <keepdims = 1> (extent, axis2)",
        "person = Mul(rectangle, area_share)",
        "person_area = Max(person, least_area)",
        "person_side = Sqrt(person_area)",
        "width_px = Mul(person_side, windows)",
        "width_map = Div(width_px, stride)",
        "width_safe = Max(width_map, least_width)",
        "width_x = Gather <axis = 2> (width_safe, first)",
        "width_y = Gather <axis = 2> (width_safe, second)",
        "c0x = Identity(column_f)",
        "c0y = Identity(row_f)",
    ]
    for n in range(WINDOW_STEPS):
        for axis, places in (("x", "columns"), ("y", "rows")):
            lines += [
                f"o{n}{axis} = Sub({places}, c{n}{axis})",
                f"s{n}{axis} = Div(o{n}{axis}, width_{axis})",
                f"q{n}{axis} = Mul(s{n}{axis}, s{n}{axis})",
                f"e{n}{axis} = Mul(q{n}{axis}, minus_half)",
                f"w{n}{axis} = Exp(e{n}{axis})",
            ]
        lines += [
            f"w{n}x4 = Unsqueeze(w{n}x, axis2)",
            f"w{n}y4 = Unsqueeze(w{n}y, axis3)",
            f"n{n}y = Mul(likely, w{n}y4)",
            f"n{n} = Mul(n{n}y, w{n}x4)",
            f"m{n}x = ReduceSum <keepdims = 0> (n{n}, axis2)",
            f"m{n}y = ReduceSum <keepdims = 0> (n{n}, axis3)",
            f"m{n} = ReduceSum <keepdims = 1> (m{n}x, axis2)",
            f"t{n} = Max(m{n}, tiny)",
        ]
        for axis in "xy":
            lines += [
                f"p{n}{axis} = Mul(m{n}{axis}, o{n}{axis})",
                f"r{n}{axis} = ReduceSum <keepdims = 1> (p{n}{axis}, axis2)",
                f"d{n}{axis} = Div(r{n}{axis}, t{n})",
                f"c{n + 1}{axis} = Add(c{n}{axis}, d{n}{axis})",
            ]
    return [*lines, f"refined = Concat <axis = 2> (c{WINDOW_STEPS}x, c{WINDOW_STEPS}y)"]


def _constants(maps: Maps) -> dict[str, object]:
    width, height = maps.size_wh
    if maps.decode == "window":
        return {
            "axis1": [1], "area_share": AREA_SHARE, "least_area": MIN_AREA_PX, "minus_half": -0.5,
            "windows": np.asarray(maps.windows).reshape(1, -1, 1), "least_width": 1.0,
        }  # fmt: skip
    points, stencil = stencil_of(maps.decode)
    border = 1.0
    outer = 2 if maps.decode == "dark" else 1
    found: dict[str, object] = {
        "points_x": np.array([x for x, _ in points]).reshape(1, 1, -1),
        "points_y": np.array([y for _, y in points]).reshape(1, 1, -1),
        "stencil": stencil, "nought": 0, "none": 0.0, "whole": 1.0, "quarter": 0.25,
        "border": border, "right_border": width - outer * 1.0,
        "bottom_border": height - outer * 1.0, "step_low": -MAX_STEP, "step_high": MAX_STEP,
        "ceiling": CEILING, **{f"slot{n}": [n] for n in range(5)},
    }  # fmt: skip
    if maps.decode in FLOORS:
        kernel, sigma = maps.blur
        mirrored = maps.decode == "dark-udp"
        found["floor"] = FLOORS[maps.decode]
        found["blur_x"] = blur_matrix(width, kernel, sigma, mirrored=mirrored)
        found["blur_y"] = blur_matrix(height, kernel, sigma, mirrored=mirrored)
    return found


def stencil_of(decode: Reading) -> tuple[Sequence[tuple[int, int]], NDArray[np.float64]]:
    """Points (x, y) around a peak, and the (D, P) weights of the differences over them.

    Of DARK: d/dx, d/dy, d²/dx², d²/dy², d²/dxdy. Of the quarter shift: right − left, below − above.
    """
    if decode == "shift":
        return _CROSS, np.array([[1.0, -1, 0, 0], [0, 0, 1.0, -1]])
    half, quarter = 0.5, 0.25
    if decode == "dark":
        stencil = np.zeros((5, len(_STAR)))
        stencil[0, 1:3] = stencil[1, 3:5] = half, -half
        stencil[2, [0, 5, 6]] = stencil[3, [0, 7, 8]] = -half, quarter, quarter
        stencil[4, 9:13] = quarter, -quarter, -quarter, quarter
        return _STAR, stencil
    stencil = np.zeros((5, len(_SQUARE)))
    stencil[0, 1:3] = stencil[1, 3:5] = half, -half
    stencil[2, :3] = stencil[3, [0, 3, 4]] = -2.0, 1.0, 1.0
    stencil[4] = np.array([2.0, -1, -1, -1, -1, 1, 1]) * half
    return _SQUARE, stencil
