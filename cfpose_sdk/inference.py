"""A whole frame and its boxes through a model that samples the crops itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends import Backend

Arrays = dict[str, NDArray[Any]]


def run_frame(
    backend: Backend, image: NDArray[np.uint8], boxes: NDArray[np.floating], batch_size: int
) -> Arrays:
    """Outputs of a frame-in model for (N, 4) xyxy boxes of one BGR image; no boxes, no run.

    At most `batch_size` people at once; every chunk takes the frame again.
    """
    if len(boxes) == 0:
        return {}
    # between the centres of a single row or column there is nothing to sample
    missing = [(0, max(0, 2 - side)) for side in image.shape[:2]]
    frame = np.pad(image, [*missing, (0, 0)]) if image.shape[0] < 2 or image.shape[1] < 2 else image
    boxes = np.asarray(boxes, dtype=np.float32)
    parts = [
        backend.run({"frame": frame, "boxes": boxes[first : first + batch_size]})
        for first in range(0, len(boxes), batch_size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
