"""Random crops: positions follow the pixels, and the draws follow the options."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cfpose_sdk.crops import crop_transforms, extract_crops, transform_points
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.config import AugmentConfig
from cfpose_training.data.augment import (
    coarse_dropout,
    random_transform,
    rotation_deg,
)

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


HOLES = AugmentConfig(dropout_p=1.0, dropout_side=(0.2, 0.4))


def hole(seed: int, config: AugmentConfig = HOLES) -> tuple[np.ndarray, np.ndarray]:
    """A white crop after the dropout, and where it is black."""
    crop = np.full((SIZE_WH[1], SIZE_WH[0], 3), 255, dtype=np.uint8)
    holed = coarse_dropout(crop, config, np.random.default_rng(seed))
    assert (crop == 255).all()  # the caller's crop stays
    return holed, (holed == 0).all(axis=2)


def test_the_hole_is_one_rectangle_of_the_asked_size_anywhere_inside() -> None:
    sizes, centres = [], []
    for seed in range(400):
        holed, black = hole(seed)
        rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert black.sum() == height * width  # solid, and only one
        assert (holed[~black] == 255).all()
        sizes.append((width / SIZE_WH[0], height / SIZE_WH[1]))
        centres.append((columns.mean() / SIZE_WH[0], rows.mean() / SIZE_WH[1]))
    low, high = np.min(sizes, axis=0), np.max(sizes, axis=0)
    np.testing.assert_allclose(low, 0.2, atol=0.01)
    np.testing.assert_allclose(high, 0.4, atol=0.01)
    np.testing.assert_allclose(np.mean(sizes, axis=0), 0.3, atol=0.01)  # uniform
    np.testing.assert_allclose(np.mean(centres, axis=0), 0.5, atol=0.04)
    assert np.abs(np.corrcoef(np.transpose(sizes))[0, 1]) < 0.15  # a size for each axis
    touching = [abs(x - w / 2) < 0.02 for (x, _), (w, _) in zip(centres, sizes, strict=True)]
    assert any(touching)  # up to the very edge


def test_the_hole_comes_as_often_as_asked_and_with_a_seed_the_same() -> None:
    half = AugmentConfig(dropout_p=0.5)
    holed = [hole(seed, half)[1].any() for seed in range(400)]
    assert 0.42 < np.mean(holed) < 0.58
    assert not any(hole(seed, AugmentConfig())[1].any() for seed in range(20))
    np.testing.assert_array_equal(hole(3)[0], hole(3)[0])


@pytest.mark.parametrize("side", [(1.0, 1.0), (1e-6, 1e-6)])
def test_a_hole_may_be_all_of_the_crop_and_is_a_pixel_at_least(side: tuple[float, float]) -> None:
    _, black = hole(0, AugmentConfig(dropout_p=1, dropout_side=side))
    assert black.sum() == (black.size if side[0] == 1 else 1)


def test_a_box_that_is_off_moves_and_scales_the_crop_within_bounds() -> None:
    """Each edge by at most 2 sigma of its side; sigma 0 draws nothing, so old runs stay."""
    off = AugmentConfig(flip_p=0, zoom_sigma=0, rotation_p=0, half_body_p=0, box_sigma=0.1)
    plain = crop_transforms(BOX, SIZE_WH, 1.25)[0]
    centre, sides = (BOX[:2] + BOX[2:]) / 2, BOX[2:] - BOX[:2]
    middle = (np.array(SIZE_WH) - 1) / 2
    shifts, zooms = [], []
    for seed in range(400):
        transform, _ = draw(off, seed)
        back = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))
        shifts.append((back[:2, :2] @ middle + back[:2, 2] + 0.5 - centre) / sides)
        zooms.append(plain[0, 0] / transform[0, 0])
    # the mean of two edges that are off by clip(N(0, 0.1), 0.2) each
    assert np.abs(shifts).max() <= 0.2
    assert np.std(shifts, axis=0) == pytest.approx([0.068, 0.068], rel=0.1)
    assert 0.6 <= min(zooms) < 0.8
    assert 1.2 < max(zooms) <= 1.4
    for seed in range(5):
        assert draw(STILL, seed)[0].tolist() == plain.tolist()


def test_turned_crops_turn_by_any_angle_and_hold_the_person(mirror: float) -> None:
    """A tall person's middle stays in the middle, and the ends of the body inside the crop."""
    config = AugmentConfig(flip_p=mirror, zoom_sigma=0, rotation_p=0, half_body_p=0, turn_p=1.0)
    box = np.array([100.0, 50.0, 160.0, 250.0])
    joints = np.zeros((17, 3))
    ends = np.array([[[130.0, 50.0], [130.0, 150.0], [130.0, 250.0]]])
    angles = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        transform, mirrored = random_transform(box, joints, COCO_17, (96, 128), 1.0, config, rng)
        assert mirrored == bool(mirror)
        top, middle, bottom = transform_points(transform[None], ends)[0]
        centre = [47, 64] if mirrored else [48, 64]
        np.testing.assert_allclose(middle, centre, atol=1e-9)
        for end in (top, bottom):
            assert (-1e-6 - mirror <= end).all()
            assert (end <= [96 + 1e-6, 128 + 1e-6]).all()
        along = bottom - top
        angle = np.rad2deg(np.arctan2(-along[0] * (-1 if mirrored else 1), along[1]))
        assert rotation_deg(transform) == pytest.approx(angle)
        angles.append(angle)
    assert (np.histogram(angles, bins=6, range=(-180, 180))[0] > 15).all()


def test_without_turns_nothing_is_drawn_for_them() -> None:
    box, joints = np.array([10.0, 10.0, 60.0, 90.0]), np.zeros((17, 3))
    rng = [np.random.default_rng(3), np.random.default_rng(3)]
    for config, generator in zip((AugmentConfig(), AugmentConfig(turn_p=1e-12)), rng, strict=True):
        random_transform(box, joints, COCO_17, (48, 64), 1.25, config, generator)
    assert rng[0].random() != rng[1].random()
