"""Labelled photos → augmented letterboxes with heat maps and box targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cfpose_sdk.arrays import Float64
from cfpose_sdk.media.image import Image
from cfpose_training.config import FinderAugmentConfig
from cfpose_training.data.crop_dataset import Batch
from cfpose_training.data.photo_cache import PhotoCache
from cfpose_training.finder.boxes import LabelledPhoto
from cfpose_training.nets.finder import STRIDE

PAD_VALUE = 114
HEAT_REACH = 0.54  # the Gaussian's 3-sigma ellipse covers this share of the box (TTFNet's alpha)
MIN_SIDE_PX = 8.0  # people smaller than this in the letterbox are ignored
MOSAIC_CENTRE = (0.35, 0.65)  # of the letterbox's sides
MIN_VISIBLE = 0.4  # so are people of whom the view keeps less than this share of the area


class View(NamedTuple):
    """A rendered picture (H, W, 3) and its boxes (N, 4), xyxy in its pixels, clipped to it."""

    image: Image
    people: Float64
    ignored: Float64


class FinderDataset(Dataset[Batch]):
    """Random views; an item depends on (seed, epoch, photo, visit) alone.

    An item holds image (H, W, 3) uint8 BGR, heat (h, w), heat_weight (h, w), box (4, h, w) xyxy in
    letterbox pixels, box_weight (h, w); h = H / 8, w = W / 8.
    """

    def __init__(
        self,
        photos: Sequence[LabelledPhoto],
        cache: PhotoCache,
        size_wh: tuple[int, int],
        augment: FinderAugmentConfig,
        seed: int,
    ) -> None:
        self.photos = photos
        self.cache = cache
        self.size_wh = size_wh
        self.augment = augment
        self.seed = seed

    def __getitem__(self, address: tuple[int, int, int]) -> Batch:
        epoch, index, visit = address
        rng = np.random.default_rng((self.seed, epoch, index, visit))
        if self.augment.mosaic_p and rng.random() < self.augment.mosaic_p:
            view = self._mosaic(index, rng)
        else:
            view = self._view(index, self.size_wh, rng)
        return {
            "image": torch.from_numpy(view.image),
            **finder_targets(view.people, view.ignored, self.size_wh),
        }

    def _view(self, index: int, size_wh: tuple[int, int], rng: np.random.Generator) -> View:
        photo, pixels = self.photos[index], self.cache[index]
        transform = random_view(pixels.shape[:2], size_wh, self.augment, rng)
        image = render_view(pixels, transform, size_wh)
        gain = 1 + self.augment.contrast * rng.uniform(-1, 1)
        shift = self.augment.brightness * rng.uniform(-1, 1)
        levels = np.clip(np.rint(gain * np.arange(256) + shift), 0, 255).astype(np.uint8)
        people, visible = _view_boxes(photo.people, transform, size_wh)
        ignored, _ = _view_boxes(photo.ignored, transform, size_wh)
        usable = (visible >= MIN_VISIBLE) & (np.minimum(*_sides(people)) >= MIN_SIDE_PX)
        return View(levels[image], people[usable], np.concatenate([ignored, people[~usable]]))

    def _mosaic(self, index: int, rng: np.random.Generator) -> View:
        """The photo and three others, each in a quarter that a random point bounds."""
        width, height = self.size_wh
        x, y = (int(side * rng.uniform(*MOSAIC_CENTRE)) for side in self.size_wh)
        chosen = [index, *rng.integers(0, len(self.photos), 3).tolist()]
        image = np.empty((height, width, 3), dtype=np.uint8)
        people, ignored = [], []
        corners = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        for photo, (left, top, right, bottom) in zip(
            rng.permutation(chosen).tolist(), corners, strict=True
        ):
            view = self._view(photo, (right - left, bottom - top), rng)
            image[top:bottom, left:right] = view.image
            origin = np.array([left, top, left, top], dtype=np.float64)
            people.append(view.people + origin)
            ignored.append(view.ignored + origin)
        return View(image, np.concatenate(people), np.concatenate(ignored))


def random_view(
    shape_hw: tuple[int, int],
    size_wh: tuple[int, int],
    config: FinderAugmentConfig,
    rng: np.random.Generator,
) -> Float64:
    """(2, 3) map photo → letterbox, in pixel-centre coordinates, for cv2.warpAffine."""
    height, width = shape_hw
    fit = min(size_wh[0] / width, size_wh[1] / height)
    low, high = np.log(config.zoom[0]), np.log(config.zoom[1])
    scale = fit * np.exp(rng.uniform(low, high))
    slack = np.array(size_wh) - scale * np.array([width, height])
    # anywhere inside when the photo is smaller than the letterbox, any part when it is larger
    offset = slack * rng.random(2)
    mirror = -1.0 if rng.random() < config.flip_p else 1.0
    x_offset = offset[0] + (scale * width if mirror < 0 else 0.0)
    edges = np.array([[mirror * scale, 0.0, x_offset], [0.0, scale, offset[1]]])
    return edges_to_centres(edges)


def render_view(pixels: Image, transform: Float64, size_wh: tuple[int, int]) -> Image:
    """The (H, W, 3) view of (h, w, 3) pixels through a (2, 3) map of scale, mirror and shift.

    A smaller view is averaged over areas first, as the letterbox of inference is.
    """
    height, width = pixels.shape[:2]
    scale = abs(transform[1, 1])
    if scale < 1:
        small_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(
            cv2.resize(pixels, small_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8
        )
        grow = np.diag([width / small_wh[0], height / small_wh[1]])
        small_to_photo = edges_to_centres(np.hstack([grow, np.zeros((2, 1))]))
        transform = transform @ np.vstack([small_to_photo, [0, 0, 1]])
    view = cv2.warpAffine(
        pixels, transform, size_wh, flags=cv2.INTER_LINEAR, borderValue=(PAD_VALUE,) * 3
    )
    return np.asarray(view, dtype=np.uint8)


def edges_to_centres(transform: Float64) -> Float64:
    """Turn a map between box-edge coordinates into one between pixel-centre coordinates."""
    moved = transform.copy()
    moved[:, 2] += transform[:, :2] @ np.array([0.5, 0.5]) - 0.5
    return moved


def finder_targets(people: Float64, ignored: Float64, size_wh: tuple[int, int]) -> Batch:
    """Heat and box targets of xyxy boxes in letterbox pixels, at stride 8.

    Larger people are painted first, so that a small one in front keeps its cells. Box weights of a
    person sum to 1: each person counts the same.
    """
    width, height = size_wh[0] // STRIDE, size_wh[1] // STRIDE
    heat = np.zeros((height, width), dtype=np.float32)
    heat_weight = np.ones((height, width), dtype=np.float32)
    box = np.zeros((4, height, width), dtype=np.float32)
    box_weight = np.zeros((height, width), dtype=np.float32)
    for x1, y1, x2, y2 in ignored:
        heat_weight[_cells(y1, y2, height), _cells(x1, x2, width)] = 0
    order = np.argsort(-np.prod(people[:, 2:] - people[:, :2], axis=1), kind="stable")
    for person in people[order]:
        bump = _gaussian(person, height, width)
        heat = np.maximum(heat, bump)
        heat_weight[bump > 0] = 1
        inside = bump > 0
        box[:, inside] = person[:, None]
        box_weight[inside] = bump[inside] / bump.sum()
    return {
        "heat": torch.from_numpy(heat),
        "heat_weight": torch.from_numpy(heat_weight),
        "box": torch.from_numpy(box),
        "box_weight": torch.from_numpy(box_weight),
    }


def _gaussian(person: Float64, height: int, width: int) -> NDArray[np.float32]:
    """A bump of 1 at the cell nearest the box centre, 0 outside its 3-sigma ellipse."""
    x1, y1, x2, y2 = person
    sigma_x = max((x2 - x1) * HEAT_REACH / 6 / STRIDE, 0.4)
    sigma_y = max((y2 - y1) * HEAT_REACH / 6 / STRIDE, 0.4)
    centre_x = np.clip(round(((x1 + x2) / 2 - 0.5) / STRIDE), 0, width - 1)
    centre_y = np.clip(round(((y1 + y2) / 2 - 0.5) / STRIDE), 0, height - 1)
    dx = (np.arange(width) - centre_x) / sigma_x
    dy = (np.arange(height) - centre_y) / sigma_y
    distance = dy[:, None] ** 2 + dx[None, :] ** 2
    bump: NDArray[np.float32] = np.where(distance <= 9, np.exp(-distance / 2), 0).astype(np.float32)
    return bump


def _view_boxes(
    boxes: Float64, transform: Float64, size_wh: tuple[int, int]
) -> tuple[Float64, Float64]:
    """Boxes in the view, clipped to it, and the share of each that the view keeps."""
    linear = transform[:, :2]
    offset = transform[:, 2] + 0.5 - linear @ np.array([0.5, 0.5])
    corners = np.stack([boxes[:, :2] @ linear.T + offset, boxes[:, 2:] @ linear.T + offset])
    whole = np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=1)
    clipped = np.clip(whole, 0, np.tile(size_wh, 2))
    area = np.prod(np.maximum(_sides(whole), 1e-9), axis=0)
    return clipped, np.prod(_sides(clipped), axis=0) / area


def _sides(boxes: Float64) -> Float64:
    """(2, N) widths and heights."""
    sides: Float64 = (boxes[:, 2:] - boxes[:, :2]).T
    return sides


def _cells(start: float, end: float, count: int) -> slice:
    """The cells whose centres lie in [start, end) letterbox pixels."""
    first, last = np.ceil((start - 0.5) / STRIDE), np.ceil((end - 0.5) / STRIDE)
    return slice(int(np.clip(first, 0, count)), int(np.clip(last, 0, count)))
