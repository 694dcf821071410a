"""Bundled models by name: what a name stands for, and what it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cfpose_sdk.backends.bundled import (
    BUNDLED_FINDER,
    BUNDLED_MODEL,
    POSE_MODELS,
    bundled_models,
    model_file,
)
from cfpose_sdk.cli import main
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import MODELS


def test_every_bundled_file_has_its_name() -> None:
    assert next(iter(bundled_models().items())) == ("cfpose-s", BUNDLED_MODEL)
    known = {*POSE_MODELS.values(), BUNDLED_FINDER}
    assert set(MODELS.glob("*.onnx")) <= known
    assert set(bundled_models().values()) | {BUNDLED_FINDER} == set(MODELS.glob("*.onnx"))


@pytest.mark.parametrize("name", bundled_models())
def test_a_bundled_model_opens_by_its_name(name: str) -> None:
    with PoseEstimator(name, device="cpu", threads=1) as estimator:
        assert estimator.spec.name == name
        assert Path(estimator.info.model) == POSE_MODELS[name]
        image = np.full((64, 48, 3), 128, dtype=np.uint8)
        assert estimator.predict(image, boxes=[[4, 4, 40, 60]]).xy.shape == (1, 17, 2)


def test_default_is_the_first() -> None:
    assert model_file("default") == model_file("cfpose-s") == model_file(Path("cfpose-s"))
    assert model_file("default") == BUNDLED_MODEL


@pytest.mark.parametrize("path", ["cfpose-s.onnx", "runs/cfpose-s", "./default", "x.engine", ""])
def test_a_path_stays_a_path(path: str) -> None:
    assert model_file(path) == Path(path)


def test_a_file_of_that_name_does_not_hide_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cfpose-s").write_bytes(b"")
    assert model_file("cfpose-s") == BUNDLED_MODEL


def test_another_name_is_answered_with_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"cfpose-s": BUNDLED_MODEL, "cfpose-m": tmp_path / "cfpose-m.onnx"}
    monkeypatch.setattr("cfpose_sdk.backends.bundled.POSE_MODELS", known)
    with pytest.raises(ArtifactError, match="cfpose-l is no bundled model; expected one of cfpos"):
        PoseEstimator("cfpose-l")
    names = "expected one of cfpose-s, default, or a file"
    with pytest.raises(ArtifactError, match=f"cfpose-m is not in this installation; {names}"):
        PoseEstimator("cfpose-m")
    with pytest.raises(ArtifactError, match="cfpose-l is no bundled model"):
        main(["predict", "photo.jpg", "--model", "cfpose-l"])
    known["cfpose-m"].write_bytes(b"")
    assert model_file("cfpose-m") == known["cfpose-m"]
