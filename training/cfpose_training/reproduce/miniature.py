"""A whole plan in minutes: drawn people in the official layout, tiny networks, a few steps.

Everything is written below the plan's folder, and none of it comes from the data sets: it shows
that data check, training, distillation, refiner, export, protocol and table work here.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from cfpose_sdk.files import write_file
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.config import OptimConfig, Recipe
from cfpose_training.nets.hrnet import HRNet, HRNetConfig
from cfpose_training.reproduce.plan import BOX_FOLDERS, BOXES, IMAGENET, IMAGENET_FOLDER
from cfpose_training.reproduce.targets import DatasetName

STUDENT = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
TEACHER = dataclasses.replace(STUDENT, width=8)
SIZE_WH = (48, 64)
PHOTO_WH = (120, 100)
TRAIN, TEST = 8, 4  # photos, of two people each
DATA_FOLDER = "miniature-data"
IN_SHORT = (
    f"miniature: HRNets of width {STUDENT.width} and {TEACHER.width} in place of W32 and W48, "
    f"crops of {SIZE_WH[0]} x {SIZE_WH[1]}, {TRAIN} drawn photos, 2 epochs; figures mean nothing"
)


def small(recipe: Recipe) -> Recipe:
    """The recipe with tiny networks and few steps; losses, labels and augmentation stay."""
    assert recipe.teacher is not None
    stage2 = dataclasses.replace(
        recipe.stage2,
        optim=_short(recipe.stage2.optim),
        node_channels=8,
        joint_channels=(8, 8, 8),
    )
    return dataclasses.replace(
        recipe,
        pose=dataclasses.replace(recipe.pose, hrnet=STUDENT, size_wh=SIZE_WH),
        teacher=dataclasses.replace(recipe.teacher, hrnet=TEACHER),
        stage1=dataclasses.replace(_short(recipe.stage1), milestones=(1,)),
        stage2=stage2,
        trained_on=("drawn people",),
    )


def _short(optim: OptimConfig) -> OptimConfig:
    return dataclasses.replace(optim, epochs=2, batch_size=4, workers=0)


def write_data(folder: Path, dataset: DatasetName, recipe: Recipe) -> None:
    """The data root of a miniature: photos, annotations, boxes and weights to start from.

    The photos of one call equal those of another, so that its runs go on.
    """
    assert recipe.joints is not None
    boxes = []
    for source, first, count in zip(recipe.sources, (1, 1001), (TRAIN, TEST), strict=True):
        record, photos = _people(recipe.joints, first, count)
        if dataset == "crowdpose":  # as its files have it, and no others
            for image in record["images"]:
                image["crowdIndex"] = int(str(image["id"])) % 3 * 0.45
        for name, picture in photos.items():
            _write(folder / source.images / name, picture)
        _write(folder / source.annotations, json.dumps(record).encode())
        if source.holdout_every == 1:
            boxes = [
                {"image_id": p["image_id"], "category_id": 1, "bbox": p["bbox"], "score": 0.9}
                for p in record["annotations"]
            ]
    _write(folder / BOX_FOLDERS[0] / BOXES[dataset], json.dumps(boxes).encode())
    for width, config in ((32, STUDENT), (48, TEACHER)):
        weights = folder / IMAGENET_FOLDER / IMAGENET[width]
        if weights.is_file():  # a run that goes on compares their hash
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(width)
            state = HRNet(config).state_dict()
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)  # under the reference's names, which are ours
        _write(weights, buffer.getvalue())


def _write(path: Path, data: bytes) -> None:
    """Write a file, but for one that is there already: the cache of photos goes by their times."""
    if not path.is_file() or path.read_bytes() != data:
        write_file(path, data)


def _people(
    skeleton: Skeleton, first: int, count: int
) -> tuple[dict[str, list[dict[str, object]]], dict[str, bytes]]:
    """COCO annotations of `count` photos with two drawn people each, and the photos as PNG."""
    rng = np.random.default_rng(first)
    images: list[dict[str, object]] = []
    people: list[dict[str, object]] = []
    photos: dict[str, bytes] = {}
    width, height = PHOTO_WH
    for number in range(first, first + count):
        picture = np.full((height, width, 3), 90, np.uint8)
        name = f"{number:012d}.png"
        for place in range(2):
            left, top = rng.uniform(2, 8) + 56 * place, rng.uniform(4, 16)
            joints = rng.uniform((left, top), (left + 50, top + 75), (len(skeleton), 2))
            for joint, (x, y) in enumerate(joints):
                colour = (joint * 15 % 256, 255 - joint * 15, joint * 60 % 256)
                cv2.circle(picture, (round(x), round(y)), 3, colour, -1)
            flat = np.column_stack([joints, np.full(len(joints), 2)]).ravel().round(2).tolist()
            people.append(
                {"id": 2 * number + place, "image_id": number, "category_id": 1, "iscrowd": 0,
                 "bbox": [round(left, 2), round(top, 2), 50.0, 75.0], "area": 1987.5,
                 "keypoints": flat, "num_keypoints": len(skeleton)}
            )  # fmt: skip
        photos[name] = cv2.imencode(".png", picture)[1].tobytes()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    category = {"id": 1, "name": "person", "keypoints": list(skeleton.keypoints)}
    return {"images": images, "annotations": people, "categories": [category]}, photos
