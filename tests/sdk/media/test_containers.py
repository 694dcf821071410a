"""AVIF's orientation against Pillow's, and how many pictures a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.media.containers import count_pictures, turn_avif
from cfpose_sdk.media.image import read_image

pil = pytest.importorskip("PIL.Image")


def picture() -> Any:
    """Four corners of different colours."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48], pixels[:32, 48:], pixels[32:, :48] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return pil.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    features = pytest.importorskip("PIL.features")
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    from PIL import ImageOps

    exif = pil.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture().save(tmp_path / "a.avif", exif=exif, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(pil.open(tmp_path / "a.jpg")))[:, :, ::-1]
    found = read_image(tmp_path / "a.avif")
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 8


def test_only_avif_is_turned() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    box = b"\0\0\0\x09irot\x01"
    assert turn_avif(b"\xff\xd8" + box, image) is image
    assert turn_avif(b"\0\0\0\x20ftypavif" + box, image).shape == (3, 2, 3)
    assert turn_avif(b"\0\0\0\x20ftypavif" + b"mdat" + box, image) is image


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_pictures_of_an_animation_are_counted_and_said(suffix: str, tmp_path: Path) -> None:
    one, many = tmp_path / f"one{suffix}", tmp_path / f"many{suffix}"
    pages = [picture().rotate(angle) for angle in (90, 180)]
    picture().save(one)
    picture().save(many, save_all=True, append_images=pages)
    assert count_pictures(one.read_bytes()) == 1
    assert count_pictures(many.read_bytes()) == 3
    assert read_image(one).shape == (64, 96, 3)
    with pytest.warns(RuntimeWarning, match=r"page \(3\).*only the first"):
        assert read_image(many).shape == (64, 96, 3)
    data = many.read_bytes()
    for end in range(0, len(data), 7):
        assert count_pictures(data[:end]) >= 1


def test_noise_counts_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    starts = (b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"MM\0*", b"\x89PNG", b"")
    for start in starts:
        for _ in range(200):
            count_pictures(start + rng.bytes(200))
    loop = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"  # a page that is its own next
    assert count_pictures(loop) > 1
    assert count_pictures(cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes()) == 1
