"""pycuda over the GPUs of fake_gpu.py, with its stack of contexts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.sdk.fake_gpu import DEVICES


class FakePycuda:
    """The part of pycuda.driver that is used, over a FakeGpu, with pycuda's stack of contexts.

    `fail` names a function whose next call raises pycuda's own error.
    """

    class Error(Exception):
        """pycuda's own."""

    def __init__(self, gpu: Any) -> None:
        self.gpu, self.fail = gpu, set[str]()
        self.stack: list[int] = []
        outer = self

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            @staticmethod
            def count() -> int:
                return gpu.devices

            def retain_primary_context(self) -> Any:
                return Context(self.index)

            def compute_capability(self) -> tuple[int, int]:
                return DEVICES[self.index][1:]

            def name(self) -> str:
                return DEVICES[self.index][0]

        class Context:
            def __init__(self, index: int) -> None:
                self.index = index

            def push(self) -> None:
                outer.stack.append(gpu.current)
                gpu.set_current(self.index)

            def pop(self) -> None:
                gpu.set_current(outer.stack.pop())

        self.Device = Device

    def check(self, name: str = "") -> None:
        self.gpu.require(bool(self.stack), "pycuda has no current context")
        if name in self.fail:
            self.fail.remove(name)
            raise self.Error(f"{name}: out of memory")

    def init(self) -> None: ...

    def get_driver_version(self) -> int:
        return self.gpu.driver

    def mem_alloc(self, size: int) -> Any:
        self.check("mem_alloc")
        address = self.gpu.take(size, "device")

        class DeviceAllocation:
            def __int__(self) -> int:
                return address

            def free(allocation) -> None:  # noqa: N805
                self.check("free")
                self.gpu.free(address, "device")

        return DeviceAllocation()

    def pagelocked_empty(self, size: int, kind: type) -> np.ndarray:
        self.check("pagelocked_empty")
        address = self.gpu.take(size, "host")

        def free() -> None:
            self.check("free")
            self.gpu.free(address, "host")

        array = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
        return np.asarray(SimpleNamespace(__array_interface__=array, free=free))

    def Stream(self) -> Any:  # noqa: N802
        self.check("Stream")
        stream = self.gpu.open_stream()

        class Stream:
            handle = stream

            def synchronize(_) -> None:  # noqa: N805
                self.check("synchronize")
                self.gpu.wait(stream)

            def __del__(_) -> None:  # noqa: N805
                self.gpu.close_stream(stream)

        return Stream()

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Any) -> None:
        self.check("memcpy_htod_async")
        self.gpu.copy(dest, src.ctypes.data, src.size, "up", stream.handle)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Any) -> None:
        self.check("memcpy_dtoh_async")
        self.gpu.copy(dest.ctypes.data, src, dest.size, "down", stream.handle)
