"""A data folder of a few drawn people and a recipe over it, for tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk.skeleton import COCO_17, Skeleton

PHOTO_WH = (120, 100)


def write_tiny_data(
    root: Path,
    photos: int = 12,
    *,
    people_file: str = "people.json",
    folder: str = "images",
    skeleton: Skeleton = COCO_17,
) -> None:
    """`photos` pictures with one person each: `people_file` and `folder` below `root`.

    Each joint is a blob of its own colour at a random place in the person's box.
    """
    rng = np.random.default_rng(7)
    width, height = PHOTO_WH
    images, annotations = [], []
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / people_file).parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, photos + 1):
        picture = np.full((height, width, 3), 90, dtype=np.uint8)
        left, top = rng.uniform(5, 30), rng.uniform(5, 20)
        box = [left, top, 60.0, 70.0]
        joints = rng.uniform((left, top), (left + 60, top + 70), (len(skeleton), 2))
        for joint, (x, y) in enumerate(joints):
            colour = (joint * 15 % 256, 255 - joint * 15, (joint * 60) % 256)
            cv2.circle(picture, (round(x), round(y)), 3, colour, -1)
        cv2.imwrite(str(root / folder / f"{number:012d}.png"), picture)
        flat = np.column_stack([joints, np.full(len(joints), 2)]).ravel().tolist()
        images.append(
            {"id": number, "file_name": f"{number:012d}.png", "width": width, "height": height}
        )
        annotations.append(
            {
                "id": number, "image_id": number, "category_id": 1, "bbox": box, "area": 4200.0,
                "iscrowd": 0, "keypoints": flat, "num_keypoints": len(joints),
            }
        )  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": list(skeleton.keypoints)}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (root / people_file).write_text(json.dumps(record))


RECIPE = """
trained_on = ["drawn people"]

[pose]
name = "tiny"
size_wh = [36, 48]
decode = "subbin"
hrnet = { width = 4, stem = 4, bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }

[labels]
kind = "gaussian"

[augment]
rotation_p = 0.2

[stage1]
epochs = 2
batch_size = 4
optimiser = "adamw"
lr = 3e-3
schedule = "cosine"
ema_decay = 0.9

[stage2]
node_channels = 8
joint_channels = [8, 8, 8]
output = "residual"

[stage2.optim]
epochs = 2
batch_size = 4
schedule = "cosine"
clip_norm = 1.0

[[sources]]
name = "people"
annotations = "people.json"
images = "images"
repeat = 2
holdout_every = 5

[finder]
name = "tiny-finder"
size_wh = [64, 64]
net = { channels = [8, 8, 8, 8, 8], blocks = [1, 1, 1, 1, 1], head_channels = 8 }

[finder.optim]
epochs = 2
batch_size = 2
optimiser = "adamw"

[[finder.sources]]
name = "people"
images = "images"
annotations = "people.json"
holdout_every = 5
"""


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """A data root with `people.json` and `images/`, 12 photos of one person each."""
    write_tiny_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def write_data() -> Callable[..., None]:
    """`write_tiny_data`, for a layout or skeleton of one's own."""
    return write_tiny_data


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe over `tiny_root` that trains in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path
