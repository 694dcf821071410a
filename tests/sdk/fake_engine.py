"""TensorRT-RTX on the GPUs of fake_gpu.py: runtime, engines, contexts, and engine files.

The objects have names of the real ones alone, and are as strict as the GPUs: a context is changed
only while nothing of it runs, by one thread at a time; after a change of profile it asks for all
shapes again; an engine outlives its contexts and its runtime the engine. An engine's bytes name its
network; that of b"plan" is POSE, whose function is: each joint of a crop lies at (mean, maximum) of
the crop's bytes, with confidence minimum / 255.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends.tensorrt.library import cuda_major
from cfpose_sdk.backends.tensorrt.passport import Passport, Shapes, passport_path
from cfpose_sdk.files import sha256

JOINTS = 17
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """What an engine computes; -1 in an output stands for the first side of the last input."""

    inputs: Mapping[str, tuple[str, Sequence[Shapes]]]  # name → type, its range in each profile
    outputs: Mapping[str, tuple[int, ...]]  # all float32
    answer: Callable[[Values], Values]

    @property
    def profiles(self) -> int:
        """How many."""
        return len(next(iter(self.inputs.values()))[1])

    def result(self, name: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """An output's shape."""
        count = shapes[list(self.inputs)[-1]][0]
        return tuple(count if side < 0 else side for side in self.outputs[name])


class FakeTensorrt:
    """The library. `networks`: an engine's bytes → what it computes."""

    def __init__(self, gpu: Any, trt: ModuleType) -> None:
        self.gpu, self.trt = gpu, trt
        self.networks: dict[bytes, Network] = {b"plan": POSE}
        self.counts: Counter[str] = Counter()  # contexts made, enqueues, changes of profile
        self.validity = (trt.EngineValidity.VALID, 0)
        self.says = ""  # an error that TensorRT logs when it fails
        self.before_execute: Callable[[], None] = lambda: None
        self.log: Any = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in the place of the real one."""
        patch.setattr(self.trt, "Runtime", lambda log: FakeRuntime(self, log))

    def complain(self) -> None:
        """Log what TensorRT has to say of a failure."""
        if self.says:
            self.log.log(self.trt.ILogger.ERROR, self.says)


class FakeRuntime:
    def __init__(self, library: FakeTensorrt, log: Any) -> None:
        self._library = library
        library.log = log

    def get_engine_validity(self, data: bytes) -> tuple[Any, int]:
        return self._library.validity

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        self._library.gpu.calls["deserialise"] += 1
        if data not in self._library.networks:
            self._library.complain()
            return None
        return FakeEngine(self._library, self, self._library.networks[data])


class FakeEngine:
    def __init__(self, library: FakeTensorrt, runtime: FakeRuntime, network: Network) -> None:
        self._library, self._network, self._runtime = library, network, weakref.ref(runtime)
        self._device = library.gpu.current
        self._names = [*network.inputs, *network.outputs]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = network.profiles

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._network.outputs:
            return self._network.outputs[name]
        ranges = np.array(self._network.inputs[name][1])
        least, most = ranges.min(axis=(0, 1)), ranges.max(axis=(0, 1))
        return tuple(int(a) if a == b else -1 for a, b in zip(least, most, strict=True))

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self._network.inputs[name][0] if name in self._network.inputs else "float32"
        names = {"uint8": "UINT8", "float32": "FLOAT", "float16": "HALF"}
        return getattr(self._library.trt.DataType, names[kind])

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._library.trt.TensorIOMode
        return modes.INPUT if name in self._network.inputs else modes.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return list(self._network.inputs[name][1][profile])

    def create_runtime_config(self) -> Any:
        return FakeConfig(self._library)

    def create_execution_context(self, how: Any) -> Any:
        gpu = self._library.gpu
        gpu.require(gpu.current == self._device, "a context on another device than its engine")
        if gpu.fails("context"):
            self._library.complain()
            return None
        self._library.counts["contexts"] += 1
        return FakeContext(self._library, self)

    def __del__(self) -> None:
        gpu = self._library.gpu
        gpu.require(self._runtime() is not None, "a runtime went before its engine")
        gpu.require(gpu.current == self._device, "an engine went on another device")


class FakeConfig:
    """A runtime configuration; its cache is the kernels compiled so far, one a context."""

    def __init__(self, library: FakeTensorrt) -> None:
        self._library = library

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...

    def create_runtime_cache(self) -> Any:
        return FakeCache(self._library)

    def set_runtime_cache(self, cache: Any) -> bool:
        return True


class FakeCache:
    def __init__(self, library: FakeTensorrt) -> None:
        self._library, self._loaded = library, b""

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"kernels"):
            return False
        self._loaded = data
        return True

    def serialize(self) -> bytes:
        return self._loaded or (b"kernels" if self._library.counts["contexts"] else b"")


class FakeContext:
    def __init__(self, library: FakeTensorrt, engine: FakeEngine) -> None:
        self._library, self._network = library, engine._network
        self._engine, self._device = weakref.ref(engine), engine._device
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._running: Any = None  # the work that waits
        self._inside = False

    def _may_change(self) -> None:
        gpu = self._library.gpu
        gpu.require(gpu.current == self._device, "a context on another device than its engine")
        gpu.require(not self._inside, "two threads in one context")
        waiting = [work for stream in gpu.streams() for work in stream.waiting]
        gpu.require(self._running not in waiting, "a context is changed while it runs")

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._may_change()
        self._library.gpu.stream(stream)
        self._library.counts["profiles"] += 1
        self._profile, self._shapes = profile, {}
        return 0 <= profile < self._network.profiles

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._may_change()
        least, _, most = self._network.inputs[name][1][self._profile]
        self._shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def infer_shapes(self) -> list[str]:
        return [name for name in self._network.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self.infer_shapes():
            return (-1,) * len(self._network.outputs[name])
        return self._network.result(name, self._shapes)

    def get_max_output_size(self, name: str) -> int:
        most = {n: ranges[self._profile][2] for n, (_, ranges) in self._network.inputs.items()}
        return 4 * int(np.prod(self._network.result(name, most)))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._may_change()
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._may_change()
        self._inside = True
        try:
            self._library.before_execute()
        finally:
            self._inside = False
        gpu, network = self._library.gpu, self._network
        if gpu.fails("execute") or self.infer_shapes():
            self._library.complain()
            return False
        names = [*network.inputs, *network.outputs]
        gpu.require(set(self._addresses) == set(names), "a tensor has no address")
        gpu.require(self._engine() is not None, "a context runs after its engine went")
        self._library.counts["enqueues"] += 1
        shapes = dict(self._shapes) | {n: network.result(n, self._shapes) for n in network.outputs}
        kinds = {n: np.dtype(k) for n, (k, _) in network.inputs.items()}
        views = {}
        for name in names:
            kind = kinds.get(name, np.dtype(np.float32))
            size = int(np.prod(shapes[name])) * kind.itemsize
            block = gpu.block(self._addresses[name], size, "device")
            views[name] = block.memory[:size].view(kind).reshape(shapes[name])

        def compute() -> None:
            for name, value in network.answer({n: views[n] for n in network.inputs}).items():
                views[name][...] = value

        written = tuple(self._addresses[name] for name in network.outputs)
        self._running = gpu.work(compute, tuple(self._addresses.values()), written)
        gpu.enqueue(stream_handle, self._running)
        return True

    def __del__(self) -> None:
        gpu = self._library.gpu
        gpu.require(self._engine() is not None, "an engine went before its context")
        gpu.require(gpu.current == self._device, "a context went on another device")


def check_names(trt: ModuleType) -> None:
    """Raise AssertionError where an object here has a name that the real one lacks."""
    real = {
        FakeEngine: trt.ICudaEngine, FakeConfig: trt.IRuntimeConfig, FakeCache: trt.IRuntimeCache,
        FakeContext: trt.IExecutionContext, FakeRuntime: trt.Runtime,
    }  # fmt: skip
    for fake, other in real.items():
        extra = {name for name in vars(fake) if name[0] != "_"} - set(dir(other))
        assert not extra, f"{other} has no {extra}"


def expected(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, 17, 2) and confidence (N, 17) of the engine's function."""
    flat = crops.reshape(len(crops), -1)
    points = np.stack([flat.mean(axis=1), flat.max(axis=1)], axis=1).astype(np.float32)
    sure = (flat.min(axis=1) / 255).astype(np.float32)
    return np.repeat(points[:, None], JOINTS, axis=1), np.repeat(sure[:, None], JOINTS, axis=1)


def _pose(given: Values) -> Values:
    points, sure = expected(given["crops"])
    return {"keypoints": points, "confidence": sure}


def _crops(*counts: int) -> Shapes:
    least, best, most = ((n, 64, 48, 3) for n in counts)
    return least, best, most


POSE = Network(
    inputs={"crops": ("uint8", [_crops(1, 1, 1), _crops(1, 2, 2), _crops(1, 4, 4)])},
    outputs={"keypoints": (-1, JOINTS, 2), "confidence": (-1, JOINTS)},
    answer=_pose,
)


def write_engine(
    path: Path,
    trt: ModuleType,
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
        cuda_major=cuda_major("rtx", "a test"),
        source="default",
        source_sha256="",
        onnx_sha256="",
        engine_sha256=sha256(data),
        engine_bytes=len(data),
        precision="fp32",
        achieved={},
        inputs={name: f"{kind} {rows[-1][2]}" for name, (kind, rows) in network.inputs.items()},
        outputs={name: f"float32 {shape}" for name, shape in network.outputs.items()},
        profiles=tuple(
            {name: ranges[index] for name, (_, ranges) in network.inputs.items()}
            for index in range(network.profiles)
        ),
        flags={},
        metadata=metadata,
        gate={},
        command=("cfpose-export", "engine", "--model", "default"),
        key="",
    )
    passport_path(path).write_text(dataclasses.replace(passport, **changes).to_json())
    return path
