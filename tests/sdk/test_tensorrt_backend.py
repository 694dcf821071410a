"""The engine's runtime on a fake GPU: results, what is refused, and that nothing leaks.

The fake is specced from the real modules; no engine of this project has run on hardware here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import Backend, RuntimeOptions, open_backend
from cfpose_sdk.backends.pycuda import PyCuda
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.passport import Passport, passport_path, sha256
from cfpose_sdk.spec import SPEC_KEY

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


@pytest.fixture(scope="module")
def fake() -> ModuleType:
    """The module fake_gpu."""
    path = Path(__file__).with_name("fake_gpu.py")
    spec = importlib.util.spec_from_file_location("cfpose_tests_fake_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A device; after the test everything must have been given back."""
    device = fake.FakeGpu(cuda, trt)
    device.install(monkeypatch)
    yield device
    assert device.alive == {}, f"leaked: {sorted(device.kinds.values())}"


def _write(path: Path, tiny: ModuleType, data: bytes = b"plan", **changes: Any) -> Path:
    path.write_bytes(data)
    passport = Passport(
        flavour="rtx",
        flavour_version=trt.__version__,
        gpu="",
        sm="",
        targets=(),
        cuda_major=int(cuda.cudaRuntimeGetVersion()[1]) // 1000,
        source="default",
        source_sha256="",
        onnx_sha256="",
        engine_sha256=sha256(data),
        engine_bytes=len(data),
        precision="fp32",
        achieved={},
        inputs={"crops": "uint8 [N, 64, 48, 3]"},
        outputs={"keypoints": "float32 [N, 17, 2]", "confidence": "float32 [N, 17]"},
        profile={"crops": ((1, 64, 48, 3), (2, 64, 48, 3), (4, 64, 48, 3))},
        flags={},
        metadata={SPEC_KEY: tiny.SPEC.to_json()},
        gate={},
        command=("cfpose-export", "engine", "--model", "default"),
        key="",
    )
    passport_path(path).write_text(dataclasses.replace(passport, **changes).to_json())
    return path


@pytest.fixture
def engine(tmp_path: Path, tiny: ModuleType) -> Path:
    return _write(tmp_path / "tiny.engine", tiny)


def _crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 48, 3), np.uint8)


def _check(backend: Backend, fake: ModuleType, crops: np.ndarray) -> None:
    found = backend.run({"crops": crops})
    points, sure = fake.expected(crops)
    np.testing.assert_array_equal(found["keypoints"], points)
    np.testing.assert_array_equal(found["confidence"], sure)


def test_it_runs_and_gives_everything_back(gpu: Any, engine: Path, fake: ModuleType) -> None:
    backend = open_backend(engine)
    assert backend.inputs == ("crops",)
    assert backend.max_batch == 4
    assert backend.input_shapes == {"crops": (None, 64, 48, 3)}
    assert backend.input_types == {"crops": "tensor(uint8)"}
    assert backend.provider == f"TensorRT-RTX {trt.__version__} fp32 on NVIDIA Fake 1"
    assert gpu.alive == {}  # memory is taken at the first run
    for seed, count in enumerate((1, 4, 2, 3)):
        _check(backend, fake, _crops(count, seed))
    assert (gpu.count("device"), gpu.count("host"), gpu.count("stream")) == (3, 3, 1)
    assert gpu.calls["cudaMalloc"] == 3  # allocated once, for the largest batch
    first = backend.run({"crops": _crops(2)})["keypoints"]
    kept = first.copy()
    backend.run({"crops": _crops(2, 9)})
    np.testing.assert_array_equal(first, kept)  # the caller owns them
    backend.close()
    assert gpu.alive == {}
    backend.close()
    with pytest.raises(BackendError, match="is closed"):
        backend.run({"crops": _crops(1)})


def test_nobody_needs_no_run(gpu: Any, engine: Path) -> None:
    with open_backend(engine) as backend:
        found = backend.run({"crops": _crops(0)})
    assert {name: v.shape for name, v in found.items()} == {
        "keypoints": (0, 17, 2),
        "confidence": (0, 17),
    }
    assert gpu.contexts == 0


@pytest.mark.parametrize(
    ("crops", "said"),
    [
        (_crops(5), r"shape \(5, 64, 48, 3\), and the engine's profile goes from \(1, 64, 48, 3\)"),
        (_crops(2)[:, :10], "profile goes from"),
        (_crops(2)[0], "profile goes from"),
        (_crops(0)[:, :10], "profile goes from"),
        (_crops(2).astype(np.float32), "crops must be uint8, got float32"),
    ],
)
def test_what_the_profile_does_not_take(
    gpu: Any, engine: Path, crops: np.ndarray, said: str
) -> None:
    with open_backend(engine) as backend, pytest.raises(BackendError, match=said):
        backend.run({"crops": crops})
    assert gpu.contexts == 0


def test_an_array_that_is_not_contiguous(gpu: Any, engine: Path, fake: ModuleType) -> None:
    with open_backend(engine) as backend:
        _check(backend, fake, _crops(4)[::2, :, ::-1])


def test_the_estimator_cuts_batches_to_the_profile(gpu: Any, engine: Path, root: Path) -> None:
    boxes = [[10.0 * n, 20, 10.0 * n + 30, 90] for n in range(11)]
    with PoseEstimator(engine, batch_size=32) as estimator:
        assert estimator.info.device == "cuda"
        assert len(estimator.predict(root / "examples/photos/street.jpg", boxes=boxes)) == 11
    assert gpu.calls["cudaMemcpyAsync"] == 3 * 3  # three batches, three tensors


FAILURES = [
    *[("cudaMalloc", n) for n in (1, 2, 3)],
    *[("cudaHostAlloc", n) for n in (1, 2, 3)],
    ("cudaStreamCreateWithFlags", 1),
    ("context", 1),
    ("execute", 1),
    *[("cudaMemcpyAsync", n) for n in (1, 2, 3)],
    ("cudaStreamSynchronize", 1),
]


@pytest.mark.parametrize(("name", "number"), FAILURES)
def test_a_failure_is_ours_and_leaks_nothing(
    gpu: Any, engine: Path, fake: ModuleType, name: str, number: int
) -> None:
    with open_backend(engine) as backend:
        gpu.fail[name] = number
        with pytest.raises(BackendError, match=r"tiny\.engine failed to run") as caught:
            backend.run({"crops": _crops(2)})
        if name.startswith("cuda"):
            assert "cudaErrorMemoryAllocation, out of memory" in str(caught.value)
        assert gpu.alive == {}  # at once, not only at close
        _check(backend, fake, _crops(2))  # the next run starts afresh


@pytest.mark.parametrize("name", ["cudaFree", "cudaFreeHost", "cudaStreamDestroy"])
def test_a_failure_to_free_frees_the_rest(gpu: Any, engine: Path, name: str) -> None:
    backend = open_backend(engine)
    backend.run({"crops": _crops(1)})
    gpu.fail[name] = 1
    with pytest.raises(BackendError, match=name):
        backend.close()
    assert len(gpu.alive) == 1  # the one that could not be freed
    gpu.alive.clear()
    gpu.kinds.clear()
    backend.close()


def test_close_during_a_run_is_refused(gpu: Any, engine: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(10)

    gpu.before_execute = wait
    backend = open_backend(engine)
    thread = threading.Thread(target=backend.run, args=({"crops": _crops(1)},))
    thread.start()
    assert entered.wait(10)
    with pytest.raises(BackendError, match="is running in another thread"):
        backend.close()
    leave.set()
    thread.join()
    backend.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_share_the_workers(gpu: Any, engine: Path, fake: ModuleType, workers: int) -> None:
    wrong: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            for number in range(8):
                _check(backend, fake, _crops(1 + (seed + number) % 4, seed))
        except BaseException as error:
            wrong.append(error)

    together = threading.Barrier(workers)
    left = [workers]

    def meet() -> None:  # the first runs of all workers wait for each other
        if left[0] > 0:
            left[0] -= 1
            together.wait(10)

    gpu.before_execute = meet
    with open_backend(engine, options=RuntimeOptions(workers=workers)) as backend:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert gpu.contexts == gpu.count("stream") == workers


def test_cuda_graphs_give_the_same(gpu: Any, engine: Path, fake: ModuleType) -> None:
    with open_backend(engine, options=RuntimeOptions(cuda_graph=True)) as backend:
        for seed in range(4):
            for count in (1, 3):
                _check(backend, fake, _crops(count, seed))
        assert gpu.count("exec") == 2  # one for each batch size
        assert gpu.count("graph") == 0
        assert gpu.calls["cudaGraphLaunch"] == 6  # every run but the first of each size
    assert gpu.alive == {}


@pytest.mark.parametrize("name", ["execute", "cudaGraphInstantiate", "cudaStreamEndCapture"])
def test_a_failed_capture_leaks_nothing(
    gpu: Any, engine: Path, fake: ModuleType, name: str
) -> None:
    with open_backend(engine, options=RuntimeOptions(cuda_graph=True)) as backend:
        backend.run({"crops": _crops(1)})
        gpu.fail[name] = 1
        with pytest.raises(BackendError, match="failed to run"):
            backend.run({"crops": _crops(1)})
        gpu.recording.clear()
        assert gpu.alive == {}
        _check(backend, fake, _crops(1))


def test_what_cannot_be_opened(
    gpu: Any, tmp_path: Path, tiny: ModuleType, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = "run: cfpose-export engine --model default -o"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"flavour_version": "1.0"}, BackendError, "built by rtx 1.0"),
        ({"targets": ("7.5", "12.0")}, BackendError, "built for SM 7.5, 12.0, and here is NVIDIA"),
        ({"cuda_major": 11}, BackendError, "built with CUDA 11"),
        ({"engine_sha256": "0" * 64}, ArtifactError, "is not the engine"),
        ({"data": b"refused"}, BackendError, "TensorRT-RTX cannot open"),
        ({"outputs": {"boxes": "float32 [N, 4]"}}, ArtifactError, "its passport says otherwise"),
    ]
    for changes, kind, said in cases:
        path = _write(tmp_path / "bad.engine", tiny, **changes)
        with pytest.raises(kind, match=said) as caught:
            open_backend(path)
        assert f"{again} {path}" in str(caught.value)
    passport_path(engine).unlink()
    with pytest.raises(ArtifactError, match="has no passport"):
        open_backend(engine)
    _write(engine, tiny)
    for device in ("cpu", "openvino"):
        with pytest.raises(BackendError, match="runs on an NVIDIA GPU only"):
            open_backend(engine, device=device)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="TensorRT has no option"):
        open_backend(engine, options=RuntimeOptions(precision="bf16"))
    gpu.devices = 0
    with pytest.raises(BackendError, match="no NVIDIA GPU that CUDA can see"):
        open_backend(engine)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[tensorrt-rtx\]"):
        open_backend(engine)


@pytest.mark.parametrize("suffix", [".engine", ".plan", ".ENGINE"])
def test_without_a_driver(tmp_path: Path, tiny: ModuleType, suffix: str) -> None:
    if int(cuda.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(BackendError, match="this machine has no NVIDIA") as caught:
        open_backend(_write(tmp_path / f"tiny{suffix}", tiny))
    assert "use the .onnx file" in str(caught.value)


class FakeDriver(SimpleNamespace):
    """The part of pycuda.driver that is used, with a stack of contexts as pycuda keeps it."""

    class Error(Exception):
        """pycuda's own."""

    def __init__(self) -> None:
        super().__init__(stack=[], freed=[], next=1000, Stream=self._stream)
        context = SimpleNamespace(push=lambda: self.stack.append(1), pop=lambda: self.stack.pop())
        device = SimpleNamespace(
            retain_primary_context=lambda: context,
            compute_capability=lambda: (8, 6),
            name=lambda: "NVIDIA Fake 2",
        )
        self.Device = type("Device", (), {"__new__": lambda *_: device, "count": lambda: 1})

    def init(self) -> None: ...

    def get_version(self) -> tuple[int, int, int]:
        return (13, 0, 0)

    def mem_alloc(self, size: int) -> Any:
        assert self.stack, "no current context"
        if size > 100:
            raise self.Error("out of memory")
        self.next += 1
        allocation = type("DeviceAllocation", (), {"__int__": lambda a, n=self.next: n})()
        allocation.free = lambda: self.freed.append(int(allocation))
        return allocation

    def _stream(self) -> Any:
        self.next += 1
        return SimpleNamespace(handle=self.next, synchronize=lambda: None)


def test_pycuda_uses_the_primary_context_for_each_call_alone() -> None:
    driver = FakeDriver()
    memory = PyCuda(driver)
    assert (memory.gpu().sm, memory.gpu().cuda_major) == ("8.6", 13)
    address, stream = memory.allocate(8), memory.open_stream()
    memory.wait(stream)
    memory.free(address)
    memory.close_stream(stream)
    assert driver.freed == [address]
    with pytest.raises(BackendError, match="pycuda failed: out of memory"):
        memory.allocate(1000)
    assert driver.stack == []  # the caller's own context is on top again
    with pytest.raises(BackendError, match="no CUDA graphs"):
        memory.begin_capture(stream)


def test_pycuda_must_be_there(gpu: Any, engine: Path) -> None:
    if importlib.util.find_spec("pycuda") is not None:
        pytest.skip("pycuda is installed")
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[pycuda\]"):
        open_backend(engine, options=RuntimeOptions(cuda="pycuda"))
