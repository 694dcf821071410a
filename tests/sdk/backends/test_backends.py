"""Opening model files: what runs, on what, and what is refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

from cfpose_sdk.backends import RuntimeOptions, open_backend
from cfpose_sdk.diagnostics.known_answers import BOUNDS
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.spec import SPEC_KEY

CROPS = np.zeros((2, 64, 48, 3), np.uint8)


def test_runs_and_closes(pose_model: Path, tiny: ModuleType) -> None:
    with open_backend(pose_model, threads=1) as backend:
        assert backend.inputs == ("crops",)
        assert backend.outputs == ("keypoints", "confidence", "coarse")
        assert backend.metadata[SPEC_KEY] == tiny.SPEC.to_json()
        first = backend.run({"crops": CROPS})
        kept = first["keypoints"].copy()
        backend.run({"crops": np.random.default_rng(0).integers(0, 256, CROPS.shape, np.uint8)})
        np.testing.assert_array_equal(first["keypoints"], kept)  # the caller owns them
        assert first["keypoints"].shape == (2, 17, 2)
    with pytest.raises(BackendError, match="is closed"):
        backend.run({"crops": CROPS})
    backend.close()


def test_feeds_are_checked(pose_model: Path) -> None:
    with open_backend(pose_model) as backend:
        for feeds in ({}, {"images": CROPS}, {"crops": CROPS, "boxes": CROPS}):
            with pytest.raises(BackendError, match=r"takes inputs \['crops'\]"):
                backend.run(feeds)
        with pytest.raises(BackendError, match="failed to run"):
            backend.run({"crops": CROPS.astype(np.float32)})
        with pytest.raises(BackendError, match="failed to run"):
            backend.run({"crops": CROPS[:, :10]})


def test_corrupt_and_missing_files(
    tmp_path: Path, pose_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = pose_model.read_bytes()
    for name, content in (
        ("text.onnx", b"this is no model"),
        ("empty.onnx", b""),
        ("cut.onnx", data[: len(data) // 2]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name):
            open_backend(tmp_path / name)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_backend(tmp_path / "absent.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ArtifactError, match="does not exist"):
        open_backend(tmp_path / "folder.onnx")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["model.pt", "model", "model.tflite"])
def test_unknown_suffix(name: str) -> None:
    with pytest.raises(ArtifactError, match="suffix"):
        open_backend(name)


def test_bad_options(pose_model: Path) -> None:
    with pytest.raises(InputError, match="device must be one of"):
        open_backend(pose_model, device="gpu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads"):
        open_backend(pose_model, threads=0)


def test_threads_spin_only_when_asked(pose_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[onnxruntime.SessionOptions] = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, sess_options, **rest: (
            given.append(sess_options),
            real(path, sess_options=sess_options, **rest),
        )[1],
    )
    for threads in (None, 2):
        open_backend(pose_model, device="cpu", threads=threads).close()
        assert given.pop().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with PoseEstimator(pose_model, device="cpu", options=RuntimeOptions(spin=True)) as estimator:
        asked = given.pop()
        assert asked.get_session_config_entry("session.intra_op.allow_spinning") == "1"
        assert asked.get_session_config_entry("session.force_spinning_stop") == "1"
        estimator.predict(np.zeros((64, 64, 3), np.uint8))  # with the finder
    assert [o.get_session_config_entry("session.intra_op.allow_spinning") for o in given] == ["0"]


def test_absent_provider_is_an_error(pose_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"cfpose-sdk\[gpu\]"):
        open_backend(pose_model, device="cuda")
    with open_backend(pose_model, device="auto") as backend:
        assert backend.provider == "CPUExecutionProvider"


@pytest.fixture
def cuda_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu without a driver: CUDA is listed, the session quietly takes the CPU."""
    real = onnxruntime.InferenceSession

    def session(path: str, sess_options: object, providers: list[str], **_: object) -> object:
        return real(path, sess_options=sess_options, providers=["CPUExecutionProvider"])

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)


@pytest.mark.usefixtures("cuda_that_does_not_load")
def test_provider_that_does_not_load_is_never_hidden(pose_model: Path) -> None:
    for device in ("cuda", "auto"):
        with pytest.raises(BackendError, match=r"does not load.*allow_fallback"):
            open_backend(pose_model, device=device)  # type: ignore[arg-type]
        with pytest.warns(RuntimeWarning, match="running on the CPU"):
            backend = open_backend(pose_model, device=device, allow_fallback=True)  # type: ignore[arg-type]
        assert backend.provider == "CPUExecutionProvider"


def test_without_onnxruntime(pose_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[cpu\]"):
        open_backend(pose_model, device="cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[cpu\]"):
        open_backend(pose_model)


def test_auto_takes_openvino_where_onnxruntime_is_absent(
    pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    with PoseEstimator(pose_model, detector=lambda image: [], threads=1) as both:
        assert both.info.provider == "CPUExecutionProvider"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with PoseEstimator(pose_model, detector=lambda image: [], threads=1) as estimator:
        assert estimator.info.provider.startswith("OpenVINO CPU")
        assert estimator.info.device == "cpu"
        box = [[2.0, 2.0, 40.0, 60.0]]
        assert len(estimator.predict(np.zeros((64, 48, 3), np.uint8), boxes=box)) == 1


def test_the_documents_list_the_bounds_of_parity(root: Path) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (root / "docs" / "engines.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    listed = {cells[0]: cells[2:] for cells in rows if cells[0] in BOUNDS}
    assert listed == {
        name: [
            "any" if math.isinf(bound.max_px) else f"{bound.max_px:g}",
            f"{bound.median_px:g}",
            f"{bound.far:.0%}".replace("%", " %"),
        ]
        for name, bound in BOUNDS.items()
    }


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("people", [0, 1, 2, 5])
def test_a_graph_of_a_fixed_batch_takes_any_number_of_people(
    size: int, people: int, pose_model: Path, tmp_path: Path
) -> None:
    import onnx

    graph = onnx.load(pose_model)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    onnx.save(graph, tmp_path / "fixed.onnx")
    crops = np.random.default_rng(1).integers(0, 256, (people, 64, 48, 3), dtype=np.uint8)
    with open_backend(pose_model) as free, open_backend(tmp_path / "fixed.onnx") as fixed:
        expected, found = free.run({"crops": crops}), fixed.run({"crops": crops})
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
