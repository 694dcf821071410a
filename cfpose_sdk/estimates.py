"""The estimate of a batch: frames and their people through the network, into Poses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.crops import crop_transforms, invert_transforms, transform_points
from cfpose_sdk.finding import Found
from cfpose_sdk.frames import Frame
from cfpose_sdk.inference import Arrays, CropRun, PoseModel
from cfpose_sdk.results import Poses


@dataclass(frozen=True)
class Shot:
    """A frame, the people in it, and the time that finding them took."""

    frame: Frame
    found: Found


def estimate(model: PoseModel, shots: Sequence[Shot]) -> list[Poses]:
    """Poses in each frame; the crops of all share batches. Raises BackendError."""
    if model.spec.input == "frame":
        return [_estimate_whole(model, shot) for shot in shots]
    return _estimate_crops(model, shots)


def _estimate_crops(model: PoseModel, shots: Sequence[Shot]) -> list[Poses]:
    total = sum(len(shot.found.people) for shot in shots)
    run, all_maps, crop_ms = CropRun(model, total), [], []
    for shot in shots:
        start = time.perf_counter()
        boxes = shot.found.people.boxes
        maps = crop_transforms(boxes, model.spec.size_wh, model.spec.box_scale)
        mapping_ms = _since(start)
        all_maps.append(maps)
        crop_ms.append(mapping_ms + run.add(shot.frame.image, maps))
    outputs = run.outputs()
    results, first = [], 0
    for n, shot in enumerate(shots):
        people = len(shot.found.people)
        own = {name: values[first : first + people] for name, values in outputs.items()}
        infer_ms = run.infer_ms * people / total if total else 0.0
        results.append(_poses(model, shot, all_maps[n], own, crop_ms[n], infer_ms))
        first += people
    return results


def _estimate_whole(model: PoseModel, shot: Shot) -> Poses:
    """One frame through a model that cuts its own crops; its time is all `infer`."""
    start = time.perf_counter()
    outputs = model.run_frame(shot.frame.image, shot.found.people.boxes)
    infer_ms = _since(start) if len(shot.found.people) else 0.0
    return _poses(model, shot, None, outputs, 0.0, infer_ms)


def _poses(
    model: PoseModel,
    shot: Shot,
    maps: NDArray[np.float64] | None,
    outputs: Arrays,
    crop_ms: float,
    infer_ms: float,
) -> Poses:
    """Crop pixels → frame pixels; maps (N, 2, 3) lead from the frame to the crop.

    None: the outputs are in frame pixels already.
    """
    start = time.perf_counter()
    frame, people = shot.frame, shot.found.people
    height, width = frame.image.shape[:2]
    spent = {"read": frame.read_ms, "detect": shot.found.milliseconds}
    spent |= {"crop": crop_ms, "infer": infer_ms}
    shared: dict[str, Any] = {
        "skeleton": model.spec.skeleton, "image_size_wh": (width, height), "image": frame.image,
        "source": frame.name, "frame": frame.number, "time_s": frame.time_s,
    }  # fmt: skip
    if len(people) == 0:
        return Poses.empty(speed_ms=_with_total({**spent, "post": 0.0}), **shared)
    xy, covariance = outputs["keypoints"], outputs.get("covariance")
    if maps is not None:
        back = invert_transforms(maps)
        xy = transform_points(back, xy)
        if covariance is not None:
            linear = back[:, None, :, :2]
            covariance = linear @ covariance @ np.swapaxes(linear, -1, -2)
    return Poses(
        xy=xy.astype(np.float32),
        confidence=outputs["confidence"].clip(0, 1),
        boxes=people.boxes,
        box_scores=people.scores,
        speed_ms=_with_total({**spent, "post": _since(start)}),
        covariance=covariance,
        **shared,
    )


def _with_total(spent: dict[str, float]) -> dict[str, float]:
    return {**spent, "total": sum(spent.values())}


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
