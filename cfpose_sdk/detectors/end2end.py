"""End-to-end outputs [1, N, 6]: x1, y1, x2, y2 in input pixels, score, class.

YOLOv10 and YOLO26 export so, and other YOLOs with `nms=True`. There is no suppression to do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def decode_end2end(
    output: NDArray[np.floating], person_class: int, threshold: float
) -> tuple[Float64, Float64]:
    """(1, N, 6) → boxes (N, 4) xyxy in input pixels, scores (N,) ≥ threshold, of people."""
    rows = output[0].astype(np.float64)
    kept = (rows[:, 4] >= threshold) & (np.round(rows[:, 5]) == person_class)
    return rows[kept, :4], rows[kept, 4]
