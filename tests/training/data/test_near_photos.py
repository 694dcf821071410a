"""Photos near the evaluation's are found, also resized, packed or mirrored; others stay."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import InputError
from cfpose_training.data.near_photos import main, near_photos, photo_bits


def scene(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    """Soft blobs of many sizes: as smooth as photos are."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """New photos and an evaluation's, of which three repeat one of its photos."""
    new, val = tmp_path / "new" / "deep", tmp_path / "val"
    new.mkdir(parents=True)
    val.mkdir()
    for seed in range(6):
        cv2.imwrite(str(val / f"val{seed}.png"), scene(seed))
    for seed in range(100, 110):
        cv2.imwrite(str(new / f"new{seed}.png"), scene(seed))
    cv2.imwrite(str(new / "small.png"), cv2.resize(scene(1), (200, 150)))
    cv2.imwrite(str(new / "packed.jpg"), scene(2), [cv2.IMWRITE_JPEG_QUALITY, 40])
    cv2.imwrite(str(new / "mirrored.png"), scene(3)[:, ::-1])
    return tmp_path / "new", val


def test_copies_are_found_and_nothing_else(folders: tuple[Path, Path]) -> None:
    new, val = folders
    found = near_photos(sorted(new.rglob("*.*")), sorted(val.iterdir()))
    pairs = {(near.photo, near.repeats) for near in found}
    assert pairs == {
        ("small.png", "val1.png"),
        ("packed.jpg", "val2.png"),
        ("mirrored.png", "val3.png"),
    }


def test_unlike_photos_differ_in_about_half_of_the_bits() -> None:
    hashes = np.array([photo_bits(scene(seed)) for seed in range(30)])
    apart = (hashes[:, None] != hashes[None]).sum(axis=2)[np.triu_indices(30, 1)]
    assert hashes.shape == (30, 63)
    assert apart.min() > 12
    assert 28 < apart.mean() < 35


def test_the_command_links_what_is_kept_and_says_what_is_not(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, val = folders
    into = tmp_path / "kept"
    assert main([str(new), "--against", str(val), "--into", str(into)]) == 0
    assert capsys.readouterr().out.startswith("10 photos kept, 3 left out")
    links = sorted(path for path in into.iterdir() if path.suffix != ".json")
    assert [link.name for link in links] == [f"new{seed}.png" for seed in range(100, 110)]
    record = json.loads((into / "photos.json").read_text())
    assert {near["photo"] for near in record["left_out"]} == {
        "small.png",
        "packed.jpg",
        "mirrored.png",
    }
    assert record["sha256"] == {
        link.name: hashlib.sha256(link.read_bytes()).hexdigest() for link in links
    }


def test_two_photos_of_one_name_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    new, val = folders
    cv2.imwrite(str(new / "small.png"), scene(50))
    with pytest.raises(InputError, match=r"two photos are called small\.png"):
        main([str(new), "--against", str(val), "--into", str(tmp_path / "kept")])
    with pytest.raises(InputError, match="holds no photo"):
        main([str(val), "--against", str(tmp_path / "kept"), "--into", str(tmp_path / "kept")])
