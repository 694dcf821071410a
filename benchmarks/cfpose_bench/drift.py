"""How far a model's joints are from a reference model's, on the same photos and boxes."""

from __future__ import annotations

import math

import numpy as np

from cfpose_bench.predictions import Photos
from cfpose_sdk.errors import DatasetError

SURE = 0.3  # the reference's confidence from which a joint counts as seen, as `Poses.visible`


def drift(photos: Photos, reference: Photos) -> dict[str, float | int] | None:
    """Distances in pixels of the photo over all joints of all people: max, p99, mean.

    `sure_` figures are over joints that the reference is sure of: an unsure joint may jump from one
    flat peak to another by rounding alone. Poses are paired by their boxes. None
    where no photo has a pose. Raises DatasetError when a photo has different boxes.
    """
    distances, sure = [], []
    for image_id, theirs in reference.items():
        ours = photos.get(image_id)
        if ours is None or theirs is None:
            continue
        if len(ours) != len(theirs) or not np.allclose(ours.boxes, theirs.boxes, atol=0.5):
            raise DatasetError(
                f"photo {image_id}: the model and its reference saw different boxes "
                f"({len(ours)} and {len(theirs)}); drift needs the same ones, such as --boxes gt"
            )
        apart = np.linalg.norm(ours.xy.astype(np.float64) - theirs.xy, axis=-1)
        distances.append(apart.ravel())
        sure.append((theirs.confidence >= SURE).ravel())
    if not distances or not sum(map(len, distances)):
        return None
    apart, seen = np.concatenate(distances), np.concatenate(sure)
    record: dict[str, float | int] = {
        "max_px": float(apart.max()),
        "p99_px": float(np.percentile(apart, 99)),
        "mean_px": float(apart.mean()),
        "joints": int(apart.size),
        "sure_joints": int(seen.sum()),
    }
    if seen.any():
        record["sure_max_px"] = float(apart[seen].max())
        record["sure_p99_px"] = float(np.percentile(apart[seen], 99))
    return record


def delta_ap(ap: float, reference_ap: float) -> float | None:
    """AP minus the reference's; None where either is undefined."""
    return None if math.isnan(ap) or math.isnan(reference_ap) else ap - reference_ap
