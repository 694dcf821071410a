"""Images of another library on the GPUs of fake_gpu.py: CUDA arrays, DLPack objects, capsules.

Each is made by work on a stream of its own, which nobody has waited for when it is handed over; its
memory is freed when the library has no more reference to it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

Kind = str  # of KINDS


class Memory:
    """An image's block and the stream that makes it, on a device."""

    def __init__(self, gpu: Any, image: np.ndarray, device: int = 0) -> None:
        self.gpu, self.device, self.shape = gpu, device, image.shape
        with self._there():
            self.address = gpu.take(image.nbytes, "device")
            self.handle = gpu.open_stream()
            target, made = gpu.block(self.address, image.nbytes, "device").memory, image.tobytes()
            self.stream = gpu.stream(self.handle)

            def make() -> None:
                target[...] = np.frombuffer(made, np.uint8)

            gpu.enqueue(self.handle, gpu.work(make, (self.address,), (self.address,)))

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Alone, and on the device."""
        with self.gpu.lock:
            before = self.gpu.current
            self.gpu.set_current(self.device)
            yield
            self.gpu.set_current(before)

    def __del__(self) -> None:
        with self._there():
            self.gpu.drain(self.stream)
            self.gpu.close_stream(self.handle)
            self.gpu.free(self.address, "device")


class CudaArray:
    """As Numba's: the interface alone. `changes` are of the interface."""

    def __init__(self, memory: Memory, **changes: Any) -> None:
        self._memory, self._changes = memory, changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        memory = self._memory
        told = {"shape": memory.shape, "typestr": "|u1", "data": (memory.address, False),
                "version": 3, "stream": memory.handle, "strides": None}  # fmt: skip
        return {**told, **self._changes}

    def copy_to_host(self) -> np.ndarray:
        self._memory.gpu.drain(self._memory.stream)
        block = self._memory.gpu.alive[self._memory.address]
        return np.array(block.memory).reshape(self._memory.shape)


class DlpackArray:
    """As PyTorch's: DLPack, and an interface of version 2, which names no stream."""

    def __init__(self, memory: Memory, *, versioned: bool = True, **changes: Any) -> None:
        self._memory, self._versioned, self._changes = memory, versioned, changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("DLPack is to be asked first")

    def copy_to_host(self) -> np.ndarray:
        return CudaArray(self._memory).copy_to_host()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._memory.device

    def __dlpack__(self, *, stream: int, **others: Any) -> Any:
        if others and not self._versioned:
            raise TypeError(f"unexpected {list(others)}")
        memory, gpu = self._memory, self._memory.gpu
        gpu.require(stream == gpu.cuda.cudaStreamLegacy, f"stream {stream}")
        # an event: the legacy stream goes on when this one has ended
        own = memory.stream
        work = gpu.work(lambda: gpu.drain(own), (), ())
        gpu.legacy(memory.device).waiting.append(work)
        return capsule(memory, versioned=self._versioned, **self._changes)


_Delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class _Old(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Delete)]


class _New(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", _Delete), ("flags", ctypes.c_uint64), ("tensor", _DLTensor),
    ]  # fmt: skip


_NEW, _OLD = b"dltensor_versioned", b"dltensor"
_KEPT: dict[int, tuple[Any, ...]] = {}  # of each capsule's struct: what it points to
_make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def capsule(memory: Memory, *, versioned: bool = True, **changes: Any) -> Any:
    """A DLPack capsule of an image, which keeps the memory until it is deleted."""
    shape = changes.pop("shape_hw3", memory.shape)
    sides = (ctypes.c_int64 * len(shape))(*shape)
    steps = changes.pop("strides", None)
    strides = None if steps is None else (ctypes.c_int64 * len(steps))(*steps)
    struct = _New() if versioned else _Old()
    struct.deleter = delete = _Delete(_deleted)
    if versioned:
        struct.major = changes.pop("major", 1)
    told = {"data": memory.address, "device_type": 2, "device_id": memory.device,
            "ndim": len(sides), "code": 1, "bits": 8, "lanes": 1,
            "shape": ctypes.addressof(sides), "byte_offset": 0}  # fmt: skip
    for name, value in {**told, **changes}.items():
        setattr(struct.tensor, name, value)
    if strides is not None:
        struct.tensor.strides = ctypes.addressof(strides)
    place = ctypes.addressof(struct)
    _KEPT[place] = (memory, struct, sides, strides, delete)
    name = _NEW if versioned else _OLD
    return _make(place, name, None)


deleted: list[int] = []


def _deleted(place: int) -> None:
    deleted.append(place)
    del _KEPT[place]  # a second time is a KeyError


def forget() -> None:
    """Let go of capsules that nobody took."""
    _KEPT.clear()


def _capsule_alone(memory: Memory, **changes: Any) -> Any:
    """The capsule of a library that finished its work before."""
    memory.gpu.drain(memory.stream)
    return capsule(memory, **changes)


KINDS: dict[Kind, Callable[..., Any]] = {
    "cuda array": CudaArray,
    "cuda array, version 2": lambda memory, **changes: CudaArray(
        memory, version=2, stream=None, **changes
    ),
    "cuda array, per-thread stream": lambda memory, **changes: CudaArray(
        memory, stream=2, **changes
    ),
    "dlpack": DlpackArray,
    "dlpack before 1.0": lambda memory, **changes: DlpackArray(memory, versioned=False, **changes),
    "capsule": _capsule_alone,
}
