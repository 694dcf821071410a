"""Pictures of a run: crops as the network gets them, and predictions beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.crops import crop_transforms, extract_crops, transform_points
from cfpose_sdk.media.draw import draw_poses
from cfpose_sdk.media.image import Image, write_picture
from cfpose_sdk.oks import joint_oks, mean_oks
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions

BATCH_FILE, DEV_FILE = "batch0.jpg", "dev.jpg"
TILES = 16  # of a mosaic
TILE_PX = 256  # its longer side
ROOM = 1.5  # of a box, around a person of dev.jpg
GREY = 40
LABEL = (255, 255, 255)


def write_batch(path: Path, batch: Batch, skeleton: Skeleton) -> None:
    """A mosaic of a batch's first crops, with the joints that count in the loss."""
    crops = np.asarray(batch["crops"][:TILES])
    tiles = [
        _drawn(crop, xy, weight > 0, skeleton, TILE_PX / max(crop.shape))
        for crop, xy, weight in zip(
            crops, batch["xy"].numpy(), batch["weight"].numpy(), strict=False
        )
    ]
    write_picture(path, mosaic(tiles))


def write_development(path: Path, dev: DevelopmentSet, predictions: Predictions) -> None:
    """Development people with the truth on the left and the prediction on the right, worst first.

    The number is the person's OKS.
    """
    people, skeleton = dev.people, dev.spec.skeleton
    joints = joint_oks(predictions.xy, people.joints[..., :2], people.areas, skeleton.oks_sigmas)
    oks = mean_oks(joints, people.joints[..., 2] > 0)
    tiles = []
    for person in np.argsort(oks, kind="stable")[: TILES // 2]:
        transform = crop_transforms(people.boxes[person][None], (TILE_PX, TILE_PX), ROOM)
        photo = dev.cache[int(people.photo[person])]
        crop = np.ascontiguousarray(extract_crops(photo, transform, (TILE_PX, TILE_PX))[0])
        shown = people.joints[person, :, 2] > 0
        both = []
        for points in (people.joints[person, :, :2], predictions.xy[person]):
            xy = transform_points(transform, points[None])[0]
            both.append(_drawn(crop, xy, shown, skeleton, 1.0))
        tile = np.concatenate(both, axis=1)
        place = (6, TILE_PX - 8)
        cv2.putText(
            tile, f"{oks[person]:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.7, LABEL, 2, cv2.LINE_AA
        )
        tiles.append(tile)
    write_picture(path, mosaic(tiles))


def mosaic(tiles: Sequence[Image]) -> Image:
    """Pictures side by side and below one another, on grey, in about a square."""
    if not tiles:
        return np.full((TILE_PX, TILE_PX, 3), GREY, np.uint8)
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    columns = max(1, round(math.sqrt(len(tiles) * height / width)))
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * height, columns * width, 3), GREY, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas


def _drawn(
    crop: Image, xy: NDArray[np.floating], shown: NDArray[np.bool_], skeleton: Skeleton, zoom: float
) -> Image:
    """A crop, enlarged, with one person's joints."""
    size = round(crop.shape[1] * zoom), round(crop.shape[0] * zoom)
    picture = cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)
    box = np.array([[0.0, 0.0, *size]])
    return draw_poses(
        np.asarray(picture, np.uint8), zoom * xy[None], shown[None].astype(float), box, skeleton,
        threshold=0.5, line_width=3.0, colours="sides",
    )  # fmt: skip
