"""Poses in your own boxes, or with your own detector. Run: python examples/02_own_boxes.py"""

from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk import PoseEstimator

photo = Path(__file__).parent / "photos" / "street.jpg"
boxes = np.array([[150.0, 328.0, 202.0, 453.0], [444.0, 240.0, 483.0, 344.0]])  # x1, y1, x2, y2


def my_detector(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Any callable will do: BGR image in, (N, 4) xyxy boxes in its pixels out."""
    return boxes[:1]


with PoseEstimator(detector=my_detector) as estimator:
    print(f"boxes given: {len(estimator.predict(photo, boxes=boxes))} poses")
    print(f"boxes=[] means no people: {len(estimator.predict(photo, boxes=[]))} poses")
    print(f"own detector: {len(estimator.predict(photo))} poses")
