"""AP of an artifact on development photos, over the joints that it and the recipe share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.skeleton import COCO_17, Skeleton
from cfpose_training.config import Source
from cfpose_training.data.people import load_people
from cfpose_training.fit import score
from cfpose_training.fit.score import Judge, Score

THREE = Skeleton(("tail", "right wrist", "nose"), (), (), (0.05, 0.062, 0.026))


class Seer:
    """An estimator that knows the truth, shifted by some pixels."""

    def __init__(self, path: Path, **_: object) -> None:
        self.shift = float(path.stem)
        self.spec = self

    skeleton = COCO_17

    def __enter__(self) -> Seer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def predict(self, image: np.ndarray, boxes: np.ndarray) -> Seer:
        self.xy = np.stack([TRUTH[tuple(np.round(box, 6))] for box in boxes]) + self.shift
        self.confidence = np.ones(self.xy.shape[:2])
        return self


TRUTH: dict[tuple[float, ...], np.ndarray] = {}


@pytest.fixture
def judge(
    tmp_path: Path, write_data: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Judge:
    write_data(tmp_path)
    source = Source("own", "people.json", "images", holdout_every=3)
    people = load_people([source], tmp_path, COCO_17, held_out=True)
    TRUTH.clear()
    for box, joints in zip(people.boxes, people.joints, strict=True):
        TRUTH[tuple(np.round(box, 6))] = joints[:, :2]
    monkeypatch.setattr(score, "PoseEstimator", Seer)
    return Judge(source, tmp_path, tmp_path / "cache", THREE)


def test_joints_meet_by_name_whatever_their_order(judge: Judge) -> None:
    assert judge.score(Path("0.onnx")) == Score(2, 1.0, 1.0)
    assert judge.score(Path("0.onnx"), ["nose"]) == Score(1, 1.0, 1.0)
    assert judge.score(Path("0.onnx"), ["tail"]) == Score(0, None, None)
    assert judge.score(Path("40.onnx")) == Score(2, 0.0, 0.0)


def test_the_difference_is_that_of_the_scores(judge: Judge) -> None:
    assert judge.difference(Path("40.onnx"), Path("0.onnx"), ()) == (1.0, 1.0, 1.0)
    assert judge.difference(Path("0.onnx"), Path("0.onnx"), COCO_17.keypoints) == (0.0, 0.0, 0.0)


def test_a_real_artifact_is_run(tmp_path: Path, write_data: Callable[..., None]) -> None:
    write_data(tmp_path)
    source = Source("own", "people.json", "images", holdout_every=5)
    found = Judge(source, tmp_path, tmp_path / "cache", THREE).score(
        model_file("default"), threads=1
    )
    assert found.joints == 2
    assert found.AP is not None
    assert 0 <= found.AP <= 1
