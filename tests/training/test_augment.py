"""Random crops: positions follow the pixels, and the draws follow the options."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cfpose_sdk.crops import crop_transforms, extract_crops, transform_points
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.augment import random_transform
from cfpose_training.config import AugmentConfig

BOX = np.array([40.0, 30.0, 100.0, 150.0])
SIZE_WH = (96, 128)
STILL = AugmentConfig(flip_p=0, zoom_sigma=0, rotation_p=0, half_body_p=0)


def all_labelled() -> np.ndarray:
    grid = np.random.default_rng(1).uniform(BOX[:2], BOX[2:], (17, 2))
    return np.column_stack([grid, np.full(17, 2)])


def draw(config: AugmentConfig, seed: int = 0) -> tuple[np.ndarray, bool]:
    rng = np.random.default_rng(seed)
    return random_transform(BOX, all_labelled(), COCO_17, SIZE_WH, 1.25, config, rng)


def test_without_randomness_it_is_the_plain_crop() -> None:
    transform, mirrored = draw(STILL)
    assert not mirrored
    np.testing.assert_allclose(transform, crop_transforms(BOX, SIZE_WH, 1.25)[0])


def test_mirroring_reverses_the_crop_exactly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (180, 160, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (9, 9), 3)
    plain, _ = draw(STILL)
    transform, mirrored = draw(AugmentConfig(flip_p=1, zoom_sigma=0, rotation_p=0, half_body_p=0))
    assert mirrored
    crops = extract_crops(image, np.stack([plain, transform]), SIZE_WH).astype(int)
    assert np.abs(crops[0][:, ::-1] - crops[1]).max() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_joint_stays_on_its_pixel(seed: int) -> None:
    image = np.zeros((200, 200, 3), dtype=np.uint8)
    joint = np.array([70.0, 90.0])
    cv2.circle(image, (70, 90), 5, (255, 255, 255), -1)
    config = AugmentConfig(flip_p=0.5, half_body_p=0)
    transform, _ = draw(config, seed)
    crop = extract_crops(image, transform[None], SIZE_WH)[0, ..., 0].astype(float)
    x, y = transform_points(transform[None], joint[None, None])[0, 0]
    assert crop.sum() > 0
    centre_x = (crop.sum(axis=0) * np.arange(SIZE_WH[0])).sum() / crop.sum()
    centre_y = (crop.sum(axis=1) * np.arange(SIZE_WH[1])).sum() / crop.sum()
    assert abs(centre_x - x) < 0.1
    assert abs(centre_y - y) < 0.1


def test_zoom_and_rotation_stay_within_their_clips() -> None:
    config = AugmentConfig(flip_p=0, zoom_sigma=0.35, rotation_p=1, rotation_sigma_deg=45)
    plain = crop_transforms(BOX, SIZE_WH, 1.25)[0]
    base = np.hypot(*plain[:, 0])
    draws = [draw(AugmentConfig(**{**config.__dict__, "half_body_p": 0}), s)[0] for s in range(300)]
    zoom = np.array([np.hypot(*t[:, 0]) / base for t in draws])
    angle = np.array([np.degrees(np.arctan2(t[1, 0], t[0, 0])) for t in draws])
    assert zoom.min() == pytest.approx(1 / 1.35)
    assert zoom.max() == pytest.approx(1 / 0.65)
    assert np.abs(angle).max() == pytest.approx(90)
    assert 30 < np.abs(angle).mean() < 42  # E|N(0, 45)| clipped at 90 is about 35


def test_half_body_crops_the_upper_or_the_lower_joints() -> None:
    joints = all_labelled()
    joints[:11, 1] = np.linspace(30, 60, 11)  # upper half high in the box
    joints[11:, 1] = np.linspace(120, 150, 6)
    config = AugmentConfig(flip_p=0, zoom_sigma=0, rotation_p=0, half_body_p=1)
    upper = 0
    for seed in range(400):
        transform, _ = random_transform(
            BOX, joints, COCO_17, SIZE_WH, 1.25, config, np.random.default_rng(seed)
        )
        inside = transform_points(transform[None], joints[None, :, :2])[0]
        is_inside = ((inside >= 0) & (inside < SIZE_WH)).all(axis=1)
        assert is_inside[:11].all() or is_inside[11:].all()
        upper += bool(is_inside[:11].all())
    assert 0.62 < upper / 400 < 0.76  # P(N < 0.5) = 0.69


def test_few_labelled_joints_are_never_halved() -> None:
    joints = all_labelled()
    joints[8:, 2] = 0
    config = AugmentConfig(flip_p=0, zoom_sigma=0, rotation_p=0, half_body_p=1)
    transform, _ = random_transform(
        BOX, joints, COCO_17, SIZE_WH, 1.25, config, np.random.default_rng(0)
    )
    np.testing.assert_allclose(transform, crop_transforms(BOX, SIZE_WH, 1.25)[0])
