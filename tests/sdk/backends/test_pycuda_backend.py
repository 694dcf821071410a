"""Engines through pycuda, over the same fake GPU; pycuda itself has not run here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import RuntimeOptions, open_backend
from cfpose_sdk.backends.tensorrt.pycuda import PyCuda
from cfpose_sdk.errors import BackendError, MissingDependencyError
from cfpose_sdk.spec import SPEC_KEY
from tests.sdk.fake_pycuda import FakePycuda

PYCUDA_OPTIONS = RuntimeOptions(cuda="pycuda")


@pytest.fixture
def engine(gpu: Any, fake: ModuleType, tiny: ModuleType, tmp_path: Path) -> Path:
    metadata = {SPEC_KEY: tiny.SPEC.to_json()}
    path: Path = fake.write_engine(tmp_path / "tiny.engine", gpu.trt.trt, metadata)
    return path


def _crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 48, 3), np.uint8)


def _check(backend: Any, fake: ModuleType, crops: np.ndarray) -> None:
    found = backend.run({"crops": crops})
    points, sure = fake.expected(crops)
    np.testing.assert_array_equal(found["keypoints"], points)
    np.testing.assert_array_equal(found["confidence"], sure)


@pytest.fixture
def pycuda(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pycuda over the same device, where the caller's thread has no context of it."""
    driver = FakePycuda(gpu)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver


def test_pycuda_runs_engines_in_the_primary_context(
    gpu: Any, pycuda: Any, engine: Path, fake: ModuleType
) -> None:
    with open_backend(engine, options=PYCUDA_OPTIONS) as backend:
        assert backend.provider.endswith("on NVIDIA Fake 1")
        for seed, count in enumerate((1, 4, 2)):
            _check(backend, fake, _crops(count, seed))
        assert (gpu.count("device"), gpu.count("host"), gpu.count("stream")) == (3, 3, 1)
        assert pycuda.stack == []  # the caller's own context is on top again
    assert gpu.alive == {}
    assert pycuda.stack == []
    del gpu.calls["deserialise"]
    assert sum(gpu.calls.values()) == 0  # nothing went through cuda-bindings


FUNCTIONS = ["mem_alloc", "pagelocked_empty", "Stream", "memcpy_htod_async", "memcpy_dtoh_async",
          "synchronize"]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_failure_of_pycuda_is_ours_and_leaks_nothing(
    gpu: Any, pycuda: Any, engine: Path, fake: ModuleType, name: str
) -> None:
    with open_backend(engine, options=PYCUDA_OPTIONS) as backend:
        pycuda.fail.add(name)
        with pytest.raises(BackendError, match=f"failed to run: pycuda failed: {name}"):
            backend.run({"crops": _crops(2)})
        assert gpu.alive == {}
        assert pycuda.stack == []
        _check(backend, fake, _crops(2))


def test_pycuda_takes_the_gpu_that_is_asked_for(
    gpu: Any, pycuda: Any, engine: Path, fake: ModuleType
) -> None:
    gpu.devices = 2
    with open_backend(engine, device="cuda:1", options=PYCUDA_OPTIONS) as backend:
        assert backend.provider.endswith("on NVIDIA Fake 2")
        _check(backend, fake, _crops(2))
    gpu.devices = 0
    with pytest.raises(BackendError, match="no NVIDIA GPU that CUDA can see"):
        PyCuda(pycuda)
    gpu.driver = 12040
    with pytest.raises(BackendError, match=r"knows CUDA up to 12\.4, .*-cu13 is for CUDA 13"):
        open_backend(engine, options=PYCUDA_OPTIONS)


def test_pycuda_must_be_there(gpu: Any, engine: Path) -> None:
    if importlib.util.find_spec("pycuda") is not None:
        pytest.skip("pycuda is installed")
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[pycuda\]"):
        open_backend(engine, options=PYCUDA_OPTIONS)
