"""GPU memory, streams and graphs of CUDA, as far as engines need them; with cuda-bindings.

Addresses, streams and graphs are integers, as TensorRT takes them. Every failure is a BackendError.
"""

from __future__ import annotations

import ctypes
import importlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.errors import BackendError, require

Bytes = NDArray[np.uint8]
NO_DRIVER = "this machine has no NVIDIA driver, or one older than its CUDA packages need"
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100  # cudaError_t


@dataclass(frozen=True)
class Gpu:
    """The first device: its name, compute capability as "8.9", and CUDA's major version."""

    name: str
    sm: str
    cuda_major: int


class DeviceMemory(ABC):
    """The CUDA calls that a worker needs, in the primary context of the first device."""

    can_capture = True  # CUDA graphs

    def current(self) -> AbstractContextManager[None]:
        """In it TensorRT works in the context that the memory belongs to, whatever the caller's."""
        return nullcontext()

    @abstractmethod
    def gpu(self) -> Gpu:
        """The device."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Address of `size` new bytes on the device."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""

    @abstractmethod
    def pin(self, size: int) -> Bytes:
        """(size,) bytes of the host that the device can read and write by itself."""

    @abstractmethod
    def unpin(self, array: Bytes) -> None:
        """Give back what `pin` gave; the array must not be used afterwards."""

    @abstractmethod
    def open_stream(self) -> int:
        """A new stream."""

    @abstractmethod
    def close_stream(self, stream: int) -> None:
        """Give back what `open_stream` gave."""

    @abstractmethod
    def upload(self, address: int, array: Bytes, stream: int) -> None:
        """Begin to copy pinned bytes to the device."""

    @abstractmethod
    def download(self, array: Bytes, address: int, stream: int) -> None:
        """Begin to copy bytes of the device into pinned ones."""

    @abstractmethod
    def wait(self, stream: int) -> None:
        """Return when all that was begun on the stream has ended."""

    def begin_capture(self, stream: int) -> None:
        """Record what is begun on the stream from now on, instead of doing it."""
        raise BackendError(f"{type(self).__name__} has no CUDA graphs; use cuda='cuda-bindings'")

    def end_capture(self, stream: int) -> int:
        """The recorded graph, ready to launch."""
        raise BackendError(f"{type(self).__name__} has no CUDA graphs; use cuda='cuda-bindings'")

    def launch(self, graph: int, stream: int) -> None:
        """Begin to do what was recorded."""
        raise BackendError(f"{type(self).__name__} has no CUDA graphs; use cuda='cuda-bindings'")

    def free_graph(self, graph: int) -> None:
        """Give back what `end_capture` gave."""
        raise BackendError(f"{type(self).__name__} has no CUDA graphs; use cuda='cuda-bindings'")


def cuda_major(*, extra: str, why: str) -> int:
    """CUDA's major version as cuda-bindings has it; needs no driver."""
    require("cuda", "cuda.bindings", extra=extra, why=why)
    code, version = importlib.import_module("cuda.bindings.runtime").cudaRuntimeGetVersion()
    if int(code) != 0:
        raise BackendError(f"cuda-bindings does not tell its CUDA version (error {int(code)})")
    return int(version) // 1000


class CudaBindings(DeviceMemory):
    """Through `cuda.bindings.runtime`, which shares the primary context with PyTorch."""

    def __init__(self, runtime: Any) -> None:
        self._cuda = runtime
        if self._call("cudaGetDeviceCount") == 0:
            raise BackendError("this machine has no NVIDIA GPU that CUDA can see")

    def gpu(self) -> Gpu:
        properties = self._call("cudaGetDeviceProperties", 0)
        version = self._call("cudaRuntimeGetVersion")
        name = bytes(properties.name).split(b"\0")[0].decode(errors="replace")
        return Gpu(name, f"{properties.major}.{properties.minor}", int(version) // 1000)

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def pin(self, size: int) -> Bytes:
        address = int(self._call("cudaHostAlloc", size, int(self._cuda.cudaHostAllocDefault)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, array: Bytes) -> None:
        self._call("cudaFreeHost", int(array.ctypes.data))

    def open_stream(self) -> int:
        flag = int(self._cuda.cudaStreamNonBlocking)
        return int(self._call("cudaStreamCreateWithFlags", flag))

    def close_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def upload(self, address: int, array: Bytes, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.size, kind, stream)

    def download(self, array: Bytes, address: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.size, kind, stream)

    def wait(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            launchable = int(self._call("cudaGraphInstantiate", graph, 0))
        except BackendError:
            with suppress(BackendError):
                self._call("cudaGraphDestroy", graph)
            raise
        try:
            self._call("cudaGraphDestroy", graph)
        except BackendError:
            with suppress(BackendError):
                self.free_graph(launchable)
            raise
        return launchable

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its values without the leading error code."""
        code, *values = getattr(self._cuda, name)(*arguments)
        if int(code) == 0:
            return values[0] if values else None
        if int(code) == _INSUFFICIENT_DRIVER:
            raise BackendError(f"{NO_DRIVER}; see: nvidia-smi")
        if int(code) == _NO_DEVICE:
            raise BackendError("this machine has no NVIDIA GPU that CUDA can see; see: nvidia-smi")
        _, label = self._cuda.cudaGetErrorName(code)
        _, text = self._cuda.cudaGetErrorString(code)
        raise BackendError(f"{name} failed: {_text(label)}, {_text(text)}; see: nvidia-smi")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
