"""The engine's runtime on a fake GPU: results, what is refused, and that nothing leaks.

The fake is specced from the real modules; no engine of this project has run on hardware here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import Backend, RuntimeOptions, open_backend
from cfpose_sdk.backends.tensorrt.passport import passport_path
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.spec import SPEC_KEY

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

Write = Callable[..., Path]


@pytest.fixture
def write(fake: ModuleType, tiny: ModuleType) -> Write:
    """Write an engine of the fake's pose network, with changes to its passport."""
    metadata = {SPEC_KEY: tiny.SPEC.to_json()}
    return lambda path, **changes: fake.write_engine(path, trt, metadata, **changes)


@pytest.fixture
def engine(tmp_path: Path, write: Write) -> Path:
    return write(tmp_path / "tiny.engine")


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
    assert gpu.calls["cudaMalloc"] == 6  # for one person, then once for the largest batch
    assert gpu.trt.counts["profiles"] == 3  # 1, 4, 2 and 3 people: profiles 0, 2, 1 and 2
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
    assert gpu.trt.counts["contexts"] == 0


@pytest.mark.parametrize(
    ("crops", "said"),
    [
        (_crops(5), r"shape \(5, 64, 48, 3\), and the engine's profiles go from \(1, 64, 48, 3\)"),
        (_crops(2)[:, :10], "profiles go from"),
        (_crops(2)[0], "profiles go from"),
        (_crops(0)[:, :10], "profiles go from"),
        (_crops(2).astype(np.float32), "crops must be uint8, got float32"),
    ],
)
def test_what_the_profile_does_not_take(
    gpu: Any, engine: Path, crops: np.ndarray, said: str
) -> None:
    with open_backend(engine) as backend, pytest.raises(BackendError, match=said):
        backend.run({"crops": crops})
    assert gpu.trt.counts["contexts"] == 0


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
    backend.close()


def test_close_during_a_run_is_refused(gpu: Any, engine: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(10)

    gpu.trt.before_execute = wait
    backend = open_backend(engine)
    thread = threading.Thread(target=backend.run, args=({"crops": _crops(1)},))
    thread.start()
    assert entered.wait(10)
    with pytest.raises(BackendError, match="is running in another thread"):
        backend.close()
    leave.set()
    thread.join()
    backend.close()


def test_a_worker_that_fails_leaves_the_others_alone(
    gpu: Any, engine: Path, fake: ModuleType
) -> None:
    """Of two threads one fails to allocate; the other's memory stays, the waiting one goes on."""
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        if not entered.is_set():
            entered.set()
            assert leave.wait(10)

    gpu.trt.before_execute = wait
    with open_backend(engine, options=RuntimeOptions(workers=2)) as backend:
        thread = threading.Thread(target=_check, args=(backend, fake, _crops(1)))
        thread.start()
        assert entered.wait(10)
        gpu.fail["cudaHostAlloc"] = 2
        with pytest.raises(BackendError, match="out of memory"):
            backend.run({"crops": _crops(2)})
        assert (gpu.count("device"), gpu.count("host"), gpu.count("stream")) == (3, 3, 1)
        _check(backend, fake, _crops(3))
        leave.set()
        thread.join()
        assert gpu.count("stream") == 2


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_gives_its_memory_back(
    gpu: Any, engine: Path, fake: ModuleType, wrong: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise wrong

    with open_backend(engine) as backend:
        gpu.trt.before_execute = interrupt
        with pytest.raises(wrong):
            backend.run({"crops": _crops(1)})
        assert gpu.alive == {}
        gpu.trt.before_execute = lambda: None
        _check(backend, fake, _crops(1))


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

    gpu.trt.before_execute = meet
    with open_backend(engine, options=RuntimeOptions(workers=workers)) as backend:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert gpu.trt.counts["contexts"] == gpu.count("stream") == workers


def test_what_cannot_be_opened(
    gpu: Any, tmp_path: Path, write: Write, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = "run: cfpose-export engine --model default -o"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"flavour_version": "1.0"}, BackendError, "built by rtx 1.0"),
        ({"targets": ("7.5", "12.0")}, BackendError, "built for SM 7.5, 12.0, and here is NVIDIA"),
        ({"cuda_major": 11}, BackendError, "built by a TensorRT for CUDA 11"),
        ({"engine_sha256": "0" * 64}, ArtifactError, "is not the engine"),
        ({"data": b"refused"}, BackendError, "TensorRT-RTX cannot open"),
        ({"outputs": {"boxes": "float32 [N, 4]"}}, ArtifactError, "its passport says otherwise"),
    ]
    for changes, kind, said in cases:
        path = write(tmp_path / "bad.engine", **changes)
        with pytest.raises(kind, match=said) as caught:
            open_backend(path)
        assert f"{again} {path}" in str(caught.value)
    passport_path(engine).unlink()
    with pytest.raises(ArtifactError, match="has no passport"):
        open_backend(engine)
    write(engine)
    for device in ("cpu", "openvino"):
        with pytest.raises(BackendError, match="runs on an NVIDIA GPU only"):
            open_backend(engine, device=device)  # type: ignore[arg-type]
    for options in (RuntimeOptions(precision="bf16"), RuntimeOptions(spin=True)):
        with pytest.raises(InputError, match="TensorRT has no option"):
            open_backend(engine, options=options)
    gpu.devices = 0
    with pytest.raises(BackendError, match="no NVIDIA GPU that CUDA can see"):
        open_backend(engine)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[tensorrt-rtx\]"):
        open_backend(engine)


@pytest.mark.parametrize("suffix", [".engine", ".plan", ".ENGINE"])
def test_without_a_driver(tmp_path: Path, write: Write, suffix: str) -> None:
    if int(cuda.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(BackendError, match="this machine has no NVIDIA") as caught:
        open_backend(write(tmp_path / f"tiny{suffix}"))
    assert "use the .onnx file" in str(caught.value)
