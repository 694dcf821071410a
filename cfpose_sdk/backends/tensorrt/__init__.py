"""Engines of TensorRT and TensorRT-RTX: passports, memory, workers, and the backend."""

from __future__ import annotations

import importlib

from cfpose_sdk.backends.base import Cuda
from cfpose_sdk.backends.tensorrt.cuda import CudaBindings, DeviceMemory
from cfpose_sdk.errors import require


def open_memory(cuda: Cuda, *, extra: str, why: str) -> DeviceMemory:
    """CUDA memory by the package `cuda`. `extra` is the extra that installs cuda-bindings.

    Raises MissingDependencyError without the package, BackendError without driver or GPU.
    """
    if cuda == "pycuda":
        from cfpose_sdk.backends.tensorrt.pycuda import PyCuda

        require("pycuda", extra="pycuda", why=why)
        return PyCuda(importlib.import_module("pycuda.driver"))
    require("cuda", "cuda.bindings", extra=extra, why=why)
    return CudaBindings(importlib.import_module("cuda.bindings.runtime"))
