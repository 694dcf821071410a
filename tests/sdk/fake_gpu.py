"""A GPU that lives in host memory: CUDA's functions and TensorRT's objects, in the real shapes.

Every function here stands in for one of `cuda.bindings.runtime` and is called with its signature;
engine, context and runtime are specced from `tensorrt_rtx`, so a name that the libraries do not
have fails. What is allocated is counted. The engine's function: each joint of a crop lies at
(mean, maximum) of the crop's bytes, with confidence minimum / 255.
"""

from __future__ import annotations

import ctypes
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

JOINTS = 17
DEVICE = {"name": b"NVIDIA Fake 1\0\0", "major": 8, "minor": 9}


class FakeGpu:
    """The device. `fail[name] = n` makes the n-th call from now of a function fail."""

    def __init__(self, cuda: ModuleType, trt: ModuleType) -> None:
        self.cuda, self.trt, self.runtime_class = cuda, trt, trt.Runtime
        self.alive: dict[int, Any] = {}  # address or handle → what holds it
        self.kinds: dict[int, str] = {}
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, int] = {}
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.before_execute: Callable[[], None] = lambda: None
        self.devices = 1
        self.contexts = 0

    def count(self, kind: str) -> int:
        """How many things of a kind were not given back."""
        return sum(found == kind for found in self.kinds.values())

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the functions in the place of the real ones; unknown names raise."""
        functions = {
            "cudaGetDeviceCount": lambda: (self.devices,),
            "cudaGetDeviceProperties": lambda device: (self._properties(),),
            "cudaMalloc": lambda size: (self._memory(size, "device"),),
            "cudaFree": lambda devPtr: self._free(devPtr, "device"),  # noqa: N803
            "cudaHostAlloc": lambda size, flags: (self._memory(size, "host"),),
            "cudaFreeHost": lambda ptr: self._free(ptr, "host"),
            "cudaStreamCreateWithFlags": lambda flags: (self._handle("stream"),),
            "cudaStreamDestroy": lambda stream: self._free(stream, "stream"),
            "cudaStreamSynchronize": lambda stream: self._known(stream, "stream"),
            "cudaMemcpyAsync": self._copy,
            "cudaStreamBeginCapture": lambda stream, mode: self._begin(stream),
            "cudaStreamEndCapture": lambda stream: (self._end(stream),),
            "cudaGraphInstantiate": lambda graph, flags: (self._instantiate(graph),),
            "cudaGraphDestroy": lambda graph: self._free(graph, "graph"),
            "cudaGraphLaunch": self._launch,
            "cudaGraphExecDestroy": lambda graphExec: self._free(graphExec, "exec"),  # noqa: N803
        }
        for name, function in functions.items():
            patch.setattr(self.cuda, name, self._checked(name, function))
        patch.setattr(self.trt, "Runtime", lambda log: self._runtime())

    def _checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        real = inspect.signature(getattr(self.cuda, name))

        def call(*arguments: Any) -> tuple[Any, ...]:
            bound = real.bind(*arguments)  # TypeError when the real one would not take them
            self.calls[name] += 1
            if name in self.fail:
                self.fail[name] -= 1
                if self.fail[name] == 0:
                    del self.fail[name]
                    code = self.cuda.cudaError_t.cudaErrorMemoryAllocation
                    return (code, *([None] * (name in GIVES)))
            values = function(**bound.arguments)
            return (self.cuda.cudaError_t.cudaSuccess, *(values or ()))

        return call

    def _properties(self) -> Any:
        found = create_autospec(self.cuda.cudaDeviceProp, instance=True)
        found.name, found.major, found.minor = DEVICE.values()
        return found

    def _memory(self, size: int, kind: str) -> int:
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        self.alive[address], self.kinds[address] = block, kind
        return address

    def _handle(self, kind: str, value: Any = None) -> int:
        handle = 1 + max((h for h in self.alive if h < 1000), default=0)
        self.alive[handle], self.kinds[handle] = value, kind
        return handle

    def _known(self, handle: int, kind: str) -> None:
        assert self.kinds.get(int(handle)) == kind, f"{handle} is no {kind}"

    def _free(self, handle: int, kind: str) -> None:
        self._known(handle, kind)
        del self.alive[int(handle)], self.kinds[int(handle)]

    def do(self, stream: int, action: Callable[[], None]) -> None:
        """Do it, or record it when the stream is being captured."""
        self._known(stream, "stream")
        if stream in self.recording:
            self.recording[stream].append(action)
        else:
            action()

    def _copy(self, dst: int, src: int, count: int, kind: Any, stream: int) -> None:
        self.do(stream, lambda: ctypes.memmove(dst, src, count) and None)

    def _begin(self, stream: int) -> None:
        self._known(stream, "stream")
        self.recording[stream] = []

    def _end(self, stream: int) -> int:
        return self._handle("graph", self.recording.pop(stream))

    def _instantiate(self, graph: int) -> int:
        self._known(graph, "graph")
        return self._handle("exec", self.alive[graph])

    def _launch(self, graphExec: int, stream: int) -> None:  # noqa: N803
        self._known(graphExec, "exec")
        for action in self.alive[graphExec]:
            action()

    def _runtime(self) -> Any:
        runtime = create_autospec(self.runtime_class, instance=True)
        runtime.deserialize_cuda_engine.side_effect = lambda data: (
            None if data == b"refused" else self._engine()
        )
        return runtime

    def _engine(self) -> Any:
        trt = self.trt
        shapes = {"crops": (-1, 64, 48, 3), "keypoints": (-1, JOINTS, 2), "confidence": (-1, 17)}
        names = list(shapes)
        engine = create_autospec(trt.ICudaEngine, instance=True)
        engine.num_io_tensors = len(names)
        engine.get_tensor_name.side_effect = lambda index: names[index]
        engine.get_tensor_shape.side_effect = lambda name: shapes[name]
        engine.get_tensor_dtype.side_effect = lambda name: (
            trt.DataType.UINT8 if name == "crops" else trt.DataType.FLOAT
        )
        engine.get_tensor_mode.side_effect = lambda name: (
            trt.TensorIOMode.INPUT if name == "crops" else trt.TensorIOMode.OUTPUT
        )
        engine.get_tensor_profile_shape.side_effect = lambda name, profile: [
            (n, 64, 48, 3) for n in (1, 2, 4)
        ]
        engine.create_execution_context.side_effect = lambda: self._context(shapes)
        return engine

    def _context(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        if self.fail.pop("context", 0):
            return None
        self.contexts += 1
        context = create_autospec(self.trt.IExecutionContext, instance=True)
        state: dict[str, Any] = {"crops": (4, 64, 48, 3)}
        addresses: dict[str, int] = {}

        def shape(name: str) -> tuple[int, ...]:
            return state["crops"] if name == "crops" else (state["crops"][0], *shapes[name][1:])

        def set_shape(name: str, value: Sequence[int]) -> bool:
            state[name] = tuple(value)
            return 1 <= value[0] <= 4

        def execute(stream_handle: int) -> bool:
            self.before_execute()
            if self.fail.pop("execute", 0):
                return False
            count = state["crops"][0]
            self.do(stream_handle, lambda: _compute(addresses, count))
            return True

        context.set_input_shape.side_effect = set_shape
        context.get_tensor_shape.side_effect = shape
        context.get_max_output_size.side_effect = lambda name: int(np.prod(shapes[name][1:])) * 16
        context.set_tensor_address.side_effect = lambda name, memory: (
            addresses.update({name: memory}) is None
        )
        context.execute_async_v3.side_effect = execute
        return context


GIVES = ("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaGraphInstantiate",
         "cudaStreamEndCapture", "cudaGetDeviceCount")  # fmt: skip


def expected(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, 17, 2) and confidence (N, 17) of the engine's function."""
    flat = crops.reshape(len(crops), -1)
    points = np.stack([flat.mean(axis=1), flat.max(axis=1)], axis=1).astype(np.float32)
    sure = (flat.min(axis=1) / 255).astype(np.float32)
    return np.repeat(points[:, None], JOINTS, axis=1), np.repeat(sure[:, None], JOINTS, axis=1)


def _array(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    block = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(block, kind).reshape(shape)


def _compute(addresses: dict[str, int], count: int) -> None:
    points, sure = expected(_array(addresses["crops"], (count, 64, 48, 3), np.uint8))
    _array(addresses["keypoints"], points.shape, np.float32)[...] = points
    _array(addresses["confidence"], sure.shape, np.float32)[...] = sure
