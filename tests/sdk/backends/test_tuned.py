"""A tuned file: used where it counts, refused with the command where it does not."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import RuntimeOptions, open_backend, tuned
from cfpose_sdk.backends.tuned import Setting, Way
from cfpose_sdk.errors import ArtifactError, BackendError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import CACHE_VARIABLE, digest

pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")

OPENVINO = Way("openvino")
IMAGE = np.full((64, 64, 3), 90, np.uint8)


@pytest.fixture
def model(
    tmp_path: Path, pose_model: Path, finder_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A pose model of the test's own, an empty cache, and the tiny finder as the bundled one."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("cfpose_sdk.backends.tuned.BUNDLED_FINDER", finder_model)
    return Path(shutil.copy(pose_model, tmp_path / "mine.onnx"))


def keep(model: Path, setting: Setting, float32: Setting | None = None) -> Path:
    """The tuned file that `cfpose tune` would write."""
    record = {
        **tuned.record_of(model),
        "tuned": tuned.plain(setting),
        "float32": tuned.plain(float32 or Setting()),
        "measured": {"date": "2026-11-29", "told": "2.00 times the default's speed at 5 people"},
    }
    file = tuned.tuned_file(model, digest(model))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(tuned.signed(record))
    return file


def test_the_tuned_setting_is_used_and_said(model: Path) -> None:
    keep(model, Setting(OPENVINO, OPENVINO, 1))
    with PoseEstimator(model, precision="tuned") as estimator:
        poses = estimator.predict(IMAGE)
        assert len(poses) == 2
        info = estimator.info
        assert info.provider.startswith("OpenVINO")
        assert "OpenVINO" in info.detector
        assert info.tuned.startswith("OpenVINO float32, 1 thread; tuned 2026-11-29: 2.00 times")
        again = pickle.loads(pickle.dumps(estimator))
        assert again.info.tuned == info.tuned
        again.close()
    with PoseEstimator(model, device="cpu") as plain:
        np.testing.assert_allclose(plain.predict(IMAGE, poses.boxes).xy, poses.xy, atol=1e-3)
        assert plain.info.tuned == ""


def test_a_graph_beside_the_file_is_opened(model: Path) -> None:
    other = tuned.tuned_file(model, digest(model)).with_name("mine-low.onnx")
    other.parent.mkdir(parents=True)
    shutil.copy(model, other)
    way = Way("cpu", "int8", other.name, digest(other))
    keep(model, Setting(way, Way()))
    with PoseEstimator(model, precision="tuned") as estimator:
        assert estimator.info.model == str(other)
        assert estimator.info.tuned.startswith("onnxruntime int8, finder float32; ")
    other.write_bytes(other.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match=r"mine-low.onnx is gone or was changed; run: cfpose"):
        PoseEstimator(model, precision="tuned")
    other.unlink()
    with pytest.raises(ArtifactError, match="gone or was changed"):
        PoseEstimator(model, precision="tuned")


def test_without_a_file_the_command_is_named(model: Path) -> None:
    with pytest.raises(BackendError, match=r"nothing was tuned .* cfpose tune --model .*mine.onnx"):
        PoseEstimator(model, precision="tuned")
    keep(model, Setting(OPENVINO, OPENVINO))
    model.write_bytes(model.read_bytes() + b"\x72\x00")  # another model of that name
    with pytest.raises(BackendError, match=r"nothing was tuned for this mine\.onnx"):
        PoseEstimator(model, precision="tuned")
    with pytest.raises(BackendError, match="run: cfpose tune --model cfpose-m"):
        PoseEstimator("cfpose-m", precision="tuned")
    with pytest.raises(BackendError, match=r"run: cfpose tune$"):
        PoseEstimator(precision="tuned")


Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("machine", lambda m: {**m, "cpu": "Another CPU"}, "cpu was .*, is Another CPU"),
        ("machine", lambda m: {**m, "flags": []}, r"flags was .*, is \[\]"),
        ("packages", lambda p: {**p, "openvino": "9.9"}, "openvino was .*, is 9.9"),
        ("packages", lambda p: {**p, "onnxruntime-gpu": "1"}, "onnxruntime-gpu was None, is 1"),
    ],
)
def test_another_machine_or_version_is_refused(
    name: str, change: Change, said: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(model, Setting(OPENVINO, OPENVINO), Setting(OPENVINO, OPENVINO))
    here = getattr(tuned, name)()
    monkeypatch.setattr(tuned, name, lambda: change(here))
    with pytest.raises(BackendError, match=f"{said}.*; run: cfpose tune"):
        PoseEstimator(model, precision="tuned")
    with PoseEstimator(model, detector=lambda image: []) as estimator:  # as if there were none
        assert estimator.info.provider == "CPUExecutionProvider"


def test_another_finder_is_refused(
    model: Path, pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(model, Setting())
    monkeypatch.setattr(tuned, "BUNDLED_FINDER", pose_model)
    with pytest.raises(BackendError, match="finder was another one"):
        PoseEstimator(model, precision="tuned")


def test_an_edited_file_is_refused(model: Path) -> None:
    file = keep(model, Setting())
    record = json.loads(file.read_text())
    record["tuned"]["pose"]["device"] = "openvino"
    for text in (json.dumps(record), "{", "[]", ""):
        file.write_text(text)
        with pytest.raises(ArtifactError, match="run: cfpose tune"):
            PoseEstimator(model, precision="tuned")
    record["format"] = 0
    del record["sha256"], record["machine"]
    file.write_text(tuned.signed(record))
    with pytest.raises(BackendError, match="has format 0, this cfpose reads 1"):
        PoseEstimator(model, precision="tuned")


def test_auto_takes_the_fastest_float32_runtime_alone(model: Path) -> None:
    lower = Way("openvino", precision="bf16")
    keep(model, Setting(lower, OPENVINO), Setting(OPENVINO, OPENVINO, 1))
    with PoseEstimator(model) as estimator:
        assert estimator.info.provider.startswith("OpenVINO")
        assert "fastest in float32" in estimator.info.tuned
        assert estimator._tuned is not None
        assert estimator._tuned.options == RuntimeOptions()
    for chosen in ({"device": "cpu"}, {"options": RuntimeOptions()}):
        with PoseEstimator(model, **chosen) as estimator:
            assert (estimator.info.provider, estimator.info.tuned) == ("CPUExecutionProvider", "")
    keep(model, Setting(lower, OPENVINO))  # nothing beats the default in float32
    with PoseEstimator(model) as estimator:
        assert (estimator.info.provider, estimator.info.tuned) == ("CPUExecutionProvider", "")


def test_the_callers_threads_count(model: Path) -> None:
    keep(model, Setting(OPENVINO, OPENVINO, 2))
    with PoseEstimator(model, precision="tuned", threads=1) as estimator:
        assert estimator._tuned is not None
        assert estimator._tuned.threads(1) == 1
        assert estimator._tuned.threads(None) == 2
        compiled = estimator._backend._compiled  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_wrong_use(model: Path) -> None:
    keep(model, Setting())
    for wrong in ({"device": "cuda"}, {"device": "openvino"}, {"options": RuntimeOptions()}):
        with pytest.raises(InputError, match="chooses runtime and options itself"):
            PoseEstimator(model, precision="tuned", **wrong)  # type: ignore[arg-type]
    with open_backend(model) as backend, pytest.raises(InputError, match="a model's file"):
        PoseEstimator(backend, precision="tuned")
    with pytest.raises(InputError, match="precision must be 'tuned' or None, got 'bf16'"):
        PoseEstimator(model, precision="bf16")  # type: ignore[arg-type]


def test_names_of_settings() -> None:
    bf16 = Way("openvino", "bf16", "a.onnx", "0")
    both = dataclasses.replace(bf16, types="int8", precision="bf16")
    assert Setting().name == "onnxruntime float32"
    assert Setting(bf16, bf16, 4).name == "OpenVINO bf16, 4 threads"
    assert Setting(both, bf16).name == "OpenVINO int8 and bf16, finder bf16"
