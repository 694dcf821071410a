"""A GPU that lives in host memory: CUDA's functions and TensorRT's objects, in the real shapes.

Every function here stands in for one of `cuda.bindings.runtime` and is called with its signature;
engine, context and runtime are specced from `tensorrt_rtx`, so a name that the libraries do not
have fails. What is allocated is counted. An engine's bytes name its network; that of b"plan" is
POSE, whose function is: each joint of a crop lies at (mean, maximum) of the crop's bytes, with
confidence minimum / 255. `FakePycuda` is the same device through pycuda.driver.
"""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

from cfpose_sdk.backends.tensorrt.passport import (
    Passport,
    passport_path,
)
from cfpose_sdk.files import sha256

JOINTS = 17
Values = Mapping[str, np.ndarray]
DEVICE = {"name": b"NVIDIA Fake 1\0\0", "major": 8, "minor": 9}


@dataclass(frozen=True)
class Network:
    """What an engine computes; -1 in an output stands for the length of the first input."""

    inputs: Mapping[str, tuple[str, Sequence[tuple[int, ...]]]]  # name → type, (least, best, most)
    outputs: Mapping[str, tuple[int, ...]]  # all float32
    answer: Callable[[Values], Values]

    def shape(self, name: str, count: int) -> tuple[int, ...]:
        return tuple(count if size < 0 else size for size in self.outputs[name])


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
        self.before_deserialise: Callable[[], None] = lambda: None
        self.networks: dict[bytes, Network] = {b"plan": POSE}
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

        def deserialise(data: bytes) -> Any:
            self.before_deserialise()
            return self._engine(self.networks[data]) if data in self.networks else None

        runtime.deserialize_cuda_engine.side_effect = deserialise
        return runtime

    def _engine(self, network: Network) -> Any:
        trt = self.trt
        types = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT}
        types["float16"] = trt.DataType.HALF
        names = [*network.inputs, *network.outputs]
        engine = create_autospec(trt.ICudaEngine, instance=True)
        engine.num_io_tensors = len(names)
        engine.get_tensor_name.side_effect = lambda index: names[index]
        engine.get_tensor_shape.side_effect = lambda name: (
            network.outputs[name] if name in network.outputs else network.inputs[name][1][2]
        )
        engine.get_tensor_dtype.side_effect = lambda name: types[
            network.inputs[name][0] if name in network.inputs else "float32"
        ]
        engine.get_tensor_mode.side_effect = lambda name: (
            trt.TensorIOMode.INPUT if name in network.inputs else trt.TensorIOMode.OUTPUT
        )
        engine.get_tensor_profile_shape.side_effect = lambda name, profile: list(
            network.inputs[name][1]
        )
        engine.create_execution_context.side_effect = lambda: self._context(network)
        return engine

    def _context(self, network: Network) -> Any:
        if self.fail.pop("context", 0):
            return None
        self.contexts += 1
        context = create_autospec(self.trt.IExecutionContext, instance=True)
        state = {name: shapes[2] for name, (_, shapes) in network.inputs.items()}
        most = next(iter(state.values()))[0]
        addresses: dict[str, int] = {}

        def shape(name: str) -> tuple[int, ...]:
            count = next(iter(state.values()))[0]
            return state[name] if name in state else network.shape(name, count)

        def set_shape(name: str, value: Sequence[int]) -> bool:
            least, _, largest = network.inputs[name][1]
            state[name] = tuple(value)
            return all(a <= b <= c for a, b, c in zip(least, value, largest, strict=True))

        def compute(shapes: Mapping[str, tuple[int, ...]]) -> None:
            given = {
                name: _array(addresses[name], shapes[name], kind)
                for name, (kind, _) in network.inputs.items()
            }
            for name, value in network.answer(given).items():
                _array(addresses[name], value.shape, np.float32)[...] = value

        def execute(stream_handle: int) -> bool:
            self.before_execute()
            if self.fail.pop("execute", 0):
                return False
            shapes = dict(state)
            self.do(stream_handle, lambda: compute(shapes))
            return True

        context.set_input_shape.side_effect = set_shape
        context.get_tensor_shape.side_effect = shape
        context.get_max_output_size.side_effect = lambda name: (
            4 * int(np.prod(network.shape(name, most)))
        )
        context.set_tensor_address.side_effect = lambda name, memory: (
            addresses.update({name: memory}) is None
        )
        context.execute_async_v3.side_effect = execute
        return context


class FakePycuda(SimpleNamespace):
    """The part of pycuda.driver that is used, over a FakeGpu, with pycuda's stack of contexts.

    `fail` names a function whose next call raises pycuda's own error.
    """

    class Error(Exception):
        """pycuda's own."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__(gpu=gpu, stack=[], fail=set())
        context = SimpleNamespace(push=lambda: self.stack.append(1), pop=lambda: self.stack.pop())
        device = SimpleNamespace(
            retain_primary_context=lambda: context,
            compute_capability=lambda: (8, 9),
            name=lambda: "NVIDIA Fake 2",
        )
        self.Device = type(
            "Device", (), {"__new__": lambda *_: device, "count": lambda: gpu.devices}
        )
        gpu.before_execute = gpu.before_deserialise = self.check  # TensorRT works in the context

    def check(self, name: str = "") -> None:
        assert self.stack, "no current context"
        if name in self.fail:
            self.fail.remove(name)
            raise self.Error(f"{name}: out of memory")

    def init(self) -> None: ...

    def get_version(self) -> tuple[int, int, int]:
        return (int(self.gpu.cuda.cudaRuntimeGetVersion()[1]) // 1000, 0, 0)

    def mem_alloc(self, size: int) -> Any:
        self.check("mem_alloc")
        address = self.gpu._memory(size, "device")

        class DeviceAllocation:
            def __int__(self) -> int:
                return address

            def free(allocation) -> None:  # noqa: N805
                self.check("free")
                self.gpu._free(address, "device")

        return DeviceAllocation()

    def pagelocked_empty(self, size: int, kind: type) -> np.ndarray:
        self.check("pagelocked_empty")
        address = self.gpu._memory(size, "host")

        def free() -> None:
            self.check("free")
            self.gpu._free(address, "host")

        array = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
        return np.asarray(SimpleNamespace(__array_interface__=array, free=free))

    def Stream(self) -> Any:  # noqa: N802
        self.check("Stream")
        stream = self.gpu._handle("stream")

        class Stream:
            handle = stream

            def synchronize(_) -> None:  # noqa: N805
                self.check("synchronize")

            def __del__(_) -> None:  # noqa: N805
                self.gpu._free(stream, "stream")

        return Stream()

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Any) -> None:
        self.check("memcpy_htod_async")
        self.gpu.do(stream.handle, lambda: ctypes.memmove(dest, src.ctypes.data, src.size) and None)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Any) -> None:
        self.check("memcpy_dtoh_async")
        self.gpu.do(
            stream.handle, lambda: ctypes.memmove(dest.ctypes.data, src, dest.size) and None
        )


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


def _pose(given: Values) -> Values:
    points, sure = expected(given["crops"])
    return {"keypoints": points, "confidence": sure}


POSE = Network(
    inputs={"crops": ("uint8", [(n, 64, 48, 3) for n in (1, 2, 4)])},
    outputs={"keypoints": (-1, JOINTS, 2), "confidence": (-1, JOINTS)},
    answer=_pose,
)


def write_engine(
    path: Path,
    trt: ModuleType,
    cuda: ModuleType,
    metadata: Mapping[str, str],
    *,
    network: Network = POSE,
    data: bytes = b"plan",
    **changes: Any,
) -> Path:
    """An engine's file and its passport, as `cfpose-export engine` would leave them."""
    path.write_bytes(data)
    passport = Passport(
        flavour="rtx",
        flavour_version=trt.__version__,
        gpu="",
        sm="",
        targets=(),
        cuda_major=int(cuda.cudaRuntimeGetVersion()[1]) // 1000,
        source="default",
        source_sha256="",
        onnx_sha256="",
        engine_sha256=sha256(data),
        engine_bytes=len(data),
        precision="fp32",
        achieved={},
        inputs={name: f"{kind} {shapes[2]}" for name, (kind, shapes) in network.inputs.items()},
        outputs={name: f"float32 {shape}" for name, shape in network.outputs.items()},
        profile={name: (a, b, c) for name, (_, (a, b, c)) in network.inputs.items()},
        flags={},
        metadata=metadata,
        gate={},
        command=("cfpose-export", "engine", "--model", "default"),
        key="",
    )
    passport_path(path).write_text(dataclasses.replace(passport, **changes).to_json())
    return path
