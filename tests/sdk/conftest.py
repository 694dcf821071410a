"""Tiny artifacts on disk, shared by the runtime's tests."""

from __future__ import annotations

import functools
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(stem: str) -> ModuleType:
    # tests are no packages, so what stands beside this file is loaded by its path
    name = f"cfpose_tests_{stem}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{stem}.py"))
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{stem}.py is gone")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tiny_models: SPEC, FINDER, save_pose_model, save_finder."""
    return _load("tiny_models")


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module fake_engine."""
    return _load("fake_engine")


@pytest.fixture(scope="session")
def fake_cuda() -> ModuleType:
    """The module fake_gpu."""
    return _load("fake_gpu")


@pytest.fixture(scope="session")
def fake_arrays() -> ModuleType:
    """The module fake_arrays."""
    return _load("fake_arrays")


@pytest.fixture
def gpu(fake: ModuleType, fake_cuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Fake GPUs in the place of the real ones, with TensorRT-RTX on them as `trt`.

    After the test all must have been given back, no rule broken, and the thread's device restored.
    """
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    device = fake_cuda.FakeGpu(cuda)
    device.install(monkeypatch)
    device.trt = fake.FakeTensorrt(device, trt)
    device.trt.install(monkeypatch)
    yield device
    gc.collect()
    assert device.violations == []
    assert device.alive == {}, "leaked"
    assert device.current == 0


@pytest.fixture(scope="session")
def pose_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pose artifact that points all joints at the brightest pixel of the crop."""
    path: Path = tiny.save_pose_model(tmp_path_factory.mktemp("models") / "brightest.onnx")
    return path


@pytest.fixture(scope="session")
def finder_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finder for 64 x 64 letterboxes: two people, a duplicate, a weak one, an empty one."""
    boxes = [[4, 4, 20, 60], [30, 10, 50, 40], [5, 4, 21, 60], [0, 0, 9, 9], [60, 8, 60, 30]]
    scores = [0.9, 0.8, 0.7, 0.2, 0.95]
    path: Path = tiny.save_finder(tmp_path_factory.mktemp("models") / "two.onnx", boxes, scores)
    return path


@pytest.fixture
def tiny_defaults(pose_model: Path, finder_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models in the place of the bundled ones."""
    monkeypatch.setattr("cfpose_sdk.estimator.BUNDLED_MODEL", pose_model)
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", finder_model)


@pytest.fixture(scope="session")
def graphs(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tiny models on frames: a pose model, and a finder whose boxes depend on the picture."""
    graphs: Mapping[str, Path] = _load("engine_pairs").save_graphs(
        tiny, tmp_path_factory.mktemp("graphs")
    )
    return graphs


@pytest.fixture
def pair(
    gpu: Any, fake: ModuleType, graphs: Mapping[str, Path], tmp_path: Path
) -> Callable[..., Path]:
    """Write `tiny.engine`, with `tiny.finder.engine` unless `along` is False."""
    return functools.partial(_load("engine_pairs").write_pair, gpu, fake, graphs, tmp_path)
