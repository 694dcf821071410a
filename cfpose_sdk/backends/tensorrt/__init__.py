"""Engines of TensorRT and TensorRT-RTX: passports, memory, frames, workers, and the backend."""

from __future__ import annotations

import importlib

from cfpose_sdk.backends.base import Cuda
from cfpose_sdk.backends.tensorrt.cuda import CudaBindings, DeviceMemory
from cfpose_sdk.backends.tensorrt.library import EXTRAS, Flavour, needs_of
from cfpose_sdk.errors import require


def open_memory(cuda: Cuda, *, flavour: Flavour, why: str, index: int = 0) -> DeviceMemory:
    """CUDA memory of GPU `index` by the package `cuda`, for engines of a flavour.

    Raises MissingDependencyError without the package; BackendError without driver or GPU, and where
    the driver is too old for the flavour as installed, with what to install.
    """
    needs = needs_of(flavour)
    if cuda == "pycuda":
        from cfpose_sdk.backends.tensorrt.pycuda import PyCuda

        require("pycuda", extra="pycuda", why=why)
        return PyCuda(importlib.import_module("pycuda.driver"), index, needs)
    require("cuda", "cuda.bindings", extra=EXTRAS[flavour], why=why)
    return CudaBindings(importlib.import_module("cuda.bindings.runtime"), index, needs)
