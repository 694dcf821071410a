"""Images that lie on a GPU already: engines read them there, nothing is uploaded or races."""

from __future__ import annotations

import dataclasses
import gc
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import RuntimeOptions
from cfpose_sdk.backends.tensorrt.backend import TensorrtBackend
from cfpose_sdk.backends.tensorrt.cuda import CudaBindings
from cfpose_sdk.detectors import DetectorOptions
from cfpose_sdk.errors import BackendError, ImageError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media import gpu_image
from cfpose_sdk.results import Poses
from tests.sdk.fake_pycuda import FakePycuda

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

OPTIONS = DetectorOptions(threshold=0.3, nms_iou=1.0)
KINDS = ("cuda array", "cuda array, version 2", "cuda array, per-thread stream", "dlpack",
         "dlpack before 1.0", "capsule")  # fmt: skip
IMAGES = [
    np.random.default_rng(n).integers(0, 140 + 50 * n, shape, np.uint8)
    for n, shape in enumerate([(60, 80, 3), (90, 41, 3)])
]
Make = Callable[..., Any]


@pytest.fixture
def make(gpu: Any, fake_arrays: ModuleType) -> Make:
    """An image of another library, on a device."""

    def made(image: np.ndarray, kind: str = "cuda array", device: int = 0) -> Any:
        return fake_arrays.KINDS[kind](fake_arrays.Memory(gpu, image, device))

    return made


@pytest.fixture
def expected(graphs: Mapping[str, Path]) -> list[Poses]:
    """The answers of the same graphs on the CPU."""
    with PoseEstimator(
        graphs["pose"], detector=graphs["finder"], detector_options=OPTIONS, device="cpu", threads=1
    ) as plain:
        return [plain.predict(image) for image in IMAGES]


def _same(got: Poses, wanted: Poses) -> None:
    for name in ("xy", "confidence", "boxes", "box_scores"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


def _uploads(gpu: Any) -> list[int]:
    """Bytes of the uploads that are larger than any list of boxes."""
    return [size for way, size in gpu.copied if way == "up" and size >= 32 * 32 * 3]


def _estimate(gpu: Any, pair: Callable[..., Path], make: Make, expected: list[Poses]) -> None:
    """Each kind of image on the second of two GPUs, each let go of by its maker at once."""
    gpu.devices = 2
    gpu.copied.clear()
    with (
        warnings.catch_warnings(action="error"),
        PoseEstimator(pair(), device="cuda:1", detector_options=OPTIONS) as estimator,
    ):
        for kind in KINDS:
            for image, wanted in zip(IMAGES, expected, strict=True):
                poses = estimator.predict(make(image, kind, 1))
                _same(poses, wanted)
                assert poses.image is None
                assert poses.image_size_wh == wanted.image_size_wh
            assert _uploads(gpu) == [], "frames were uploaded"
        with pytest.raises(ImageError, match="lies on cuda:0, and the model runs on cuda:1; open"):
            estimator.predict(make(IMAGES[0], "dlpack", 0))
    gc.collect()
    assert gpu.violations == []


def _no_wait(patch: pytest.MonkeyPatch) -> None:
    receive = CudaBindings.receive
    patch.setattr(CudaBindings, "receive", lambda self, address, _: receive(self, address, None))


def _version_2_is_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gpu_image, "WHOLE_GPU", None)


def _dlpack_is_not_asked_for_a_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gpu_image, "_LEGACY", -1)


def _dlpack_is_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    _changed(patch, "_from_capsule", stream=None)


def _nobody_keeps_the_memory(patch: pytest.MonkeyPatch) -> None:
    for name in ("_from_interface", "_from_capsule"):
        _changed(patch, name, owner=None, given=None, copy=lambda: None)


def _another_device_is_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaBindings, "receive", lambda self, address, stream: None)


def _frames_are_uploaded_all_the_same(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TensorrtBackend, "adopt", lambda self, image: self.hold(image.host))


def _others_memory_is_freed(patch: pytest.MonkeyPatch) -> None:
    from cfpose_sdk.backends.tensorrt.frames import FrameStore

    adopt = FrameStore.adopt

    def greedy(self: FrameStore, image: Any) -> Any:
        held = adopt(self, image)
        held.close.detach()  # type: ignore[attr-defined]
        return type(held)(image, self, held.handle, self._give_back)

    patch.setattr(FrameStore, "adopt", greedy)


def _changed(patch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """What a function of gpu_image gives, with other fields."""
    right = getattr(gpu_image, name)

    def wrong(*arguments: Any) -> Any:
        return dataclasses.replace(right(*arguments), **changes)

    patch.setattr(gpu_image, name, wrong)


BROKEN: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (_no_wait, "another stream has yet to write"),
    (_version_2_is_trusted, "another stream has yet to write"),
    (_dlpack_is_not_asked_for_a_stream, "stream -1"),
    (_dlpack_is_not_waited_for, "another stream has yet to write"),
    (_nobody_keeps_the_memory, "no living block|no GPU's memory"),
    (_another_device_is_taken, "not current|another stream has yet"),
    (_frames_are_uploaded_all_the_same, "frames were uploaded"),
    (_others_memory_is_freed, "no living block"),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("broken", [None, *(b for b, _ in BROKEN)], ids=lambda b: getattr(
    b, "__name__", "_none")[1:])  # fmt: skip
def test_engines_read_them_in_place_and_a_broken_rule_is_seen(
    gpu: Any,
    pair: Callable[..., Path],
    make: Make,
    expected: list[Poses],
    fake_cuda: ModuleType,
    fake_arrays: ModuleType,
    broken: Callable[[pytest.MonkeyPatch], None] | None,
) -> None:
    if broken is None:
        _estimate(gpu, pair, make, expected)
        return
    with fake_cuda.forgiven(gpu), pytest.MonkeyPatch.context() as patch:
        broken(patch)
        with pytest.raises(Exception, match=dict(BROKEN)[broken]):
            _estimate(gpu, pair, make, expected)
    fake_arrays.forget()


def test_streams_and_batches_take_them(
    gpu: Any, pair: Callable[..., Path], make: Make, expected: list[Poses]
) -> None:
    with PoseEstimator(pair(), detector_options=OPTIONS) as estimator:
        for got, wanted in zip(
            estimator.predict_batch([make(image, "dlpack") for image in IMAGES]), expected,
            strict=True,
        ):  # fmt: skip
            _same(got, wanted)
        for prefetch in (0, 2):
            stream = estimator.stream(
                (make(image, kind) for kind in ("dlpack", "cuda array") for image in IMAGES),
                prefetch=prefetch,
            )
            for got, wanted in zip(stream, expected * 2, strict=True):
                _same(got, wanted)
            dropped = estimator.stream([make(image) for image in IMAGES], prefetch=prefetch)
            next(dropped)
            del dropped  # half-way
    assert _uploads(gpu) == []


def test_boxes_of_the_caller(
    gpu: Any, pair: Callable[..., Path], make: Make, expected: list[Poses]
) -> None:
    with PoseEstimator(pair(), detector_options=OPTIONS) as estimator:
        for image, wanted in zip(IMAGES, expected, strict=True):
            got = estimator.predict(make(image, "dlpack"), boxes=wanted.boxes)
            np.testing.assert_array_equal(got.xy, wanted.xy)
        assert len(estimator.predict(make(IMAGES[0]), boxes=[])) == 0
    assert _uploads(gpu) == []


def test_a_callable_detector_gets_the_callers_own_array(
    gpu: Any, pair: Callable[..., Path], make: Make, expected: list[Poses]
) -> None:
    seen: list[str] = []

    def detector(image: Any) -> np.ndarray:
        seen.append(type(image).__name__)
        boxes: np.ndarray = expected[0].boxes
        return boxes

    with PoseEstimator(pair(), detector=detector) as estimator:
        np.testing.assert_array_equal(estimator.predict(make(IMAGES[0])).xy, expected[0].xy)
    assert seen == ["CudaArray"]
    assert _uploads(gpu) == []


def test_where_they_are_not_read_in_place_they_are_copied_with_a_word(
    gpu: Any,
    pair: Callable[..., Path],
    make: Make,
    expected: list[Poses],
    graphs: Mapping[str, Path],
    pose_model: Path,
    finder_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Models on the CPU, models on crops, an engine whose finder is on the CPU, and tiny frames."""
    with PoseEstimator(
        graphs["pose"], detector=graphs["finder"], detector_options=OPTIONS, device="cpu"
    ) as plain, pytest.warns(RuntimeWarning) as warned:  # fmt: skip
        _same(plain.predict(make(IMAGES[0])), expected[0])
    said = [str(each.message) for each in warned]
    assert "the detector, constant (finder.onnx, CPUExecutionProvider), reads it" in said[0]
    assert "pose.onnx (CPUExecutionProvider) reads frames there" in said[1]
    with PoseEstimator(pose_model, device="cpu") as crops:
        with pytest.warns(RuntimeWarning, match="takes crops, which are cut there"):
            got = crops.predict(make(IMAGES[0]), boxes=[[3, 3, 40, 50]])
        _same(got, crops.predict(IMAGES[0], boxes=[[3, 3, 40, 50]]))
        with pytest.raises(ImageError, match=r"a DLPack capsule .* cannot be copied"), pytest.warns(
            RuntimeWarning, match="a DLPack capsule"
        ):  # fmt: skip
            crops.predict(make(IMAGES[0], "capsule"), boxes=[[3, 3, 40, 50]])
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", finder_model)
    monkeypatch.setattr("cfpose_sdk.estimator.BUNDLED_FINDER", finder_model)
    with PoseEstimator(pair(along=False)) as alone, pytest.warns(RuntimeWarning) as told:
        assert len(alone.predict(make(IMAGES[0]))) == 2
    assert any("copied to the host: the detector" in str(each.message) for each in told)
    assert _uploads(gpu) == []  # the pose engine read it in place
    with PoseEstimator(pair(), detector_options=OPTIONS) as small:
        image = IMAGES[0][:20]
        with pytest.warns(RuntimeWarning, match="is copied to the host"):
            got = small.predict(make(np.ascontiguousarray(image)))
        _same(got, small.predict(image))


def test_pycuda_and_what_is_in_no_gpus_memory(
    gpu: Any, pair: Callable[..., Path], make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    array, driver = make(IMAGES[0]), FakePycuda(gpu)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    options = RuntimeOptions(cuda="pycuda")
    with PoseEstimator(pair(), options=options) as estimator, pytest.raises(
        BackendError, match=r"with RuntimeOptions.*'cuda-bindings'"
    ):  # fmt: skip
        estimator.predict(array, boxes=[[3, 3, 40, 50]])
    array._changes["data"] = (0x1234, False)
    with PoseEstimator(pair()) as estimator, pytest.raises(
        ImageError, match="0x1234 is in no GPU's memory"
    ):  # fmt: skip
        estimator.predict(array)
