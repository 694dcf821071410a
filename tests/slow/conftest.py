"""What the examples in other languages share: photos, Python's answers, how far theirs may be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import PoseEstimator, Poses

CONFIDENT = 0.3
BETWEEN_PEAKS_PX = 2.5
Farthest = Callable[[list[dict[str, Any]], Poses], float]


@pytest.fixture(scope="session")
def photos(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Shrunk by the finder, enlarged by it, of odd sides, as large as its input, and of nobody."""
    street = cv2.imread(str(root / "examples" / "photos" / "street.jpg"))
    assert street is not None
    folder = tmp_path_factory.mktemp("photos")
    cv2.imwrite(str(folder / "odd.png"), street[31:, 101:])
    cv2.imwrite(str(folder / "square.png"), street[90:570, 200:680])
    cv2.imwrite(str(folder / "nobody.png"), np.full((90, 120, 3), 128, np.uint8))
    return [
        *sorted((root / "examples" / "photos").glob("*.jpg")),
        root / "cfpose_sdk" / "models" / "known_person.png",
        *(folder / f"{name}.png" for name in ("odd", "square", "nobody")),
    ]


@pytest.fixture(scope="session")
def expected(photos: list[Path]) -> dict[Path, Poses]:
    """Python's answers, computed once."""
    with PoseEstimator(device="cpu") as estimator:
        answers = {photo: estimator.predict(photo) for photo in photos}
    assert [len(poses) > 0 for poses in answers.values()] == [True] * 5 + [False]
    return answers


@pytest.fixture(scope="session")
def farthest() -> Farthest:
    """How far the joints lie from Python's, of the same people in the same order: all but one in
    fifty. One that stands between two peaks may take the other, as it does in Python when each
    pixel is off by one grey level.
    """

    def farthest_px(people: list[dict[str, Any]], poses: Poses) -> float:
        assert len(people) == len(poses)
        if not people:
            return 0.0
        joints = np.array([person["joints"] for person in people])
        boxes = np.array([person["box"] for person in people])
        assert np.abs(boxes - poses.boxes).max() < 0.1
        assert np.abs(joints[..., 2] - poses.confidence).max() < 0.2
        away = np.linalg.norm(joints[..., :2] - poses.xy, axis=-1)[poses.confidence >= CONFIDENT]
        assert away.max() <= BETWEEN_PEAKS_PX
        return float(np.quantile(away, 0.98))

    return farthest_px


@pytest.fixture(scope="session")
def node() -> str:
    """The command, of version 20 or newer."""
    command = shutil.which("node")
    if command is None:
        pytest.skip("Node is not installed (version 20 or newer)")
    return command
