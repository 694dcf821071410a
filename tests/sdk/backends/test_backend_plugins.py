"""Runtimes of other packages: found by suffix, held to their side; and open ones handed over."""

from __future__ import annotations

import pickle
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import Backend, RuntimeOptions, open_backend, plugins
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, ModelSpec


class Centre(Backend):
    """Somebody's own runtime: each joint lies in the middle of the crop."""

    def __init__(self, path: Path, **given: Any) -> None:
        self.path, self.given, self.closed = path, given, False
        self.provider, self.inputs, self.outputs = "Centre", ("crops",), ("keypoints", "confidence")
        self.metadata = {SPEC_KEY: ModelSpec("centre", COCO_17, (48, 64)).to_json()}

    def _run(self, feeds: Any) -> dict[str, Any]:
        count = len(feeds["crops"])
        xy = np.tile(np.float32([24, 32]), (count, 17, 1))
        return {"keypoints": xy, "confidence": np.ones((count, 17), np.float32)}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register (suffix, object's name) pairs of the module `other`."""
    module = SimpleNamespace(Centre=Centre, wrong=lambda path, **given: "no backend")
    monkeypatch.setitem(sys.modules, "cfpose_tests_other", module)

    def save(*entries: tuple[str, str]) -> None:
        found = tuple(EntryPoint(name, value, plugins.GROUP) for name, value in entries)
        monkeypatch.setattr(plugins, "entry_points", lambda group: found)

    return save


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.TFLite"
    path.write_bytes(b"weights")
    return path


def test_a_registered_suffix_is_opened(register: Any, file: Path) -> None:
    register(("tflite", "cfpose_tests_other:Centre"), ("pth", "cfpose_tests_gone:Gone"))
    assert plugins.plugin_suffixes() == (".pth", ".tflite")
    options = RuntimeOptions(workers=2)
    opened = open_backend(file, device="cpu", threads=3, options=options, allow_fallback=True)
    assert isinstance(opened, Centre)
    assert opened.given == {
        "device": "cpu", "threads": 3, "options": options, "allow_fallback": True,
    }  # fmt: skip
    with PoseEstimator(file) as estimator:
        poses = estimator.predict(np.zeros((90, 90, 3), np.uint8), boxes=[[10, 20, 40, 60]])
        np.testing.assert_allclose(poses.xy[0], np.tile([25, 40], (17, 1)))
        assert estimator.info.provider == "Centre"


def test_own_suffixes_are_not_for_others(register: Any, pose_model: Path) -> None:
    register(("onnx", "cfpose_tests_other:Centre"))
    with open_backend(pose_model, device="cpu") as backend:
        assert backend.provider == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("entries", "kind", "said"),
    [
        ([], ArtifactError, "suffix '.tflite'; expected one of"),
        ([("tflite", "cfpose_tests_gone:X")], BackendError, "cfpose_tests_gone:X, which cannot be"),
        ([("tflite", "cfpose_tests_other:X")], BackendError, "cfpose_tests_other:X, which cannot"),
        ([("tflite", "cfpose_tests_other:wrong")], BackendError, "gave a str for model.TFLite"),
        (
            [("tflite", "cfpose_tests_other:Centre"), ("TFLITE", "cfpose_tests_gone:X")],
            ArtifactError,
            "opened by several packages",
        ),
    ],
)
def test_what_others_do_wrong(
    register: Any, file: Path, entries: list[tuple[str, str]], kind: type[Exception], said: str
) -> None:
    register(*entries)
    with pytest.raises(kind, match=said):
        open_backend(file)


def test_a_checkpoint_names_its_extra(
    register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "refined.safetensors"
    path.write_bytes(b"weights")
    register()
    with pytest.raises(MissingDependencyError, match=r"pip install 'cfpose-sdk\[train\]'"):
        open_backend(path)
    # cfpose_training is there, PyTorch is not
    register(("safetensors", "cfpose_training.checkpoint_backend:CheckpointBackend"))
    for name in [n for n in sys.modules if n.split(".")[0] == "cfpose_training"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"torch.*pip install 'cfpose-sdk\[train\]'"):
        open_backend(path)
    assert plugins.plugin_states()[".safetensors"].endswith("pip install 'cfpose-sdk[train]'")


def test_an_open_backend_stays_its_owners() -> None:
    own = Centre(Path("own"))
    for _ in range(2):
        with PoseEstimator(own, detector=lambda image: [[10, 20, 40, 60]]) as estimator:
            assert len(estimator.predict(np.zeros((90, 90, 3), np.uint8))) == 1
        with pytest.raises(BackendError, match="is closed"):
            estimator.predict(np.zeros((90, 90, 3), np.uint8))
    assert not own.closed
    with pytest.raises(InputError, match="options belong to a model's file"):
        PoseEstimator(own, options=RuntimeOptions())
    own.lock = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="only with a model that can be pickled"):
        pickle.dumps(PoseEstimator(own))
