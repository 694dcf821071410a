"""People and their photos → augmented crops.

A joint with v = 0 is never part of a loss: it is absent or, in sources that label only some joints,
unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cfpose_sdk.arrays import Float64
from cfpose_sdk.crops import crop_transforms, extract_crops, transform_points
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import Arithmetic, AugmentConfig, LabelConfig
from cfpose_training.data.augment import (
    coarse_dropout,
    colour_jitter,
    random_transform,
    rotation_deg,
)
from cfpose_training.data.people import People
from cfpose_training.data.photo_cache import PhotoCache
from cfpose_training.data.targets import label_weights

# crops (B, H, W, 3) uint8 BGR, xy (B, K, 2) crop px, weight (B, K), upright (B,) 0 or 1
Batch = dict[str, Tensor]
UPRIGHT_DEG = 85.0  # crops turned by more are not: heat-map teachers have seen few like them


@dataclass(frozen=True)
class DataOptions:
    """Where the photos are, and where their decoded copies go."""

    root: Path
    cache: Path | None  # None: the photos are read at each use


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
        arithmetic: Arithmetic = "cfpose",
    ) -> None:
        self.people = people
        self.cache = cache
        self.spec = spec
        self.augment = augment
        self.labels = labels
        self.seed = seed
        self.mild, self.mild_from = mild, mild_from
        self.arithmetic = arithmetic

    def __getitem__(self, address: tuple[int, int, int]) -> Batch:
        epoch, person, visit = address
        rng = np.random.default_rng((self.seed, epoch, person, visit))
        people, spec = self.people, self.spec
        joints = people.joints[person]
        augment = self.augment if self.mild is None or epoch < self.mild_from else self.mild
        transform, mirrored = random_transform(
            people.boxes[person], joints, spec.skeleton, spec.size_wh, spec.box_scale,
            augment, rng, self.arithmetic,
        )  # fmt: skip
        crop = extract_crops(self.cache[int(people.photo[person])], transform[None], spec.size_wh)
        crop = coarse_dropout(colour_jitter(crop[0], augment, rng), augment, rng)
        weight = (joints[:, 2] > 0) * people.joint_weight[person]
        xy = transform_points(transform[None], joints[None, :, :2])[0]
        if mirrored:  # the map has mirrored the positions already
            xy, weight = xy[spec.skeleton.flip_order], weight[spec.skeleton.flip_order]
        upright = abs(rotation_deg(transform)) <= UPRIGHT_DEG
        return {**self._item(crop, xy, weight), "upright": torch.tensor(float(upright))}

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
