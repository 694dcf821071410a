"""The gallery shows what the bundled models do today, on photos whose terms are known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk import PoseEstimator


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "docs" / "gallery"


@pytest.fixture
def generate(root: Path) -> ModuleType:
    """`docs/generate.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("generate", root / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _photos(folder: Path) -> dict[str, dict[str, Any]]:
    photos: dict[str, dict[str, Any]] = json.loads((folder / "photos.json").read_text("utf-8"))
    return photos


def test_each_photo_has_its_terms_and_its_picture(folder: Path) -> None:
    photos = _photos(folder)
    assert len(photos) == 10
    for place in ("photos", "drawn"):
        assert {path.name for path in (folder / place).iterdir()} == {f"{n}.jpg" for n in photos}
    for name, photo in photos.items():
        assert all(photo[field] for field in ("shows", "from", "licence")), name
    sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
    assert max(sizes) < 100_000
    assert sum(sizes) < 800_000


def test_it_was_drawn_with_the_bundled_models(folder: Path) -> None:
    committed = json.loads((folder / "poses.json").read_text("utf-8"))
    with PoseEstimator(device="cpu") as estimator:
        for name in _photos(folder):
            now = estimator.predict(folder / "photos" / f"{name}.jpg")
            then = [pose["bbox"] for pose in committed if pose["image_id"] == f"{name}.jpg"]
            assert len(now) == len(then), "run: make gallery"
            corners = np.array(then).reshape(-1, 4)
            corners[:, 2:] += corners[:, :2]
            np.testing.assert_allclose(now.boxes, corners, atol=2, err_msg="run: make gallery")


def test_a_box_counts_for_one_person_and_a_person_once(generate: ModuleType) -> None:
    people = [[0, 0, 10, 10], [20, 0, 30, 10]]
    assert generate.count_found(people, [[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]]) == 1
    assert generate.count_found([[0, 0, 10, 10], [0, 0, 10, 9]], [[0, 0, 10, 10]]) == 1
    assert generate.count_found(people, [[21, 0, 31, 10], [0, 0, 10, 6]]) == 2
    assert generate.count_found(people, [[0, 0, 10, 4]]) == 0
    assert generate.count_found(people, []) == generate.count_found([], people) == 0


def test_the_page_names_what_was_missed(generate: ModuleType, folder: Path) -> None:
    page = generate.gallery_page()
    for name, photo in _photos(folder).items():
        assert f"../gallery/drawn/{name}.jpg" in page
        assert f"{photo['shows']}. **People {len(photo['people'])}, found " in page
    assert f"people {sum(len(photo['people']) for photo in _photos(folder).values())}, " in page
