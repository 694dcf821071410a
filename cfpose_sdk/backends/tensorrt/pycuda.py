"""GPU memory with pycuda, for programs that use its contexts. Not yet run with the real pycuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cfpose_sdk.backends.tensorrt.cuda import (
    Bytes,
    DeviceMemory,
    Gpu,
    Need,
    driver_problem,
    missing_gpu,
)
from cfpose_sdk.errors import BackendError


class PyCuda(DeviceMemory):
    """The primary context, current while something is done in it alone."""

    def __init__(self, driver: Any, index: int = 0, needs: tuple[Need, ...] = ()) -> None:
        self._cuda, self.index = driver, index
        self._kept: dict[int, Any] = {}  # pycuda frees what it gave when the object dies
        with self._errors():
            driver.init()
            if problem := driver_problem(int(driver.get_driver_version()), needs):
                raise BackendError(problem)
            if index >= driver.Device.count():
                raise BackendError(missing_gpu(index, int(driver.Device.count())))
            self._device = driver.Device(index)
            self._context = self._device.retain_primary_context()

    def gpu(self) -> Gpu:
        with self._errors():
            major, minor = self._device.compute_capability()
            return Gpu(str(self._device.name()), f"{major}.{minor}", self.index)

    def allocate(self, size: int) -> int:
        with self._errors():
            return self._keep(self._cuda.mem_alloc(size))

    def free(self, address: int) -> None:
        with self._errors():
            self._kept.pop(address).free()

    def pin(self, size: int) -> Bytes:
        with self._errors():
            array: Bytes = self._cuda.pagelocked_empty(size, np.uint8)
            return array

    def unpin(self, array: Bytes) -> None:
        with self._errors():
            array.base.free()  # type: ignore[union-attr]

    def open_stream(self) -> int:
        with self._errors():
            stream = self._cuda.Stream()
            self._kept[int(stream.handle)] = stream
            return int(stream.handle)

    def close_stream(self, stream: int) -> None:
        with self._errors():
            del self._kept[stream]

    def upload(self, address: int, array: Bytes, stream: int) -> None:
        with self._errors():
            self._cuda.memcpy_htod_async(address, array, self._kept[stream])

    def download(self, array: Bytes, address: int, stream: int) -> None:
        with self._errors():
            self._cuda.memcpy_dtoh_async(array, address, self._kept[stream])

    def wait(self, stream: int) -> None:
        with self._errors():
            self._kept[stream].synchronize()

    def _keep(self, allocation: Any) -> int:
        self._kept[int(allocation)] = allocation
        return int(allocation)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The primary context on top of this thread's stack; it may be entered again inside."""
        with self._errors():
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"pycuda failed: {error}; see: nvidia-smi") from error
