"""Boxes that poses carry to the next frame, for videos in which not every frame is searched."""

from __future__ import annotations

import numpy as np

from cfpose_sdk.boxes import nms
from cfpose_sdk.detector import Detections
from cfpose_sdk.results import Poses

# Joints end inside the body: eyes below the crown, ankles above the sole.
PADDING = 0.15  # of the joints' extent, on each side
FEWEST_JOINTS = 4  # confident ones; with fewer the pose has faded
SAME_PERSON_IOU = 0.8  # two poses that slid onto one person: the more confident stays


def carried_boxes(poses: Poses) -> Detections:
    """Padded extents of the confident joints of each pose, clipped to the frame, with its score.

    A pose with fewer than `FEWEST_JOINTS` joints of confidence ≥ `VISIBLE_FROM`, or whose box left
    the frame, is dropped. A box never grows from frame to frame by itself: it comes from the joints
    alone.
    """
    width, height = poses.image_size_wh
    seen = poses.visible
    enough = seen.sum(axis=1) >= FEWEST_JOINTS
    boxes, kept = [], []
    for person in np.flatnonzero(enough):
        points = poses.xy[person][seen[person]].astype(np.float64)
        low, high = points.min(axis=0), points.max(axis=0)
        pad = (high - low) * PADDING
        box = np.concatenate([low - pad, high + pad]).clip(0, [width, height, width, height])
        if (box[2:] - box[:2] >= 1).all():
            boxes.append(box)
            kept.append(person)
    if not boxes:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    array = np.asarray(boxes, dtype=np.float32)
    # mean confidence decides which of two poses on one person stays; order is kept
    alive = np.sort(nms(array, poses.confidence[kept].mean(axis=1), SAME_PERSON_IOU))
    return Detections(array[alive], poses.box_scores[kept][alive])
