"""COCO-format annotations → the labelled people of a data set, in parallel arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.data.annotations import is_counted
from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.config import Arithmetic, Source
from cfpose_training.sources import read_source

AT_JOINT_PX = 1.0  # a box within this of the outermost joints is made of them; tools round


@dataclass(frozen=True)
class People:
    """N labelled people in P photos; parallel arrays."""

    photos: tuple[Path, ...]  # P
    image_ids: tuple[int, ...]  # P, as in the annotation file
    photo: NDArray[np.intp]  # (N,) index into photos
    boxes: Float64  # (N, 4) xyxy, clipped to the photo
    joints: Float64  # (N, K, 3) x, y in photo pixels, and v
    areas: Float64  # (N,) of the person in the photo, square pixels, as annotated
    repeat: NDArray[np.intp]  # (N,) visits an epoch
    joint_weight: Float64  # (N, K) of each joint in the loss, in [0, 1]
    sizes_wh: tuple[tuple[int, int], ...] = ()  # P, as annotated

    def __len__(self) -> int:
        return len(self.photo)


@dataclass(frozen=True)
class _Person:
    photo: int
    box: tuple[float, float, float, float]
    joints: Sequence[float]
    area: float
    source: Source
    joint_weight: Sequence[float]


def load_people(
    sources: Sequence[Source],
    root: Path,
    skeleton: Skeleton,
    *,
    held_out: bool = False,
    arithmetic: Arithmetic = "cfpose",
) -> People:
    """All people in `sources` with a labelled joint; crowd regions are left out.

    An annotation may carry `joint_weights`, K numbers in [0, 1] that multiply its joints' weight in
    the loss, as `cfpose-train label` writes them; without, all are 1. `held_out` gives the
    development photos of each source instead of its training photos. `arithmetic`: of the boxes,
    see `clipped_box`. Raises DatasetError for annotations that are missing, malformed, or share no
    joint with the skeleton.
    """
    photos: list[Path] = []
    image_ids: list[int] = []
    sizes: list[tuple[int, int]] = []
    people: list[_Person] = []
    for source in sources:
        index: dict[int, int] = {}
        for image, person in _read_source(source, root, skeleton, held_out=held_out):
            size_wh = _photo_wh(source.annotations, image)
            box = clipped_box(person["bbox"], *size_wh, arithmetic)
            if box is None:
                continue
            if image["id"] not in index:
                index[image["id"]] = len(photos)
                photos.append(root / source.images / image["file_name"])
                image_ids.append(image["id"])
                sizes.append(size_wh)
            weights = _joint_weights(source.annotations, person, len(skeleton))
            people.append(
                _Person(
                    index[image["id"]], box, person["keypoints"], person["area"], source, weights
                )
            )
    arrays = _in_arrays(people, photos, image_ids, len(skeleton))
    return dataclasses.replace(arrays, sizes_wh=tuple(sizes))


def _read_source(
    source: Source, root: Path, skeleton: Skeleton, *, held_out: bool
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each counted person of a source's photos, with its image record."""
    record = read_source(source, root, skeleton)
    images = {
        image["id"]: image
        for image in record["images"]
        if in_source(image, source, held_out=held_out)
    }
    for person in record["annotations"]:
        image = images.get(person["image_id"])
        if image is not None and is_counted(person):
            yield image, person


def _in_arrays(
    people: Sequence[_Person], photos: Sequence[Path], image_ids: Sequence[int], joints: int
) -> People:
    def floats(values: Iterable[Any], *shape: int) -> Float64:
        return np.array(list(values), dtype=np.float64).reshape(-1, *shape)

    return People(
        photos=tuple(photos),
        image_ids=tuple(image_ids),
        photo=np.array([person.photo for person in people], dtype=np.intp),
        boxes=floats((person.box for person in people), 4),
        joints=floats((person.joints for person in people), joints, 3),
        areas=floats(person.area for person in people),
        repeat=np.array([person.source.repeat for person in people], dtype=np.intp),
        joint_weight=floats((person.joint_weight for person in people), joints),
    )


def in_source(image: Mapping[str, Any], source: Source, *, held_out: bool) -> bool:
    """Whether an annotated photo is one of a source's training, or of its development photos."""
    chosen = is_held_out(image["id"], source) == held_out
    return chosen and fnmatchcase(image["file_name"], source.files)


def is_held_out(image_id: int, source: Source) -> bool:
    """Whether a source keeps a photo for development."""
    return bool(source.holdout_every) and image_id % source.holdout_every == 0


def _joint_weights(label: str, person: Mapping[str, Any], joints: int) -> Sequence[float]:
    """An annotation's `joint_weights`, ones where it has none. Raises DatasetError."""
    weights: Sequence[float] | None = person.get("joint_weights")
    if weights is None:
        return [1.0] * joints
    if not (
        isinstance(weights, list)
        and len(weights) == joints
        and all(isinstance(w, int | float) and 0 <= w <= 1 for w in weights)
    ):
        raise DatasetError(
            f"{label}: annotation {person['id']} needs {joints} numbers of [0, 1] in "
            f"'joint_weights', got {str(weights)[:80]}"
        )
    return weights


def _photo_wh(label: str, image: Mapping[str, Any]) -> tuple[int, int]:
    if "width" not in image or "height" not in image:
        raise DatasetError(f"{label}: image {image['id']} lacks its width or height")
    return image["width"], image["height"]


def clipped_box(
    bbox: Sequence[float], width: int, height: int, arithmetic: Arithmetic = "cfpose"
) -> tuple[float, float, float, float] | None:
    """xywh → xyxy, clipped to the photo; None when the box is wholly outside.

    `hrnet`: as HRNet's and SimCC's training has boxes, from the centre of the first pixel to that
    of the last one: a side is a pixel shorter, a box ends at width − 1, and one that begins left of
    the photo moves into it.
    """
    x, y, w, h = bbox
    if arithmetic == "hrnet":
        left, top = max(0.0, x), max(0.0, y)
        right = min(width - 1.0, left + max(0.0, w - 1))
        bottom = min(height - 1.0, top + max(0.0, h - 1))
        return (left, top, right, bottom) if right > left and bottom > top else None
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(width), x + w), min(float(height), y + h)
    return (left, top, right, bottom) if right > left and bottom > top else None


def ends_at_joints(bbox: Sequence[float], xy: Float64) -> bool:
    """Whether an xywh box is no more than the hull of two or more labelled joints (M, 2)."""
    if len(xy) < 2:
        return False
    x, y, w, h = bbox
    hull = np.concatenate([xy.min(axis=0), xy.max(axis=0)])
    return bool(np.abs(hull - (x, y, x + w, y + h)).max() <= AT_JOINT_PX)
