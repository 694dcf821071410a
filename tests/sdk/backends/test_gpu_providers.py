"""onnxruntime on a GPU that is not there: what it is asked for, and what is uploaded.

A stand-in takes the options and the bindings, and computes on the CPU; no provider of a GPU has
run here.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cfpose_sdk.backends import RuntimeOptions, open_backend
from cfpose_sdk.backends.bundled import BUNDLED_FINDER
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.errors import BackendError
from cfpose_sdk.estimator import PoseEstimator

REAL = onnxruntime.InferenceSession
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
CROPS = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), np.uint8)


class Gpu:
    """Sessions on a GPU. `asked`: providers and their options of each; `uploads`: bytes of each."""

    def __init__(self, available: list[str]) -> None:
        self.available = available
        self.asked: list[dict[str, dict[str, str]]] = []
        self.uploads: list[int] = []
        self.on_cpu: list[str] = []  # kinds of nodes that fall
        self.fails = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        gpu = self

        class Session:
            def __init__(
                self, path: str, sess_options: Any, providers: list[str],
                provider_options: list[dict[str, str]], enable_fallback: int,
            ) -> None:  # fmt: skip
                self._real = REAL(
                    path, sess_options=sess_options, providers=["CPUExecutionProvider"]
                )
                self._providers = providers
                if providers != ["CPUExecutionProvider"]:
                    gpu.asked.append(dict(zip(providers, provider_options, strict=True)))
                    entry = "session.record_ep_graph_assignment_info"
                    assert sess_options.get_session_config_entry(entry) == "1"

            def __getattr__(self, name: str) -> Any:
                return getattr(self._real, name)

            def get_providers(self) -> list[str]:
                return self._providers

            def get_provider_graph_assignment_info(self) -> list[Any]:
                def part(provider: str, kinds: list[str]) -> Any:
                    nodes = [SimpleNamespace(op_type=kind) for kind in kinds]
                    return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

                return [
                    part(self._providers[0], ["Conv"] * 9),
                    part("CPUExecutionProvider", gpu.on_cpu),
                ]

            def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
                assert self._providers[0] not in (CUDA, TENSORRT) or 0 in feeds["crops"].shape
                return self._real.run(names, feeds)

            def io_binding(self) -> Any:
                return Binding()

            def run_with_iobinding(self, binding: Binding) -> None:
                if gpu.fails:
                    raise RuntimeError("out of memory")
                feeds = {name: value.array for name, value in binding.inputs.items()}
                binding.found = self._real.run(binding.outputs, feeds)

        class Binding:
            def __init__(self) -> None:
                self.inputs: dict[str, Any] = {}
                self.outputs: list[str] = []
                self.found: list[np.ndarray] = []

            def bind_ortvalue_input(self, name: str, value: Any) -> None:
                self.inputs[name] = value

            def bind_output(self, name: str, device: str) -> None:
                assert device == "cpu"
                self.outputs.append(name)

            def synchronize_inputs(self) -> None: ...

            def synchronize_outputs(self) -> None: ...

            def copy_outputs_to_cpu(self) -> list[np.ndarray]:
                return self.found

        def uploaded(array: np.ndarray, kind: str, index: int) -> Any:
            assert kind == "cuda"
            assert array.flags.c_contiguous
            gpu.uploads.append(array.nbytes)
            return SimpleNamespace(array=array.copy(), index=index)

        patch.setattr(onnxruntime, "get_available_providers", lambda: [*gpu.available, "CPU"])
        patch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
        patch.setattr(onnxruntime, "InferenceSession", Session)
        patch.setattr(onnxruntime, "OrtValue", SimpleNamespace(ortvalue_from_numpy=uploaded))


@pytest.fixture
def onnx_gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    device = Gpu([CUDA])
    device.install(monkeypatch)
    return device


def test_cuda_searches_by_heuristic_and_keeps_float32(onnx_gpu: Gpu, pose_model: Path) -> None:
    with open_backend(pose_model, device="cpu") as cpu:
        expected = cpu.run({"crops": CROPS})
    for device, index in (("auto", "0"), ("cuda", "0"), ("cuda:2", "2")):
        with open_backend(pose_model, device=device) as backend:
            assert (backend.provider, backend.device, backend.fallen) == (CUDA, "cuda", "")
            for name, value in backend.run({"crops": CROPS}).items():
                np.testing.assert_array_equal(value, expected[name])
            assert {len(v) for v in backend.run({"crops": CROPS[:0]}).values()} == {0}
        (chosen,) = onnx_gpu.asked.pop().values()
        assert chosen["cudnn_conv_algo_search"] == "HEURISTIC"
        assert (chosen["use_tf32"], chosen["device_id"]) == ("0", index)
    assert onnx_gpu.uploads == [CROPS.nbytes] * 3
    open_backend(pose_model, device="cuda", options=RuntimeOptions(tf32=True)).close()
    assert onnx_gpu.asked.pop()[CUDA]["use_tf32"] == "1"


def test_nodes_that_fell_to_the_cpu_are_counted_and_named(onnx_gpu: Gpu, pose_model: Path) -> None:
    onnx_gpu.on_cpu = ["GridSample", "ArgMax", "ArgMax"]
    with PoseEstimator(pose_model, detector=lambda image: []) as estimator:
        said = "3 of 12 nodes run on the CPU: 2 ArgMax, 1 GridSample"
        assert estimator.info.fallen == said


def test_a_failure_on_the_gpu_is_ours(onnx_gpu: Gpu, pose_model: Path) -> None:
    with open_backend(pose_model, device="cuda") as backend:
        onnx_gpu.fails = True
        with pytest.raises(BackendError, match="failed to run: out of memory"):
            backend.run({"crops": CROPS})


@pytest.mark.parametrize(
    ("available", "first", "prefix"),
    [([TENSORRT, CUDA], TENSORRT, "trt"), ([RTX], RTX, "nv"), ([RTX, TENSORRT], TENSORRT, "trt")],
)
def test_tensorrt_keeps_what_it_builds_beside_the_file(
    monkeypatch: pytest.MonkeyPatch, pose_model: Path, tmp_path: Path,
    available: list[str], first: str, prefix: str,
) -> None:  # fmt: skip
    gpu = Gpu(available)
    gpu.install(monkeypatch)
    path = tmp_path / "tiny.onnx"
    path.write_bytes(pose_model.read_bytes())
    with open_backend(path, device="tensorrt:1") as backend:
        assert (backend.provider, backend.device) == (first, "cuda")
    (asked,) = gpu.asked
    chosen = asked[first]
    cache = str(path.with_name("tiny.onnx.cache"))
    assert Path(cache).is_dir()
    assert cache in chosen.values()
    assert chosen["device_id"] == "1"
    assert chosen[f"{prefix}_profile_min_shapes"] == "crops:1x64x48x3"
    assert chosen[f"{prefix}_profile_opt_shapes"] == "crops:8x64x48x3"
    assert chosen[f"{prefix}_profile_max_shapes"] == "crops:32x64x48x3"
    behind = list(asked)[1:]
    assert behind == ([CUDA] if CUDA in available else [])
    if behind:
        assert asked[CUDA]["cudnn_conv_algo_search"] == "HEURISTIC"


def test_a_finder_is_planned_for_whole_letterboxes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = Gpu([TENSORRT, CUDA])
    gpu.install(monkeypatch)
    path = tmp_path / "finder.onnx"
    path.write_bytes(BUNDLED_FINDER.read_bytes())
    with PersonFinder(path, device="tensorrt") as finder:
        width, height = finder.spec.size_wh
        assert finder.device == "cuda"
    for which in ("min", "opt", "max"):
        shapes = gpu.asked[0][TENSORRT][f"trt_profile_{which}_shapes"]
        assert shapes == f"images:1x{height}x{width}x3"


def test_without_tensorrt_it_says_what_has_it(onnx_gpu: Gpu, pose_model: Path) -> None:
    with pytest.raises(BackendError, match=r"cfpose-sdk\[gpu\].*cfpose-export engine"):
        open_backend(pose_model, device="tensorrt")
    with pytest.warns(RuntimeWarning, match="running on the CPU"):
        backend = open_backend(pose_model, device="tensorrt", allow_fallback=True)
    assert backend.device == "cpu"


def test_models_on_frames_share_what_is_uploaded(onnx_gpu: Gpu, tiny: Any, tmp_path: Path) -> None:
    import onnx

    from cfpose_export.graph.frame_finder import frame_finder
    from cfpose_export.graph.frame_input import frame_graph

    boxes = [[4, 4, 20, 60], [30, 10, 50, 40]]
    pose, finder = tmp_path / "pose.onnx", tmp_path / "finder.onnx"
    onnx.save(frame_graph(onnx.load(str(tiny.save_pose_model(tmp_path / "c.onnx")))), str(pose))
    crops_in = onnx.load(str(tiny.save_finder(tmp_path / "f.onnx", boxes, [0.9, 0.8])))
    first = crops_in.graph.node[2]  # the core reads its letterbox
    first.CopyFrom(onnx.helper.make_node("Cast", ["images"], ["unused"], to=onnx.TensorProto.FLOAT))
    onnx.save(frame_finder(crops_in), str(finder))
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
    with (
        warnings.catch_warnings(action="error"),
        PoseEstimator(pose, detector=finder, device="cuda", batch_size=1) as estimator,
        PoseEstimator(pose, detector=finder, device="cpu") as plain,
    ):
        poses, expected = estimator.predict(image), plain.predict(image)
        assert len(poses) == 2
        np.testing.assert_array_equal(poses.xy, expected.xy)
        # the frame once for the finder and both runs of the pose model, and the boxes of each
        assert onnx_gpu.uploads == [image.nbytes, 16, 16]
