"""MoveNet's coordinates [N, 1, K, 3] = (y, x, score) of the square crop → crop pixels.

Such a network says nothing of a joint's spread, so the variance is what OKS forgives that joint of
that person, (2 sigma)² · area; only calibration makes a covariance of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from cfpose_export.adopt.decode.text import fragment
from cfpose_sdk.keypoints import AREA_SHARE, MIN_AREA_PX


def coordinates_decoder(
    rank: int, size_wh: tuple[int, int], oks_sigmas: Sequence[float]
) -> onnx.GraphProto:
    """`triples` [N, 1, K, 3], or [N, K, 3] of rank 3 → as the other decoders."""
    joints = len(oks_sigmas)
    lines = [
        "rows3 = Squeeze(triples, axis1)" if rank == 4 else "rows3 = Identity(triples)",
        "relative = Gather <axis = 2> (rows3, x_then_y)",
        "xy = Mul(relative, size)",
        "coarse_xy = Identity(xy)",
        "score = Gather <axis = 2> (rows3, third)",
        "high = ReduceMax <keepdims = 1> (xy, axis1)",
        "low = ReduceMin <keepdims = 1> (xy, axis1)",
        "extent = Sub(high, low)",
        "extent_x = Gather <axis = 2> (extent, first)",
        "extent_y = Gather <axis = 2> (extent, second)",
        "rectangle = Mul(extent_x, extent_y)",
        "share = Mul(rectangle, area_share)",
        "area = Max(share, least_area)",
        "variances = Mul(area, squared_k)",
    ]
    constants = {
        "axis1": [1], "x_then_y": [1, 0], "third": 2, "size": np.array(size_wh) * 1.0,
        "first": [0], "second": [1], "area_share": AREA_SHARE, "least_area": MIN_AREA_PX,
        "squared_k": np.tile(np.square(2 * np.asarray(oks_sigmas))[None, :, None], (1, 1, 2)),
    }  # fmt: skip
    middle = "1, " if rank == 4 else ""
    outputs = "float[N, K, 2] xy, float[N, K, 2] coarse_xy, float[N, K] score, "
    return fragment(
        lines,
        f"float[N, {middle}{joints}, 3] triples",
        outputs + "float[N, K, 2] variances",
        constants,
    )
