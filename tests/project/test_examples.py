"""The examples run as a reader would run them, from anywhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

EXAMPLES = [
    "01_image.py",
    "02_own_boxes.py",
    "03_batch.py",
    "04_stream.py",
    "05_tracking.py",
    "ray_bulk.py",
]


def _run(root: Path, example: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(root / "examples" / example), *arguments]
    run = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


def test_every_example_is_listed_here(root: Path) -> None:
    assert sorted(path.name for path in (root / "examples").glob("*.py")) == EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_short(root: Path, example: str) -> None:
    assert len((root / "examples" / example).read_text().splitlines()) < 30


def test_one_photo(root: Path, tmp_path: Path) -> None:
    said = _run(root, "01_image.py", tmp_path)
    people = int(said.split()[0])
    assert people >= 2  # the photo shows seven
    assert said.count("joints visible") == people
    drawn = cv2.imread(str(tmp_path / "poses.jpg"))
    photo = cv2.imread(str(root / "examples" / "photos" / "street.jpg"))
    assert drawn is not None
    assert photo is not None
    assert drawn.shape == photo.shape
    assert (abs(drawn.astype(int) - photo) > 60).any(), "nothing was drawn"


def test_one_photo_of_the_callers_choice(root: Path, tmp_path: Path) -> None:
    photo = root / "examples" / "photos" / "basketball1.jpg"
    assert "people in basketball1.jpg" in _run(
        root, "01_image.py", tmp_path, str(photo), str(tmp_path / "drawn.png")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]


def test_own_boxes(root: Path, tmp_path: Path) -> None:
    lines = _run(root, "02_own_boxes.py", tmp_path).splitlines()
    assert [int(line.split()[-2]) for line in lines] == [2, 0, 1]
    assert list(tmp_path.iterdir()) == []


def test_a_batch(root: Path, tmp_path: Path) -> None:
    said = _run(root, "03_batch.py", tmp_path)
    rows = json.loads((tmp_path / "poses.json").read_text())
    counts = {line.split(":")[0]: int(line.split()[1]) for line in said.splitlines()[:2]}
    assert set(counts) == {"street.jpg", "basketball1.jpg"}
    for name, count in counts.items():
        mine = [row for row in rows if row["image_id"] == Path(name).stem]
        assert len(mine) == count
    assert len(rows) == sum(counts.values()) > 0
    assert all(len(row["keypoints"]) == 3 * 17 and row["category_id"] == 1 for row in rows)


@pytest.fixture
def clip(root: Path, tmp_path: Path) -> Path:
    """Eight frames over the street photo, ten a second."""
    photo = cv2.imread(str(root / "examples" / "photos" / "street.jpg"))
    assert photo is not None
    writer = cv2.VideoWriter(
        str(tmp_path / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (640, 480)
    )
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for shift in range(8):
        writer.write(photo[50:530, 2 * shift : 2 * shift + 640].copy())
    writer.release()
    return tmp_path / "walk.mp4"


def test_a_stream(root: Path, clip: Path, tmp_path: Path) -> None:
    lines = _run(root, "04_stream.py", tmp_path, str(clip), "5").splitlines()
    assert [line.split(" s: ")[0] for line in lines] == ["0.00", "0.10", "0.20", "0.30", "0.40"]
    assert all(int(line.split()[2]) >= 2 for line in lines)


def test_tracking(root: Path, clip: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.mp4"
    lines = _run(root, "05_tracking.py", tmp_path, str(clip), str(drawn)).splitlines()
    assert lines[0].startswith("person 1: ")
    assert sum(line.endswith(": 8 frames") for line in lines) >= 2  # seen from start to end
    capture = cv2.VideoCapture(str(drawn))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 8
    capture.release()


def test_ray(root: Path, clip: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'cfpose-sdk[ray,cpu]'")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(root / "examples" / "photos" / "street.jpg", photos / name)
    command = [sys.executable, str(root / "examples" / "ray_bulk.py"), "out", "photos", str(clip)]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    files = sorted((tmp_path / "out").iterdir())
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(row["image"] for row in rows) == [
        "a.jpg", "b.jpg", *(f"walk-{n:06d}" for n in range(8))
    ]  # fmt: skip
    assert all(len(json.loads(row["poses"])["people"]) >= 2 for row in rows)


def test_every_photo_has_a_source(root: Path) -> None:
    folder = root / "examples" / "photos"
    sources = (folder / "SOURCES.md").read_text()
    photos = [path.name for path in folder.iterdir() if path.suffix != ".md"]
    assert photos
    assert [name for name in photos if f"`{name}`" not in sources] == []
