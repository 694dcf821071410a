"""The one geometry: exact inverse, its convention, and the pixels it takes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_sdk.crops import (
    crop_transforms,
    extract_crops,
    invert_transforms,
    mirror_points,
    transform_points,
)
from cfpose_sdk.errors import ImageError
from cfpose_sdk.skeleton import COCO_17

SIDE = st.floats(1, 8192)
START = st.floats(-8192, 8192)
BOX = st.tuples(START, START, SIDE, SIDE).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
SIZES = st.sampled_from([(192, 256), (288, 384), (48, 64), (144, 192), (100, 37)])


@given(BOX, SIZES, st.floats(1.0, 2.0), st.floats(-180, 180), st.floats(0.5, 2))
def test_crop_then_inverse_is_identity(
    box: list[float], size_wh: tuple[int, int], scale: float, angle: float, zoom: float
) -> None:
    maps = crop_transforms([box], size_wh, scale, rotation_deg=angle, zoom=zoom)
    x1, y1, x2, y2 = box
    points = np.array([[[x1, y1], [x2, y2], [x1, y2], [(x1 + x2) / 2, y1], [0, 0]]])
    there = transform_points(maps, points)
    # the artifact speaks float32 crop pixels; on the box itself that is what a user sees
    back = transform_points(invert_transforms(maps), there)
    assert np.abs(back - points).max() < 1e-3
    rounded = transform_points(invert_transforms(maps), there[:, :4].astype(np.float32))
    assert np.abs(rounded - points[:, :4]).max() < 2e-3 * max(1.0, max(x2 - x1, y2 - y1) / 4096)


@given(BOX, SIZES, st.floats(1.0, 2.0))
def test_box_lands_centred_whole_and_undistorted(
    box: list[float], size_wh: tuple[int, int], scale: float
) -> None:
    x1, y1, x2, y2 = box
    corners = np.array([[[x1, y1], [x2, y2]]])
    (low, high), (width, height) = (
        transform_points(crop_transforms([box], size_wh, scale), corners)[0],
        size_wh,
    )
    np.testing.assert_allclose((low + high) / 2, [width / 2, height / 2], atol=1e-6)
    span = high - low
    # aspect is kept, and the tighter side fills 1 / scale of the crop
    assert span[0] * (y2 - y1) == pytest.approx(span[1] * (x2 - x1), rel=1e-9)
    assert max(span / [width, height]) == pytest.approx(1 / scale, rel=1e-9)


def test_known_box() -> None:
    # 100 x 100 box, 192 x 256 crop: the region is 93.75 → 100 wide, times 1.25 = 125 px
    (matrix,) = crop_transforms([[50, 20, 150, 120]], (192, 256), 1.25)
    scale = 192 / 125
    np.testing.assert_allclose(
        matrix, [[scale, 0, 96 - scale * 100], [0, scale, 128 - scale * 70]], rtol=1e-12
    )


def test_rotation_turns_clockwise_on_the_screen() -> None:
    (matrix,) = crop_transforms([[0, 0, 10, 10]], (100, 100), 1.0, rotation_deg=90)
    right_of_centre = transform_points(matrix[None], [[[8, 5]]])[0, 0]
    np.testing.assert_allclose(right_of_centre, [50, 80], atol=1e-9)  # y grows downwards


def bilinear(image: np.ndarray, transform: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """Slow float64 sampling at the exact inverse, zero outside the image."""
    inverse = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))
    crop = np.zeros((size_wh[1], size_wh[0], 3))
    for v in range(size_wh[1]):
        for u in range(size_wh[0]):
            x, y, _ = inverse @ [u, v, 1]
            for i in (int(np.floor(x)), int(np.floor(x)) + 1):
                for j in (int(np.floor(y)), int(np.floor(y)) + 1):
                    if 0 <= i < image.shape[1] and 0 <= j < image.shape[0]:
                        crop[v, u] += (1 - abs(x - i)) * (1 - abs(y - j)) * image[j, i]
    return crop


@pytest.mark.parametrize(
    "box", [(10, 10, 50, 50), (3.3, 5.7, 44.1, 58.9), (-20, -10, 30, 90), (10, 10, 12, 13)]
)
@pytest.mark.parametrize("angle", [0, 30])
def test_crops_are_bilinear_samples(box: tuple[float, ...], angle: float) -> None:
    y, x = np.mgrid[:60, :80]
    # soft waves: half a pixel of shift would show as about 9 grey levels
    waves = [127 + 90 * np.sin(x / 5 + c) * np.cos(y / 6 - c) for c in range(3)]
    image = np.stack(waves, axis=-1).astype(np.uint8)
    maps = crop_transforms([box], (24, 32), 1.25, rotation_deg=angle)
    (crop,) = extract_crops(image, maps, (24, 32))
    difference = np.abs(crop - bilinear(image, maps[0], (24, 32)))
    assert difference.mean() < 0.6
    rounded = int(cv2.__version__.split(".")[0]) < 5  # OpenCV 4: positions, to 1/32 px
    # the black border of the image is steeper
    assert np.quantile(difference, 0.98) <= (1.5 if rounded else 1.0)


@pytest.mark.parametrize("shape", [(60, 80, 3), (700, 900, 3)])
@pytest.mark.parametrize("angle", [0, 30])
def test_crops_are_what_opencv_warps_with_three_channels(
    shape: tuple[int, ...], angle: float
) -> None:
    image = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
    size, (h, w) = (24, 32), shape[:2]
    boxes = [
        [w - 30, 5, w - 2, 40],
        [-9, h - 20.5, 30, h + 40],
        [w / 2, h / 2, w / 2 + 9, h / 2 + 3],
    ]
    for chosen in (boxes, boxes[:1]):
        maps = crop_transforms(chosen, size, 1.25, rotation_deg=angle)
        expected = [cv2.warpAffine(image, onto, size, flags=cv2.INTER_LINEAR) for onto in maps]
        np.testing.assert_array_equal(extract_crops(image, maps, size), expected)


def test_outside_is_black_and_nothing_gives_nothing() -> None:
    image = np.full((20, 20, 3), 255, np.uint8)
    maps = crop_transforms([[100, 100, 120, 120]], (24, 32), 1.25)
    assert (extract_crops(image, maps, (24, 32)) == 0).all()
    nobody = crop_transforms(np.zeros((0, 4)), (24, 32), 1.25)
    assert nobody.shape == (0, 2, 3)
    assert invert_transforms(nobody).shape == (0, 2, 3)
    assert extract_crops(image, nobody, (24, 32)).shape == (0, 32, 24, 3)


@pytest.mark.parametrize("turned", [False, True])
def test_a_very_long_image_is_cropped_like_its_part(turned: bool) -> None:
    picture = np.random.default_rng(5).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image, start = np.zeros((60, 40000, 3), np.uint8), 39000
    image[:, start : start + 80] = picture
    box = np.array([20.0, 10.0, 50.0, 55.0])
    if turned:
        image, picture = image.swapaxes(0, 1).copy(), picture.swapaxes(0, 1).copy()
        box = box[[1, 0, 3, 2]]
    shift = np.array([0, start] if turned else [start, 0])
    far = crop_transforms([box + np.tile(shift, 2), [1e5, 1e5, 1e5 + 9, 1e5 + 9]], (24, 32), 1.25)
    crop, outside = extract_crops(image, far, (24, 32))
    (expected,) = extract_crops(picture, crop_transforms([box], (24, 32), 1.25), (24, 32))
    np.testing.assert_array_equal(crop, expected)
    assert (outside == 0).all()


def test_a_crop_longer_than_opencv_takes_is_an_image_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise cv2.error("src.cols < SHRT_MAX")

    monkeypatch.setattr(cv2, "warpAffine", refuse)  # as OpenCV 4 does; OpenCV 5 has no limit
    maps = crop_transforms([[0, 0, 40000, 10]], (24, 32), 1.25)
    with pytest.raises(ImageError, match=r"takes 40000 x 10 pixels.*sides below 32767"):
        extract_crops(np.zeros((10, 40000, 3), np.uint8), maps, (24, 32))
    with pytest.raises(cv2.error):  # another cause is not renamed
        extract_crops(np.zeros((10, 40, 3), np.uint8), maps, (24, 32))


def test_mirroring_agrees_with_the_mirrored_picture() -> None:
    rng = np.random.default_rng(3)
    points = rng.integers(0, 48, (2, 17, 2)).astype(np.float64)
    mirrored = mirror_points(points, 48, COCO_17.flip_order)
    picture = np.zeros((64, 48), np.uint8)
    x, y = points[0, 9].astype(int)  # left wrist
    picture[y, x] = 255
    v, u = np.argwhere(picture[:, ::-1])[0]
    np.testing.assert_array_equal(mirrored[0, 10], [u, v])  # is the right wrist of the mirror
    np.testing.assert_array_equal(mirror_points(mirrored, 48, COCO_17.flip_order), points)
