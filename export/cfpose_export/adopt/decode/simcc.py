"""SimCC vectors [N, K, W·r] and [N, K, H·r] → coordinates in crop pixels: the decode subgraph.

Bin i of an axis stands for the coordinate i / r (Li et al., SimCC, ECCV 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from cfpose_export.adopt.decode.text import fragment
from cfpose_export.adopt.presets import Score, Values
from cfpose_sdk.keypoints import SUBBIN_RADIUS_PX, SUBBIN_STEPS
from cfpose_sdk.spec import Reading

_TINY = 1e-12


@dataclass(frozen=True)
class Vectors:
    """What the decoder must know: joints, bins along x and y, and how they are read."""

    joints: int
    bins_xy: tuple[int, int]
    split_ratio: float
    decode: Reading
    values: Values
    score: Score = "min"
    temperature: float = 1.0


def simcc_decoder(vectors: Vectors) -> onnx.GraphProto:
    """`x`, `y` → `xy`, `coarse_xy` [N, K, 2] crop pixels, `score` [N, K], `variances` [N, K, 2]."""
    lines = [line for axis in "xy" for line in _axis_lines(axis, vectors)]
    lines += [
        "coarse_xy = Concat <axis = 2> (bin_x, bin_y)",
        "xy = Concat <axis = 2> (at_x, at_y)",
        "variances = Concat <axis = 2> (variance_x, variance_y)",
        {
            "min": "score3 = Min(peak_x, peak_y)",
            "max": "score3 = Max(peak_x, peak_y)",
            "mean": "score3 = Mean(peak_x, peak_y)",
        }[vectors.score],
        "score = Squeeze(score3, axis2)",
    ]
    radius = SUBBIN_RADIUS_PX * vectors.split_ratio
    constants: dict[str, Any] = {
        "axis2": [2], "tiny": _TINY, "inverse": 1 / vectors.split_ratio, "radius": radius,
        "hotter": 1 / vectors.temperature, "whole": 1.0, "none": 0.0,
        "cell": 1 / (12 * vectors.split_ratio**2), "per_radius": 1 / radius,
    }  # fmt: skip
    for axis, bins in zip("xy", vectors.bins_xy, strict=True):
        constants[f"places_{axis}"] = np.arange(bins).reshape(1, 1, -1) * 1.0
        constants[f"near_{axis}"] = np.arange(bins).reshape(1, 1, -1) / radius
    inputs = ", ".join(
        f"float[N, {vectors.joints}, {bins}] {axis}"
        for axis, bins in zip("xy", vectors.bins_xy, strict=True)
    )
    outputs = "float[N, K, 2] xy, float[N, K, 2] coarse_xy, float[N, K] score, "
    return fragment(lines, inputs, outputs + "float[N, K, 2] variances", constants)


def _axis_lines(a: str, vectors: Vectors) -> list[str]:
    """From a vector to `bin_a`, `at_a`, `peak_a` and `variance_a` [N, K, 1]."""
    if vectors.values == "probabilities":
        mass = [
            f"positive_{a} = Relu({a})",
            f"total_{a} = ReduceSum <keepdims = 1> (positive_{a}, axis2)",
            f"safe_{a} = Max(total_{a}, tiny)",
            f"mass_{a} = Div(positive_{a}, safe_{a})",
        ]
    else:
        mass = [f"hot_{a} = Mul({a}, hotter)", f"mass_{a} = Softmax <axis = 2> (hot_{a})"]
    scored = f"mass_{a}" if vectors.values == "logits" else a
    return [
        *mass,
        f"peak_{a} = ReduceMax <keepdims = 1> ({scored}, axis2)",
        f"winner_{a} = ArgMax <axis = 2, keepdims = 1> ({a})",
        f"winner_{a}_f = Cast <to = 1> (winner_{a})",
        f"bin_{a} = Mul(winner_{a}_f, inverse)",
        *_subbin_lines(a, vectors.decode),
        f"places_{a}_px = Mul(places_{a}, inverse)",
        f"from_{a} = Sub(places_{a}_px, at_{a})",
        f"square_{a} = Mul(from_{a}, from_{a})",
        f"weighed_{a} = Mul(mass_{a}, square_{a})",
        f"moment_{a} = ReduceSum <keepdims = 1> (weighed_{a}, axis2)",
        f"variance_{a} = Add(moment_{a}, cell)",
    ]


def _subbin_lines(a: str, decode: Reading) -> list[str]:
    """`at_a` in pixels: the winning bin, or the centroid that mean shift finds from there."""
    if decode == "argmax":
        return [f"at_{a} = Identity(bin_{a})"]
    lines = [f"c0_{a} = Mul(winner_{a}_f, per_radius)"]
    for n in range(SUBBIN_STEPS):
        # moving by the mean offset, not to the mean bin, keeps float32 exact far from bin 0
        lines += [
            f"o{n}_{a} = Sub(near_{a}, c{n}_{a})",
            f"q{n}_{a} = Mul(o{n}_{a}, o{n}_{a})",
            f"k{n}_{a} = Sub(whole, q{n}_{a})",
            f"w{n}_{a} = Max(k{n}_{a}, none)",
            f"m{n}_{a} = Mul(mass_{a}, w{n}_{a})",
            f"p{n}_{a} = Mul(m{n}_{a}, o{n}_{a})",
            f"s{n}_{a} = ReduceSum <keepdims = 1> (p{n}_{a}, axis2)",
            f"t{n}_{a} = ReduceSum <keepdims = 1> (m{n}_{a}, axis2)",
            f"u{n}_{a} = Max(t{n}_{a}, tiny)",
            f"d{n}_{a} = Div(s{n}_{a}, u{n}_{a})",
            f"c{n + 1}_{a} = Add(c{n}_{a}, d{n}_{a})",
        ]
    return [*lines, f"b_{a} = Mul(c{SUBBIN_STEPS}_{a}, radius)", f"at_{a} = Mul(b_{a}, inverse)"]
