"""GPUs that live in host memory and forgive nothing: CUDA's functions in their real shapes.

Every function stands in for one of `cuda.bindings.runtime` and is called with its signature; any
other that engines could use raises. What hardware answers with wrong numbers, a crash or nothing at
all is a ViolationError here:

- memory, streams and engines belong to the thread's current device, and are used on it alone;
- work on a stream is done when the stream is waited for, and not before; until then what it reads
  stays as it is, what it touches is not freed, and what it writes is not touched by other streams;
- an address is the start of a living block that is large enough, on the host a pinned one;
- the legacy stream 0, CUDA graphs and user-managed memory are not used at all; its other name, 1,
  is waited for alone, where another library put work on it.

Violations are kept, too, for those that are raised where nobody hears. `alive` counts what was
taken and not given back. The TensorRT on these GPUs is fake_engine.py, the arrays of other
libraries on them are fake_arrays.py.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

DEVICES = [("NVIDIA Fake 1", 8, 9), ("NVIDIA Fake 2", 12, 0)]
GARBAGE = {"device": 0xCD, "host": 0xAB}  # what new memory holds
GIVES = ("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaGetDeviceCount",
         "cudaGetDevice", "cudaPointerGetAttributes")  # fmt: skip
LEGACY = 1  # cudaStreamLegacy
# of cuda.bindings.runtime: what the SDK must not use, for no hardware has run it
FORBIDDEN = (
    "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch",
    "cudaMallocAsync", "cudaMallocManaged", "cudaMemcpy", "cudaDeviceReset",
)  # fmt: skip


class ViolationError(AssertionError):
    """A rule of CUDA or TensorRT was broken."""


@dataclass
class Block:
    """Memory of a device, or pinned memory of the host."""

    kind: str
    device: int
    memory: np.ndarray


@dataclass(eq=False)
class Work:
    """What waits on a stream. `reads`: copies of host memory as it was when the work was queued."""

    do: Callable[[], None]
    touches: tuple[int, ...]  # addresses of blocks
    reads: tuple[tuple[np.ndarray, bytes], ...] = ()
    writes: tuple[int, ...] = ()  # of those that it touches


@dataclass
class Stream:
    """Work in order, on one device."""

    device: int
    waiting: list[Work] = field(default_factory=list)


class FakeGpu:
    """The devices. `fail[name] = n` makes the n-th call from now of a function fail."""

    def __init__(self, cuda: ModuleType) -> None:
        self.cuda = cuda
        self.alive: dict[int, Block | Stream] = {}  # address or handle → what is there
        self.violations: list[str] = []
        self.calls: Counter[str] = Counter()
        self.copied: list[tuple[str, int]] = []  # direction, bytes
        self.fail: dict[str, int] = {}
        self.devices = 1
        self.driver = int(cuda.cudaRuntimeGetVersion()[1])
        self._thread = threading.local()
        self.lock = threading.RLock()
        self._addresses = itertools.count(1 << 40, 1 << 32)
        self._handles = itertools.count(16)  # below are CUDA's own names of streams
        self._legacy = {device: Stream(device) for device in range(len(DEVICES))}
        self._freed: list[Block] = []  # host memory stays, so that no address comes twice

    @property
    def current(self) -> int:
        """The calling thread's device; a new thread begins with 0."""
        return int(getattr(self._thread, "device", 0))

    def set_current(self, device: int) -> None:
        """As cudaSetDevice."""
        self.require(0 <= device < self.devices, f"there is no device {device}")
        self._thread.device = device

    def count(self, kind: str) -> int:
        """How many blocks of a kind, or streams, were not given back."""
        if kind == "stream":
            return sum(isinstance(thing, Stream) for thing in self.alive.values())
        blocks = (thing for thing in self.alive.values() if isinstance(thing, Block))
        return sum(block.kind == kind for block in blocks)

    def require(self, right: bool, rule: str) -> None:
        """Raise, and keep, a ViolationError unless `right`."""
        if not right:
            self.violations.append(rule)
            raise ViolationError(rule)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the functions in the place of the real ones."""
        functions: dict[str, Callable[..., Any]] = {
            "cudaDriverGetVersion": lambda: (self.driver,),
            "cudaGetDeviceCount": lambda: (self.devices,),
            "cudaGetDevice": lambda: (self.current,),
            "cudaSetDevice": lambda device: self.set_current(device),
            "cudaGetDeviceProperties": lambda device: (self._properties(device),),
            "cudaMalloc": lambda size: (self.take(size, "device"),),
            "cudaFree": lambda devPtr: self.free(devPtr, "device"),  # noqa: N803
            "cudaHostAlloc": lambda size, flags: (self.take(size, "host"),),
            "cudaFreeHost": lambda ptr: self.free(ptr, "host"),
            "cudaStreamCreateWithFlags": lambda flags: (self.open_stream(),),
            "cudaStreamDestroy": lambda stream: self.close_stream(stream),
            "cudaStreamSynchronize": lambda stream: self.wait(stream),
            "cudaMemcpyAsync": self._copy,
            "cudaPointerGetAttributes": lambda ptr: (self._attributes(ptr),),
            "cudaDeviceSynchronize": self._wait_for_all,
        }
        for name, function in functions.items():
            patch.setattr(self.cuda, name, self._checked(name, function))
        for name in FORBIDDEN:
            patch.setattr(
                self.cuda, name, lambda *_, n=name: self.require(False, f"{n} is not for engines")
            )

    def _checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        real = inspect.signature(getattr(self.cuda, name))

        def call(*arguments: Any) -> tuple[Any, ...]:
            bound = real.bind(*arguments)  # TypeError when the real one would not take them
            with self.lock:
                self.calls[name] += 1
                if self.fails(name):
                    code = self.cuda.cudaError_t.cudaErrorMemoryAllocation
                    return (code, *([None] * (name in GIVES)))
                values = function(**bound.arguments)
            return (self.cuda.cudaError_t.cudaSuccess, *(values or ()))

        return call

    def fails(self, name: str) -> bool:
        """Whether this call is the one that is to fail."""
        if name not in self.fail:
            return False
        self.fail[name] -= 1
        if self.fail[name] > 0:
            return False
        del self.fail[name]
        return True

    def _properties(self, device: int) -> Any:
        found = create_autospec(self.cuda.cudaDeviceProp, instance=True)
        name, found.major, found.minor = DEVICES[device]
        found.name = name.encode() + b"\0\0"
        return found

    def _attributes(self, address: int) -> Any:
        found, kinds = create_autospec(self.cuda.cudaPointerAttributes), self.cuda.cudaMemoryType
        block = self.alive.get(int(address))
        on_gpu = isinstance(block, Block) and block.kind == "device"
        kind = "cudaMemoryTypeDevice" if on_gpu else "cudaMemoryTypeUnregistered"
        found.type, found.device = getattr(kinds, kind), block.device if on_gpu else -2
        return found

    def take(self, size: int, kind: str) -> int:
        """A new block. Host memory is real; device memory only has an address."""
        self.require(size > 0, f"{size} bytes of {kind} memory were asked for")
        memory = np.full(size, GARBAGE[kind], np.uint8)
        address = int(memory.ctypes.data) if kind == "host" else next(self._addresses)
        self.alive[address] = Block(kind, self.current, memory)
        return address

    def free(self, address: int, kind: str) -> None:
        """Give a block back, which no waiting work touches."""
        block = self.block(address, 0, kind)
        for stream in self.streams():
            for work in stream.waiting:
                self.require(address not in work.touches, f"{kind} memory is freed while in use")
        del self.alive[address]
        self._freed.append(block)

    def block(self, address: int, size: int, kind: str) -> Block:
        """The living block at an address, with `size` bytes or more, on the current device."""
        found = self.alive.get(int(address))
        self.require(isinstance(found, Block), f"{address:#x} is no living block")
        assert isinstance(found, Block)
        self.require(found.kind == kind, f"{address:#x} is {found.kind} memory, not {kind}")
        self.require(len(found.memory) >= size, f"{size} bytes at a block of {len(found.memory)}")
        if kind == "device":
            self.require(found.device == self.current, "memory of a device that is not current")
        return found

    def open_stream(self) -> int:
        """A new stream of the current device."""
        handle = next(self._handles)
        self.alive[handle] = Stream(self.current)
        return handle

    def close_stream(self, handle: int) -> None:
        """Give a stream back."""
        self.stream(handle)
        del self.alive[int(handle)]

    def stream(self, handle: int) -> Stream:
        """A living stream of the current device."""
        found = self.alive.get(int(handle))
        self.require(isinstance(found, Stream), f"{handle} is no living stream; 0 is not allowed")
        assert isinstance(found, Stream)
        self.require(found.device == self.current, "a stream of a device that is not current")
        return found

    def legacy(self, device: int) -> Stream:
        """The device's legacy stream, for the work of other libraries."""
        return self._legacy[device]

    def streams(self) -> list[Stream]:
        # a list first: other threads take and give meanwhile
        opened = [thing for thing in list(self.alive.values()) if isinstance(thing, Stream)]
        return opened + list(self._legacy.values())

    def enqueue(self, handle: int, work: Work) -> None:
        """Put work on a stream; what it touches no other stream has yet to write."""
        stream = self.stream(handle)
        for other in self.streams():
            for before in list(other.waiting) if other is not stream else ():
                both = set(work.touches) & set(before.writes)
                self.require(not both, "memory is used that another stream has yet to write")
        stream.waiting.append(work)

    def wait(self, handle: int) -> None:
        """Do all that waits on a stream."""
        self.drain(self.legacy(self.current) if handle == LEGACY else self.stream(handle))

    def _wait_for_all(self) -> None:
        for stream in self.streams():
            if stream.device == self.current:
                self.drain(stream)

    def drain(self, stream: Stream) -> None:
        """Do all that waits on it, whatever the current device is."""
        with self.lock:
            while stream.waiting:
                work = stream.waiting.pop(0)
                for memory, before in work.reads:
                    kept = memory.tobytes() == before
                    self.require(kept, "host memory changed before it was read")
                work.do()

    def _copy(self, dst: int, src: int, count: int, kind: Any, stream: int) -> None:
        kinds = self.cuda.cudaMemcpyKind
        up = kind == kinds.cudaMemcpyHostToDevice
        self.require(up or kind == kinds.cudaMemcpyDeviceToHost, f"a copy of kind {kind}")
        self.copy(dst, src, count, "up" if up else "down", stream)

    def copy(self, dst: int, src: int, count: int, way: str, stream: int) -> None:
        """Begin a copy; `way`: up to the device, or down."""
        source, target = ("host", "device") if way == "up" else ("device", "host")
        read, write = self._block_at(src, count, source), self._block_at(dst, count, target)
        given, taken = read[1].memory[:count], write[1].memory[:count]
        reads = ((given, given.tobytes()),) if way == "up" else ()
        self.copied.append((way, count))
        touches = (read[0], write[0])
        self.enqueue(stream, Work(lambda: np.copyto(taken, given), touches, reads, touches[1:]))

    def work(
        self, do: Callable[[], None], touches: tuple[int, ...], writes: tuple[int, ...]
    ) -> Work:
        """Work for a stream."""
        return Work(do, touches, writes=writes)

    def _block_at(self, address: int, count: int, kind: str) -> tuple[int, Block]:
        return int(address), self.block(address, count, kind)


@contextmanager
def forgiven(gpu: FakeGpu) -> Iterator[None]:
    """What leaks or breaks a rule in the block is forgotten behind it."""
    try:
        yield
    finally:
        gc.collect()
        gpu.set_current(0)
        gpu.alive.clear()
        gpu.violations.clear()
