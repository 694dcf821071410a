"""COCO-format annotations and photos → augmented crops.

A joint with v = 0 never enters a loss, be it absent or, as in sources that label only a part of
the joints, unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cfpose_bench.annotations import is_counted, read_annotations
from cfpose_sdk.crops import crop_transforms, extract_crops, transform_points
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_training.augment import coarse_dropout, colour_jitter, random_transform
from cfpose_training.config import AugmentConfig, LabelConfig, Source
from cfpose_training.photos import PhotoCache
from cfpose_training.targets import label_weights

Float64 = NDArray[np.float64]
Batch = dict[str, Tensor]  # crops (B, H, W, 3) uint8 BGR, xy (B, K, 2) crop px, weight (B, K)


@dataclass(frozen=True)
class DataOptions:
    """Where the photos are, and where their decoded copies go."""

    root: Path
    cache: Path


@dataclass(frozen=True)
class People:
    """N labelled people in P photos; parallel arrays."""

    photos: tuple[Path, ...]  # P
    image_ids: tuple[int, ...]  # P, as in the annotation file
    photo: NDArray[np.intp]  # (N,) index into photos
    boxes: Float64  # (N, 4) xyxy, clipped to the photo
    joints: Float64  # (N, K, 3) x, y in photo pixels, and v
    areas: Float64  # (N,) of the person in the photo, square pixels, as annotated
    weight: Float64  # (N,) in the loss
    repeat: NDArray[np.intp]  # (N,) visits an epoch
    joint_weight: Float64  # (N, K) of each joint in the loss, beside `weight`; in [0, 1]

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
    sources: Sequence[Source], root: Path, skeleton: Skeleton, *, held_out: bool = False
) -> People:
    """Everybody in `sources` with a labelled joint; crowd regions are left out.

    An annotation may carry `joint_weights`, K numbers in [0, 1] that multiply its joints' weight in
    the loss, as `cfpose-train label` writes them; without, all are 1. `held_out` gives the
    development photos of each source instead of its training photos. Raises DatasetError for
    annotations that are missing, malformed, or of another skeleton.
    """
    photos: list[Path] = []
    image_ids: list[int] = []
    people: list[_Person] = []
    for source in sources:
        record = read_annotations(root / source.annotations)
        names = tuple(record["categories"][0].get("keypoints", ()))
        if names and names != skeleton.keypoints:
            raise DatasetError(
                f"{source.annotations} labels {len(names)} keypoints {names}, "
                f"expected {len(skeleton)}: {skeleton.keypoints}"
            )
        images = {
            image["id"]: image
            for image in record["images"]
            if _is_held_out(image["id"], source) == held_out
            and fnmatchcase(image["file_name"], source.files)
        }
        index: dict[int, int] = {}
        for person in record["annotations"]:
            image = images.get(person["image_id"])
            if image is None or not is_counted(person):
                continue
            box = clipped_box(person["bbox"], *_photo_wh(source.annotations, image))
            if box is None:
                continue
            if image["id"] not in index:
                index[image["id"]] = len(photos)
                photos.append(root / source.images / image["file_name"])
                image_ids.append(image["id"])
            weights = _joint_weights(source.annotations, person, len(skeleton))
            people.append(
                _Person(
                    index[image["id"]], box, person["keypoints"], person["area"], source, weights
                )
            )
    return People(
        photos=tuple(photos),
        image_ids=tuple(image_ids),
        photo=np.array([person.photo for person in people], dtype=np.intp),
        boxes=np.array([person.box for person in people], dtype=np.float64).reshape(-1, 4),
        joints=np.array([person.joints for person in people], dtype=np.float64).reshape(
            -1, len(skeleton), 3
        ),
        areas=np.array([person.area for person in people], dtype=np.float64),
        weight=np.array([person.source.weight for person in people], dtype=np.float64),
        repeat=np.array([person.source.repeat for person in people], dtype=np.intp),
        joint_weight=np.array([person.joint_weight for person in people], dtype=np.float64).reshape(
            -1, len(skeleton)
        ),
    )


class CropDataset(Dataset[Batch]):
    """Augmented crops; an item depends on (seed, epoch, person) alone, whatever the worker.

    Items are addressed by (epoch, person), as EpochSampler yields them. From epoch `mild_from` on,
    counted from 0, `mild` stands in for `augment`.
    """

    def __init__(
        self,
        people: People,
        cache: PhotoCache,
        spec: ModelSpec,
        augment: AugmentConfig,
        labels: LabelConfig,
        seed: int,
        *,
        mild: AugmentConfig | None = None,
        mild_from: int = 0,
    ) -> None:
        self.people = people
        self.cache = cache
        self.spec = spec
        self.augment = augment
        self.labels = labels
        self.seed = seed
        self.mild, self.mild_from = mild, mild_from

    def __getitem__(self, address: tuple[int, int, int]) -> Batch:
        epoch, person, visit = address
        rng = np.random.default_rng((self.seed, epoch, person, visit))
        people, spec = self.people, self.spec
        joints = people.joints[person]
        augment = self.augment if self.mild is None or epoch < self.mild_from else self.mild
        transform, mirrored = random_transform(
            people.boxes[person], joints, spec.skeleton, spec.size_wh, spec.box_scale,
            augment, rng,
        )  # fmt: skip
        crop = extract_crops(self.cache[int(people.photo[person])], transform[None], spec.size_wh)
        crop = coarse_dropout(colour_jitter(crop[0], augment, rng), augment, rng)
        weight = (joints[:, 2] > 0) * people.joint_weight[person] * people.weight[person]
        xy = transform_points(transform[None], joints[None, :, :2])[0]
        if mirrored:  # the map has mirrored the positions already
            xy, weight = xy[spec.skeleton.flip_order], weight[spec.skeleton.flip_order]
        return self._item(crop, xy, weight)

    def _item(self, crop: NDArray[np.uint8], xy: Float64, weight: Float64) -> Batch:
        positions = torch.from_numpy(xy).float()
        inside = label_weights(positions, self.spec.bins_xy, self.spec.split_ratio, self.labels)
        return {
            "crops": torch.from_numpy(crop),
            "xy": positions,
            "weight": inside * torch.from_numpy(weight).float(),
        }


def plain_crops(
    people: People, cache: PhotoCache, spec: ModelSpec, indices: Sequence[int]
) -> tuple[NDArray[np.uint8], Float64]:
    """Unaugmented crops (M, H, W, 3) and their photo → crop maps (M, 2, 3)."""
    transforms = crop_transforms(people.boxes[list(indices)], spec.size_wh, spec.box_scale)
    crops = [
        extract_crops(cache[int(people.photo[person])], transform[None], spec.size_wh)[0]
        for person, transform in zip(indices, transforms, strict=True)
    ]
    width, height = spec.size_wh
    return np.array(crops, dtype=np.uint8).reshape(-1, height, width, 3), transforms


def _is_held_out(image_id: int, source: Source) -> bool:
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
    bbox: Sequence[float], width: int, height: int
) -> tuple[float, float, float, float] | None:
    """xywh → xyxy inside the photo; None when nothing of it is inside."""
    x, y, w, h = bbox
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(width), x + w), min(float(height), y + h)
    return (left, top, right, bottom) if right > left and bottom > top else None
