"""What a user meets first on a machine with a GPU: driver, packages, TensorRT's own words."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.base import place_of
from cfpose_sdk.backends.tensorrt.cuda import Need, driver_problem
from cfpose_sdk.backends.tensorrt.engine import kernels_path
from cfpose_sdk.backends.tensorrt.library import cuda_major, needs_of
from cfpose_sdk.errors import BackendError, InputError

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
CROPS = np.zeros((2, 64, 48, 3), np.uint8)
TENSORRT_13 = Need("tensorrt-cu13", 13)


@pytest.fixture
def engine(gpu: Any, fake: ModuleType, tmp_path: Path) -> Path:
    path: Path = fake.write_engine(tmp_path / "tiny.engine", trt, {})
    return path


@pytest.mark.parametrize(
    ("driver", "needs", "said"),
    [
        (13000, (TENSORRT_13,), None),
        (13020, (Need("tensorrt-cu12", 12),), None),
        (12020, (Need("tensorrt-cu12", 12), Need("cuda-bindings", 12)), None),
        (12040, (TENSORRT_13,), r"up to 12\.4, and tensorrt-cu13 is for CUDA 13; install the "
         r"driver r580 or newer, or .*pip install 'cfpose-sdk\[tensorrt-cu12\]'"),
        (12080, (Need("cuda-bindings", 13),), "cuda-bindings is for CUDA 13"),
        (11040, (Need("tensorrt-cu12", 12),), r"up to 11\.4, .*install the driver r535 or newer$"),
        (0, (TENSORRT_13,), "has no NVIDIA driver; tensorrt-cu13 needs r580 or newer"),
    ],
)  # fmt: skip
def test_the_driver_must_know_the_packages_cuda(
    driver: int, needs: tuple[Need, ...], said: str | None
) -> None:
    problem = driver_problem(driver, needs)
    if said is None:
        assert problem is None
    else:
        assert problem is not None
        assert re.search(said, problem), problem


def test_an_old_driver_is_named_before_the_engine_is_touched(gpu: Any, engine: Path) -> None:
    gpu.driver = 12040
    with pytest.raises(BackendError, match=r"tensorrt-cu12\]'; or use the \.onnx file"):
        open_backend(engine)
    assert gpu.calls["deserialise"] == 0


def _installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def distribution(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return name

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


def test_tensorrts_own_cuda_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of its packages, whatever cuda-bindings are there."""
    _installed(monkeypatch, "tensorrt", "tensorrt-cu12-libs", "tensorrt-rtx-cu13")
    assert needs_of("tensorrt") == (Need("tensorrt-cu12", 12),)
    assert needs_of("rtx") == (Need("tensorrt-rtx-cu13", 13),)
    assert cuda_major("tensorrt", "a test") == 12
    _installed(monkeypatch, "tensorrt-cu12", "tensorrt-cu13")
    with pytest.raises(BackendError, match="tensorrt-cu12 and tensorrt-cu13 are both installed"):
        cuda_major("tensorrt", "a test")
    _installed(monkeypatch)
    assert needs_of("tensorrt") == ()
    assert cuda_major("tensorrt", "a test") in (12, 13)  # of cuda-bindings


@pytest.mark.parametrize(
    ("name", "said"),
    [("context", "make an execution context"), ("execute", "failed to enqueue")],
)
def test_tensorrts_log_is_in_the_error(gpu: Any, engine: Path, name: str, said: str) -> None:
    with open_backend(engine) as backend:
        gpu.trt.says = "Error Code 2: OutOfMemory (requested\n 42 bytes)"
        gpu.fail[name] = 1
        with pytest.raises(BackendError, match=rf"{said}.*tensorrt_rtx says: Error Code 2.* 42 b"):
            backend.run({"crops": CROPS})
        # the next error has its own words alone
        gpu.trt.says = "something else"
        gpu.fail["execute"] = 1
        with pytest.raises(BackendError, match="something else") as caught:
            backend.run({"crops": CROPS})
        assert "OutOfMemory" not in str(caught.value)


def test_a_refused_engine_has_tensorrts_words(gpu: Any, fake: ModuleType, tmp_path: Path) -> None:
    path = fake.write_engine(tmp_path / "bad.engine", trt, {}, data=b"unknown")
    gpu.trt.says = "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
    with pytest.raises(BackendError, match=r"cannot open .*stdVersionRead.*; run: cfpose-export"):
        open_backend(path)


def test_validity_is_the_runtimes_own(gpu: Any, engine: Path) -> None:
    kinds, reasons = trt.EngineValidity, trt.EngineInvalidityDiagnostics
    both = int(reasons.UNSUPPORTED_CC) | int(reasons.OLD_CUDA_DRIVER)
    gpu.trt.validity = (kinds.INVALID, both)
    with pytest.raises(BackendError, match=r"INVALID \(UNSUPPORTED_CC, OLD_CUDA_DRIVER\); run: "):
        open_backend(engine)
    assert gpu.calls["deserialise"] == 0
    gpu.trt.validity = (kinds.SUBOPTIMAL, 0)
    with pytest.warns(RuntimeWarning, match="calls it SUBOPTIMAL; run: cfpose-export engine"):
        open_backend(engine).close()


def test_compiled_kernels_are_kept_beside_the_engine(
    gpu: Any, engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kernels_path(engine)
    with open_backend(engine) as backend:
        assert not path.exists()
        backend.run({"crops": CROPS})
        assert path.read_bytes() == b"kernels"  # at once: a process may be killed
    path.write_bytes(b"kernels of before")
    with open_backend(engine) as backend:
        backend.run({"crops": CROPS})
    assert path.read_bytes() == b"kernels of before"
    path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING), open_backend(engine) as backend:
        backend.run({"crops": CROPS})
    assert "compiled anew" in caplog.text
    assert path.read_bytes() == b"kernels"


@pytest.mark.parametrize("device", ["cuda:2", "tensorrt:9"])
def test_a_gpu_that_is_not_there(gpu: Any, engine: Path, device: str) -> None:
    gpu.devices = 2
    number = device.partition(":")[2]
    with pytest.raises(BackendError, match=f"cuda:{number} was asked for, and CUDA sees cuda:0 to"):
        open_backend(engine, device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:1:2", ""])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InputError, match="device must be one of"):
        place_of(device)
