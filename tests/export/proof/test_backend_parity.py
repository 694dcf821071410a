"""The same photos through every runtime that is here: joints keep to the one table of bounds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from cfpose_export.engines.build import Source, write_engine
from cfpose_export.engines.tensorrt import BuildOptions
from cfpose_export.graph.frame_input import frame_graph
from cfpose_export.graph.rules import load_model, read_spec
from cfpose_export.precision.int8 import calibrate, quantise
from cfpose_export.proof.crops import read_hard, read_people
from cfpose_sdk.backends import Backend, RuntimeOptions, open_backend
from cfpose_sdk.backends.openvino import shared_core
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.crops import crop_transforms, extract_crops
from cfpose_sdk.diagnostics.known_answers import BOUNDS
from cfpose_sdk.errors import BackendError, MissingDependencyError
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator
from cfpose_sdk.files import sha256
from cfpose_sdk.media.image import read_image
from cfpose_sdk.results import VISIBLE_FROM
from cfpose_training.checkpoint_backend import CheckpointBackend
from cfpose_training.checkpoints.files import save_pose
from cfpose_training.cli import main
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import RefinedPoseNet

Open = Callable[[onnx.ModelProto, Path], Backend]


def _openvino(model: onnx.ModelProto, folder: Path) -> Backend:
    return open_backend(BUNDLED_MODEL, device="openvino", threads=1)


def _ir(model: onnx.ModelProto, folder: Path) -> Backend:
    import openvino

    read = shared_core().read_model(str(BUNDLED_MODEL))
    openvino.serialize(read, str(folder / "s.xml"))
    return open_backend(folder / "s.xml", threads=1)


def _bf16(model: onnx.ModelProto, folder: Path) -> Backend:
    from cfpose_sdk.backends.openvino import lacking

    if problem := lacking("bf16"):
        pytest.skip(problem)
    options = RuntimeOptions(precision="bf16")
    return open_backend(BUNDLED_MODEL, device="openvino", threads=1, options=options)


def _int8(model: onnx.ModelProto, folder: Path) -> Backend:
    from cfpose_sdk.backends.openvino import lacking

    if problem := lacking("int8"):
        pytest.skip(problem)
    path = folder / "int8.onnx"
    onnx.save_model(
        quantise(model, calibrate(model, read_hard(None, read_spec(model), 9).crops)), path
    )
    options = RuntimeOptions(precision="int8")
    return open_backend(path, device="openvino", threads=1, options=options)


def _engine(model: onnx.ModelProto, folder: Path) -> Backend:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    try:
        open_memory("cuda-bindings", flavour="rtx", why="this test")
    except (BackendError, MissingDependencyError) as error:
        pytest.skip(f"no engine can run here: {error}")
    source = Source("default", sha256(BUNDLED_MODEL.read_bytes()))
    write_engine(folder / "s.engine", model, source, BuildOptions(flavour="rtx"))
    return open_backend(folder / "s.engine")


RUNTIMES: list[tuple[str, Open, str]] = [
    ("OpenVINO f32", _openvino, "f32"),
    ("OpenVINO f32", _ir, "f32"),
    ("OpenVINO bf16", _bf16, "bf16"),
    ("OpenVINO int8", _int8, "f32+int8"),
    ("TensorRT fp32", _engine, "TensorRT"),
]


@pytest.fixture(scope="module")
def bundled() -> onnx.ModelProto:
    return load_model(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def crops(root: Path, bundled: onnx.ModelProto) -> NDArray[np.uint8]:
    """The nine people of the example photos."""
    spec, photos = read_spec(bundled), root / "examples" / "photos"
    parts = []
    for name, boxes in json.loads((photos / "people.json").read_text()).items():
        maps = crop_transforms(np.asarray(boxes, float), spec.size_wh, spec.box_scale)
        parts.append(extract_crops(read_image(photos / name), maps, spec.size_wh))
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def reference(crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What onnxruntime's CPU answers."""
    with open_backend(BUNDLED_MODEL, device="cpu", threads=1) as backend:
        return backend.run({"crops": crops})


def _hold(name: str, far: NDArray[np.float64]) -> None:
    bound = BOUNDS[name]
    assert far.size > 100
    assert far.max() <= bound.max_px
    assert np.median(far) <= bound.median_px
    assert (far > 1).mean() <= bound.far


@pytest.mark.parametrize(("name", "opened", "provider"), RUNTIMES)
def test_runtimes_agree(
    bundled: onnx.ModelProto,
    crops: NDArray[np.uint8],
    reference: dict[str, NDArray[np.float32]],
    tmp_path: Path,
    name: str,
    opened: Open,
    provider: str,
) -> None:
    if name.startswith("OpenVINO"):
        pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    with opened(bundled, tmp_path) as backend:
        assert provider in backend.provider
        found = backend.run({"crops": crops})
    assert set(found) == set(reference)
    sure = reference["confidence"] >= VISIBLE_FROM
    _hold(name, np.linalg.norm(found["keypoints"] - reference["keypoints"], axis=2)[sure])
    assert np.abs(found["confidence"] - reference["confidence"]).max() <= 0.5  # int8: 0.45


def test_pytorch_agrees_with_the_bundled_weights(
    crops: NDArray[np.uint8], reference: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    """The weights of the graph's PoseNet as a checkpoint; the graph's coarse pose is its answer."""
    path = tmp_path / "s.safetensors"
    assert main(["convert", str(BUNDLED_MODEL), "-o", str(path)]) == 0
    with CheckpointBackend(path, device="cpu") as backend:
        found = backend.run({"crops": crops})
    sure = reference["confidence"] >= VISIBLE_FROM
    for name in ("keypoints", "coarse"):
        _hold("PyTorch", np.linalg.norm(found[name] - reference["coarse"], axis=2)[sure])


def test_pytorch_agrees_with_its_refined_export(
    fused: FusedPose, model: onnx.ModelProto, tmp_path: Path
) -> None:
    """One checkpoint, run as it is and exported: all four outputs, whatever the batch."""
    assert fused.refiner is not None
    save_pose(
        tmp_path / "tiny.safetensors", RefinedPoseNet(fused.pose, fused.refiner, fused.spec),
        fused.spec,
    )  # fmt: skip
    onnx.save_model(model, tmp_path / "tiny.onnx")
    crops = read_people(None, fused.spec)
    with (
        open_backend(tmp_path / "tiny.onnx", device="cpu") as graph,
        CheckpointBackend(tmp_path / "tiny.safetensors", device="cpu") as torch,
    ):
        assert graph.metadata == torch.metadata
        assert (graph.inputs, graph.outputs) == (torch.inputs, torch.outputs)
        assert graph.input_shapes == torch.input_shapes
        assert graph.input_types == torch.input_types
        for part in (crops[:0], crops[:1], crops):
            expected, found = graph.run({"crops": part}), torch.run({"crops": part})
            for name, values in expected.items():
                assert values.shape == found[name].shape
                assert values.dtype == found[name].dtype
            np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-4)
            np.testing.assert_allclose(found["covariance"], expected["covariance"], rtol=1e-2)
        for name in ("keypoints", "coarse"):
            _hold("PyTorch", np.linalg.norm(found[name] - expected[name], axis=2).ravel())


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_the_graph_that_takes_frames_agrees(
    root: Path, bundled: onnx.ModelProto, tmp_path: Path, device: str
) -> None:
    if device == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    onnx.save_model(frame_graph(bundled), tmp_path / "frame.onnx")
    photos, spec, parts = root / "examples" / "photos", read_spec(bundled), []
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(PoseEstimator(device="cpu"))
        whole = PoseEstimator(tmp_path / "frame.onnx", device=device)  # type: ignore[arg-type]
        stack.enter_context(whole)
        for name, boxes in json.loads((photos / "people.json").read_text()).items():
            expected, found = (e.predict(photos / name, boxes=boxes) for e in (plain, whole))
            maps = crop_transforms(np.asarray(boxes, float), spec.size_wh, spec.box_scale)
            far = np.linalg.norm(found.xy - expected.xy, axis=2) * maps[:, 0, 0, None]
            parts.append(far[expected.confidence >= VISIBLE_FROM])
    _hold("frame input", np.concatenate(parts))
