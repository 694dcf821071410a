"""RF-DETR-style outputs: boxes [1, N, 4] as cx, cy, w, h in [0, 1], and logits [1, N, C].

The picture is stretched to the input, not letterboxed, and a query's score is the sigmoid of its
person logit. RF-DETR numbers 91 columns by COCO's category ids, in which a person is 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.detectors.yolo import centred_to_corners

Float64 = NDArray[np.float64]


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
