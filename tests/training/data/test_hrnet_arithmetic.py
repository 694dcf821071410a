"""Boxes and crops of `arithmetic = "hrnet"` against HRNet's steps, written out one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest

from cfpose_sdk.skeleton import COCO_17
from cfpose_training.config import Arithmetic, AugmentConfig, load_recipe
from cfpose_training.data.augment import random_transform
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.people import clipped_box
from cfpose_training.pose.train import development_set, pose_spec

PHOTO_WH, SIZE_WH, PIXEL_STD = (640, 427), (192, 256), 200
Numbers = np.ndarray


class Drawn:
    """A generator that gives what it was told, in the order that random_transform asks."""

    def __init__(self, normals: list[float], uniforms: list[float]) -> None:
        self.normals, self.uniforms = iter(normals), iter(uniforms)

    def standard_normal(self) -> float:
        return next(self.normals)

    def random(self) -> float:
        return next(self.uniforms)


def trained_box(bbox: tuple[float, ...]) -> tuple[float, float, float, float]:
    """HRNet's box of an annotation: x, y, width, height; every side a pixel short."""
    x, y, w, h = bbox
    first_x, first_y = max(0, x), max(0, y)
    last_x = min(PHOTO_WH[0] - 1, first_x + max(0, w - 1))
    last_y = min(PHOTO_WH[1] - 1, first_y + max(0, h - 1))
    return first_x, first_y, last_x - first_x, last_y - first_y


def centre_and_scale(box: tuple[float, ...]) -> tuple[Numbers, Numbers]:
    """Middle of the box, and its sides in units of 200 px: of the crop's aspect, 1.25 as long."""
    w, h = box[2:]
    aspect = SIZE_WH[0] / SIZE_WH[1]
    if w > aspect * h:
        h = w / aspect
    elif w < aspect * h:
        w = h * aspect
    centre = np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])
    return centre, np.array([w, h]) * 1.25 / PIXEL_STD


def affine(centre: Numbers, scale: Numbers, turn_deg: float) -> Numbers:
    """The map that takes three points of the region, half a width apart, to the crop's."""
    width, angle = scale[0] * PIXEL_STD, math.radians(turn_deg)
    up = np.array([math.sin(angle), -math.cos(angle)]) * width / 2
    left = np.array([-math.cos(angle), -math.sin(angle)]) * width / 2
    middle, half = np.array(SIZE_WH) / 2, SIZE_WH[0] / 2
    source = np.stack([centre, centre + up, centre + left])
    target = middle + np.array([[0, 0], [0, -half], [-half, 0]])
    lines = np.column_stack([source, np.ones(3)])
    return np.linalg.solve(lines, target).T


def reference(bbox: tuple[float, ...], zoom: float, turn_deg: float, mirrored: bool) -> Numbers:
    """(2, 3) map from photo to crop: the photo is mirrored first, and the centre with it."""
    centre, scale = centre_and_scale(trained_box(bbox))
    photo = np.eye(3)
    if mirrored:
        photo[0] = [-1, 0, PHOTO_WH[0] - 1]
        centre[0] = PHOTO_WH[0] - centre[0] - 1
    return affine(centre, scale * zoom, turn_deg) @ photo


BOXES = [
    (100.0, 50.0, 120.0, 300.0),
    (10.5, 20.25, 300.0, 90.75),
    (-30.0, -12.5, 100.0, 80.0),
    (560.25, 300.0, 200.0, 200.0),
    (0.0, 0.0, 640.0, 427.0),
]


@pytest.mark.parametrize("bbox", BOXES)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("stretch", "turn"), [(0.0, 0.0), (0.7, 0.5), (-9.0, -9.0)])
def test_crops_are_hrnets(
    bbox: tuple[float, ...], mirrored: bool, stretch: float, turn: float
) -> None:
    box = clipped_box(bbox, *PHOTO_WH, "hrnet")
    assert box is not None
    config = AugmentConfig(half_body_p=0)
    joints = np.zeros((17, 3))  # nobody labelled: no half body is drawn
    rng = Drawn([stretch, turn], [0.0, 0.0 if mirrored else 0.9])
    transform, flips = random_transform(
        np.array(box),
        joints,
        COCO_17,
        SIZE_WH,
        1.25,
        config,
        rng,
        "hrnet",  # type: ignore[arg-type]
    )
    assert flips is mirrored
    zoom = float(np.clip(1 + 0.35 * stretch, 0.65, 1.35))
    degrees = float(np.clip(45 * turn, -90, 90))
    # HRNet turns the region and not the picture, and mirrors first: where both, the same way
    expected = reference(bbox, zoom, degrees if mirrored else -degrees, mirrored)
    np.testing.assert_allclose(transform, expected, atol=1e-9)


def test_a_mirrored_photo_gives_the_mirrored_crop_to_the_pixel() -> None:
    """By pixels: cutting the mirrored photo around the mirrored centre is one and the same crop."""
    photo = np.random.default_rng(1).integers(0, 256, (427, 640, 3), dtype=np.uint8)
    photo = cv2.GaussianBlur(photo, (9, 9), 3)
    bbox = BOXES[0]
    expected = cv2.warpAffine(
        np.ascontiguousarray(photo[:, ::-1]),
        affine(*_mirrored_region(bbox), 0.0),
        SIZE_WH,
        flags=cv2.INTER_LINEAR,
    )
    same: list[Arithmetic] = [
        arithmetic
        for arithmetic in get_args(Arithmetic)
        if np.abs(cut(photo, bbox, arithmetic).astype(int) - expected).max() <= 1
    ]
    assert same == ["hrnet"]


def _mirrored_region(bbox: tuple[float, ...]) -> tuple[Numbers, Numbers]:
    centre, scale = centre_and_scale(trained_box(bbox))
    return np.array([PHOTO_WH[0] - 1 - centre[0], centre[1]]), scale


def cut(photo: Numbers, bbox: tuple[float, ...], arithmetic: Arithmetic) -> Numbers:
    box = clipped_box(bbox, *PHOTO_WH, arithmetic)
    config = AugmentConfig(flip_p=1, zoom_sigma=0, rotation_p=0, half_body_p=0)
    rng = np.random.default_rng(0)
    transform, _ = random_transform(
        np.array(box), np.zeros((17, 3)), COCO_17, SIZE_WH, 1.25, config, rng, arithmetic
    )
    return cv2.warpAffine(photo, transform, SIZE_WH, flags=cv2.INTER_LINEAR)


def test_a_recipe_chooses_it(tiny_recipe: Path, tiny_root: Path, tmp_path: Path) -> None:
    text = tiny_recipe.read_text()
    boxes = {}
    for arithmetic in ("cfpose", "hrnet"):
        tiny_recipe.write_text(text.replace("[pose]\n", f'[pose]\narithmetic = "{arithmetic}"\n'))
        recipe = load_recipe(tiny_recipe)
        data = DataOptions(tiny_root, tmp_path / "cache")
        dev = development_set(recipe, pose_spec(recipe), data)
        assert dev is not None
        boxes[arithmetic] = dev.people.boxes
    np.testing.assert_allclose(boxes["cfpose"][:, 2:] - boxes["hrnet"][:, 2:], 1.0)
    np.testing.assert_allclose(boxes["cfpose"][:, :2], boxes["hrnet"][:, :2])


@pytest.mark.parametrize("root_recipe", ["paper-coco", "paper-crowdpose"])
def test_the_paper_profiles_have_it(root: Path, root_recipe: str) -> None:
    recipe = load_recipe(root / "training" / "recipes" / f"{root_recipe}.toml")
    assert (recipe.pose.arithmetic, recipe.start) == ("hrnet", "imagenet")
