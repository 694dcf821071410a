"""What hardware would punish: each rule is broken once, and the strict fake sees it."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import RuntimeOptions, open_backend
from cfpose_sdk.backends.tensorrt.cuda import CudaBindings
from cfpose_sdk.backends.tensorrt.engine import LoadedEngine
from cfpose_sdk.backends.tensorrt.execution import Worker, Workers
from cfpose_sdk.backends.tensorrt.frames import FrameStore

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")


@pytest.fixture
def engine(gpu: Any, fake: ModuleType, tmp_path: Path) -> Path:
    """An engine on crops."""
    path: Path = fake.write_engine(tmp_path / "tiny.engine", trt, {})
    return path


def _crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 64, 48, 3), np.uint8)


def _run(gpu: Any, engine: Path, fake: ModuleType, index: int = 0) -> None:
    """Several runs in all profiles, with right answers, and everything given back."""
    with open_backend(engine, device=f"cuda:{index}") as backend:
        for count in (2, 1, 4, 3):
            crops = _crops(count)
            points, sure = fake.expected(crops)
            found = backend.run({"crops": crops})
            np.testing.assert_array_equal(found["keypoints"], points)
            np.testing.assert_array_equal(found["confidence"], sure)
        places = {block.device for block in gpu.alive.values()}
        assert places == {index}, "memory lies on another GPU"


def _run_and_look(gpu: Any, engine: Path, fake: ModuleType) -> None:
    _run(gpu, engine, fake, 1)
    gc.collect()
    assert gpu.violations == []
    assert gpu.current == 0, "the device was not restored"


def _no_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaBindings, "current", lambda self: contextlib.nullcontext())


def _device_not_restored(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def current(self: CudaBindings) -> Iterator[None]:
        self._call("cudaSetDevice", self.index)
        yield

    patch.setattr(CudaBindings, "current", current)


def _no_wait(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaBindings, "wait", lambda self, stream: None)


def _pinned_memory_is_used_again(patch: pytest.MonkeyPatch) -> None:
    upload = CudaBindings.upload

    def hasty(self: CudaBindings, address: int, array: np.ndarray, stream: int) -> None:
        upload(self, address, array, stream)
        array[...] = 0

    patch.setattr(CudaBindings, "upload", hasty)


def _pageable_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaBindings, "pin", lambda self, size: np.zeros(size, np.uint8))
    patch.setattr(CudaBindings, "unpin", lambda self, array: None)


def _legacy_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaBindings, "open_stream", lambda self: 0)


def _small_buffers(patch: pytest.MonkeyPatch) -> None:
    allocate = CudaBindings.allocate
    patch.setattr(CudaBindings, "allocate", lambda self, size: allocate(self, size // 2))


def _address_inside_a_block(patch: pytest.MonkeyPatch) -> None:
    allocate = CudaBindings.allocate
    patch.setattr(CudaBindings, "allocate", lambda self, size: allocate(self, size + 4) + 4)


def _freed_too_early(patch: pytest.MonkeyPatch) -> None:
    download = CudaBindings.download

    def hasty(self: CudaBindings, array: np.ndarray, address: int, stream: int) -> None:
        download(self, array, address, stream)
        self.free(address)

    patch.setattr(CudaBindings, "download", hasty)


def _profile_after_shapes(patch: pytest.MonkeyPatch) -> None:
    choose, results = Worker._choose_profile, Worker._result_shapes
    later: list[Any] = []
    patch.setattr(Worker, "_choose_profile", lambda self, shapes: later.append(shapes))

    def swapped(self: Worker) -> Any:
        choose(self, later.pop())
        return results(self)

    patch.setattr(Worker, "_result_shapes", swapped)


def _engine_before_contexts(patch: pytest.MonkeyPatch) -> None:
    def close(self: Workers) -> None:
        self.closed = True
        with self._memory.current():
            self._loaded.close()
            for worker in self._idle:
                worker.close()

    patch.setattr(Workers, "close", close)


def _runtime_before_engine(patch: pytest.MonkeyPatch) -> None:
    close = LoadedEngine.close

    def hasty(self: LoadedEngine) -> None:
        self._runtime = None
        close(self)

    patch.setattr(LoadedEngine, "close", hasty)


def _a_captured_graph(patch: pytest.MonkeyPatch) -> None:
    upload = CudaBindings.upload

    def captured(self: CudaBindings, address: int, array: np.ndarray, stream: int) -> None:
        self._call("cudaStreamBeginCapture", stream, 0)
        upload(self, address, array, stream)

    patch.setattr(CudaBindings, "upload", captured)


BROKEN: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (_no_device, "on another GPU"),
    (_device_not_restored, "not restored"),
    (_no_wait, "while it runs|while in use|equal"),
    (_pinned_memory_is_used_again, "changed before it was read"),
    (_pageable_memory, "no living block"),
    (_legacy_stream, "no living stream"),
    (_small_buffers, "bytes at a block of"),
    (_address_inside_a_block, "no living block"),
    (_freed_too_early, "freed while in use"),
    (_profile_after_shapes, "does not take the shape"),
    (_engine_before_contexts, "before its context"),
    (_runtime_before_engine, "before its engine"),
    (_a_captured_graph, "not for engines"),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("broken", "said"), BROKEN, ids=[b.__name__[1:] for b, _ in BROKEN])
def test_a_broken_rule_is_seen(
    gpu: Any,
    engine: Path,
    fake: ModuleType,
    fake_cuda: ModuleType,
    broken: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    """Unbroken, the same runs pass on either device; then not."""
    gpu.devices = 2
    for index in (0, 1):
        _run(gpu, engine, fake, index)
    with fake_cuda.forgiven(gpu), pytest.MonkeyPatch.context() as patch:
        broken(patch)
        with pytest.raises(Exception, match=said):
            _run_and_look(gpu, engine, fake)


def test_two_threads_in_one_context_are_seen(
    gpu: Any, engine: Path, fake: ModuleType, fake_cuda: ModuleType
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(10)

    backend = open_backend(engine)
    backend.run({"crops": _crops(2)})
    gpu.trt.before_execute = wait
    (worker,) = backend._workers._idle  # type: ignore[attr-defined]
    thread = threading.Thread(target=worker.run, args=({"crops": _crops(2)},))
    thread.start()
    assert entered.wait(10)
    with pytest.raises(fake_cuda.ViolationError, match="two threads in one context"):
        worker.run({"crops": _crops(2)})
    gpu.violations.clear()
    leave.set()
    thread.join()
    backend.close()


def test_the_names_are_those_of_the_real_library(fake: ModuleType) -> None:
    fake.check_names(trt)


def test_it_runs_on_the_gpu_that_is_asked_for(gpu: Any, engine: Path, fake: ModuleType) -> None:
    """Whatever the calling thread's device is, and it is left as it was."""
    gpu.devices = 2
    with open_backend(engine, device="cuda:1") as second, open_backend(engine) as first:
        assert second.provider.endswith("NVIDIA Fake 2")
        assert first.provider.endswith("NVIDIA Fake 1")
        wrong: list[BaseException] = []

        def use(own: int) -> None:
            try:
                gpu.set_current(own)
                for backend in (first, second, first):
                    crops = _crops(3)
                    found = backend.run({"crops": crops})
                    np.testing.assert_array_equal(found["keypoints"], fake.expected(crops)[0])
                    assert gpu.current == own
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=use, args=(own,)) for own in (0, 1, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_stays_when_nobody_closes(
    gpu: Any, engine: Path, fake: ModuleType, workers: int
) -> None:
    backend = open_backend(engine, options=RuntimeOptions(workers=workers))
    backend.run({"crops": _crops(4)})
    assert gpu.alive
    del backend
    assert gpu.alive == {}


FRAME = (np.arange(40 * 60 * 3, dtype=np.uint32) % 251).astype(np.uint8).reshape(40, 60, 3)


@pytest.fixture
def whole(gpu: Any, fake: ModuleType, tmp_path: Path) -> Path:
    """An engine on frames: each joint of a box lies at its corner, plus the frame's first bytes."""

    def answer(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        points = given["boxes"][:, :2] + given["frame"][0, 0, :2]
        sure = np.full((len(points), 17), given["frame"].mean() / 255, np.float32)
        return {"keypoints": np.repeat(points[:, None], 17, axis=1), "confidence": sure}

    frame = ((32, 32, 3), (100, 100, 3), (300, 300, 3))
    network = fake.Network(
        inputs={
            "frame": ("uint8", [frame, frame]),
            "boxes": ("float32", [((1, 4), (1, 4), (1, 4)), ((1, 4), (4, 4), (8, 4))]),
        },
        outputs={"keypoints": (-1, 17, 2), "confidence": (-1, 17)},
        answer=answer,
    )
    gpu.trt.networks[b"whole"] = network
    path: Path = fake.write_engine(
        tmp_path / "whole.engine", trt, {}, network=network, data=b"whole"
    )
    return path


def _frame_copies(gpu: Any) -> list[int]:
    return [size for way, size in gpu.copied if way == "up" and size >= FRAME.nbytes]


def test_a_held_frame_is_uploaded_once(gpu: Any, whole: Path) -> None:
    boxes = np.array([[1, 2, 9, 9], [3, 4, 9, 9]], np.float32)
    with open_backend(whole) as first, open_backend(whole, beside=first) as second:
        held = first.hold(FRAME)
        assert held is not None
        for backend in (first, second, first):
            found = backend.run({"frame": held, "boxes": boxes})
            np.testing.assert_array_equal(found["keypoints"][:, 0], boxes[:, :2] + FRAME[0, 0, :2])
        assert _frame_copies(gpu) == [FRAME.nbytes]
        held.close()
        # a new frame takes the buffer that is free
        before = gpu.calls["cudaMalloc"]
        second.run({"frame": FRAME[:, ::-1], "boxes": boxes})
        assert gpu.calls["cudaMalloc"] == before
        assert _frame_copies(gpu) == [FRAME.nbytes] * 2
    assert gpu.alive == {}


def test_a_held_frame_of_another_gpu_is_uploaded_there(gpu: Any, whole: Path) -> None:
    gpu.devices = 2
    boxes = np.array([[1, 2, 9, 9]], np.float32)
    with (
        open_backend(whole) as first,
        open_backend(whole, device="cuda:1", beside=first) as other,
    ):
        held = first.hold(FRAME)
        assert held is not None
        found = other.run({"frame": held, "boxes": boxes})
        np.testing.assert_array_equal(found["keypoints"][0, 0], boxes[0, :2] + FRAME[0, 0, :2])
        assert _frame_copies(gpu) == [FRAME.nbytes] * 2


def test_images_outlive_their_engine_and_go_with_the_last_reference(gpu: Any, whole: Path) -> None:
    backend = open_backend(whole)
    held = [backend.hold(FRAME) for _ in range(6)]
    assert gpu.count("device") == 6
    del held[:5]
    assert gpu.count("device") == 5  # four buffers are kept for the next frames
    backend.close()
    assert gpu.count("device") == 1
    assert gpu.count("stream") == 0
    del held
    assert gpu.alive == {}


@pytest.mark.parametrize(
    "name", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaMemcpyAsync",
             "cudaStreamSynchronize"],
)  # fmt: skip
def test_an_upload_that_fails_keeps_nothing(gpu: Any, whole: Path, name: str) -> None:
    boxes = np.array([[1, 2, 9, 9]], np.float32)
    with open_backend(whole) as backend:
        gpu.fail[name] = 1
        with pytest.raises(Exception, match=r"whole\.engine failed to run: .*out of memory"):
            backend.run({"frame": FRAME, "boxes": boxes})
        assert gpu.alive == {}
        backend.run({"frame": FRAME, "boxes": boxes})
        assert isinstance(backend.store, FrameStore)
        assert backend.store.uploads == 1


@pytest.mark.parametrize("shape", [(31, 60, 3), (60, 301, 3), (60, 60, 4)])
def test_frames_outside_the_profiles_are_refused_before_the_upload(
    gpu: Any, whole: Path, shape: tuple[int, ...]
) -> None:
    with open_backend(whole) as backend:
        assert backend.input_shapes == {"frame": (None, None, 3), "boxes": (None, 4)}
        assert backend.max_batch == 8
        with pytest.raises(Exception, match="profiles go from"):
            backend.run({"frame": np.zeros(shape, np.uint8), "boxes": np.ones((1, 4), np.float32)})
    assert gpu.copied == []
