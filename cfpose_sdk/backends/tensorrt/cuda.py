"""GPU memory and streams of CUDA, as far as engines need them; with cuda-bindings.

Addresses and streams are integers, as TensorRT takes them. Every failure is a BackendError.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import WHOLE_GPU
from cfpose_sdk.errors import BackendError, ImageError

Bytes = NDArray[np.uint8]
DRIVERS = {12: "r535", 13: "r580"}  # CUDA's major version → the first driver that TensorRT takes
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100  # cudaError_t


@dataclass(frozen=True)
class Gpu:
    """A device: its name, compute capability as "8.9", and number."""

    name: str
    sm: str
    index: int


@dataclass(frozen=True)
class Need:
    """What needs CUDA of a major version: the package as pip knows it."""

    package: str
    cuda_major: int


class DeviceMemory(ABC):
    """The CUDA calls that a worker needs, in the primary context of one device.

    All of them, and all calls of TensorRT, belong into `with memory.current():`.
    """

    index: int

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """In it the device is this thread's current one; afterwards the earlier one is again."""

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
        """Begin to copy pinned bytes to the device; they must stay as they are until `wait`."""

    @abstractmethod
    def download(self, array: Bytes, address: int, stream: int) -> None:
        """Begin to copy bytes of the device into pinned ones; they are there after `wait`."""

    @abstractmethod
    def wait(self, stream: int) -> None:
        """Return when all that was begun on the stream has ended."""

    def receive(self, address: int, stream: int | None) -> None:
        """Return when others' memory may be read: what was begun on their stream has ended.

        None: there is nothing to wait for; WHOLE_GPU: all streams. Raises ImageError unless the
        memory is of this device, BackendError where this cannot be told.
        """
        del address, stream
        raise BackendError(
            "images in a GPU's memory are read there with RuntimeOptions(cuda='cuda-bindings') "
            "alone; give numpy arrays, or leave the option out"
        )


def driver_problem(driver: int, needs: tuple[Need, ...]) -> str | None:
    """Why the NVIDIA driver does not do, and what to install; None: it does.

    `driver`: the newest CUDA that it knows, as CUDA counts: 12040 is 12.4; 0: there is no driver.
    """
    for need in needs:
        least = DRIVERS.get(need.cuda_major, "a newer one")
        if driver == 0:
            return (
                f"this machine has no NVIDIA driver; {need.package} needs {least} or newer; "
                "see: nvidia-smi"
            )
        if driver // 1000 < need.cuda_major:
            older = driver // 1000
            advice = f"install the driver {least} or newer"
            if older in DRIVERS:
                advice += (
                    f", or the packages for CUDA {older}, in a new environment: "
                    f"pip install 'cfpose-sdk[tensorrt-cu{older}]'"
                )
            return (
                f"the NVIDIA driver here knows CUDA up to {older}.{driver % 1000 // 10}, and "
                f"{need.package} is for CUDA {need.cuda_major}; {advice}"
            )
    return None


class CudaBindings(DeviceMemory):
    """Through `cuda.bindings.runtime`, which shares the primary context with PyTorch.

    `needs`: what else must fit the driver. Raises BackendError without driver or GPU `index`.
    """

    def __init__(self, runtime: Any, index: int = 0, needs: tuple[Need, ...] = ()) -> None:
        self._cuda, self.index = runtime, index
        own = Need("cuda-bindings", int(self._call("cudaRuntimeGetVersion")) // 1000)
        if problem := driver_problem(int(self._call("cudaDriverGetVersion")), (*needs, own)):
            raise BackendError(problem)
        count = self._call("cudaGetDeviceCount")
        if index >= count:
            raise BackendError(missing_gpu(index, int(count)))

    @contextmanager
    def current(self) -> Iterator[None]:
        """The thread's device is set, and restored where it was another."""
        before = int(self._call("cudaGetDevice"))
        if before != self.index:
            self._call("cudaSetDevice", self.index)
        try:
            yield
        finally:
            if before != self.index:
                self._call("cudaSetDevice", before)

    def gpu(self) -> Gpu:
        properties = self._call("cudaGetDeviceProperties", self.index)
        name = bytes(properties.name).split(b"\0")[0].decode(errors="replace")
        return Gpu(name, f"{properties.major}.{properties.minor}", self.index)

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

    def receive(self, address: int, stream: int | None) -> None:
        found, kinds = self._call("cudaPointerGetAttributes", address), self._cuda.cudaMemoryType
        if found.type not in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged):
            raise ImageError(
                f"the image's address {address:#x} is in no GPU's memory ({found.type.name}); give "
                f"an array of CUDA's, or a numpy array"
            )
        if found.device != self.index:
            raise ImageError(
                f"the image lies on cuda:{found.device}, and the model runs on cuda:{self.index}; "
                f"open the model with device='cuda:{found.device}', or bring the image there"
            )
        if stream == WHOLE_GPU:
            self._call("cudaDeviceSynchronize")
        elif stream is not None:
            self.wait(stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its values without the leading error code."""
        code, *values = getattr(self._cuda, name)(*arguments)
        if int(code) == 0:
            return values[0] if values else None
        if int(code) == _INSUFFICIENT_DRIVER:
            raise BackendError(
                "this machine has no NVIDIA driver, or one older than its CUDA packages need; "
                "see: nvidia-smi"
            )
        if int(code) == _NO_DEVICE:
            raise BackendError(missing_gpu(self.index, 0))
        _, label = self._cuda.cudaGetErrorName(code)
        _, text = self._cuda.cudaGetErrorString(code)
        raise BackendError(f"{name} failed: {_text(label)}, {_text(text)}; see: nvidia-smi")


def missing_gpu(index: int, count: int) -> str:
    """The error's text where GPU `index` is asked for and CUDA sees `count`."""
    if count == 0:
        return "this machine has no NVIDIA GPU that CUDA can see; see: nvidia-smi"
    return f"cuda:{index} was asked for, and CUDA sees cuda:0 to cuda:{count - 1} alone"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
