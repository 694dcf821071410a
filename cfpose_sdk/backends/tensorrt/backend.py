"""Engines of TensorRT and TensorRT-RTX, opened only when their passport fits this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends.base import Backend, Device, Feeds, RuntimeOptions, onnxruntime_type
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.cuda import DeviceMemory
from cfpose_sdk.backends.tensorrt.execution import Tensor, Worker
from cfpose_sdk.backends.tensorrt.library import EXTRAS, NAMES, open_flavour, open_log
from cfpose_sdk.backends.tensorrt.passport import (
    Machine,
    Passport,
    check_machine,
    check_runtime,
    read_engine,
    rebuild_command,
)
from cfpose_sdk.errors import ArtifactError, BackendError, InputError


class TensorrtBackend(Backend):
    """An engine with up to `options.workers` workers, each with context, stream and buffers.

    An engine holds code: open only files that you trust as you trust a program. Raises
    ArtifactError when engine, passport and ONNX file do not belong together, BackendError when
    the engine was built for something else or the device fails; both name the command that
    builds it again. Not run on hardware yet.
    """

    def __init__(
        self, path: Path, *, device: Device = "auto", options: RuntimeOptions | None = None
    ) -> None:
        options = RuntimeOptions() if options is None else options
        options.check_unused(("precision", "spin"), "TensorRT")
        if device not in ("auto", "cuda"):
            raise BackendError(
                f"device {device!r} was asked for, and {path.name} runs on an NVIDIA GPU only; "
                f"use the .onnx file"
            )
        self.path = path
        data, self.passport = read_engine(path)
        trt, memory = _open_runtime(path, self.passport, options)
        if options.cuda_graph and not memory.can_capture:
            raise InputError("cuda_graph needs cuda='cuda-bindings', got cuda='pycuda'")
        self._memory, self._options = memory, options
        with memory.current():
            self._runtime, self._engine = _deserialise(path, self.passport, trt, data)
        self._tensors = _tensors(trt, self._engine)
        self.inputs = tuple(tensor.name for tensor in self._tensors[0])
        self.outputs = tuple(tensor.name for tensor in self._tensors[1])
        self._check_names()
        self._empty = {  # shapes of the outputs for no people
            name: [max(size, 0) for size in self._engine.get_tensor_shape(name)]
            for name in self.outputs
        }
        self.metadata = dict(self.passport.metadata)
        self.provider = (
            f"{NAMES[self.passport.flavour]} {trt.__version__} {self.passport.precision} "
            f"on {memory.gpu().name}"
        )
        self._set_limits()
        self.input_types = {t.name: onnxruntime_type(t.dtype) for t in self._tensors[0]}
        self._idle: list[Worker] = []
        self._made = self._busy = 0
        self._condition = threading.Condition()

    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        if self._engine is None:
            raise BackendError(f"{self.path.name} is closed; open it again")
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        if self._check(arrays):
            return self._no_people()
        with self._memory.current(), self._borrowed() as worker:
            return worker.run(arrays)

    def close(self) -> None:
        """Free the engine and all its memory. Raises BackendError while a run goes on."""
        with self._condition:
            if self._busy:
                raise BackendError(
                    f"{self.path.name} is running in another thread; close it when that has ended"
                )
            workers, self._idle, self._made = self._idle, [], 0
            engine, self._engine = self._engine, None
            self._condition.notify_all()
        failures = []
        with self._memory.current():
            for worker in workers:
                try:
                    worker.close()
                except BackendError as error:
                    failures.append(error)
            del engine  # after the contexts of its workers, and before its runtime
            self._runtime = None
        if failures:
            raise failures[0]

    def _check_names(self) -> None:
        """Raise ArtifactError unless the engine has the passport's inputs and outputs."""
        passport = self.passport
        if (set(self.inputs), set(self.outputs)) != (set(passport.profile), set(passport.outputs)):
            raise ArtifactError(
                f"{self.path} has {self.inputs} → {self.outputs}, its passport says otherwise; "
                f"run: {rebuild_command(self.path, passport)}"
            )

    def _set_limits(self) -> None:
        """`max_batch` and `input_shapes`, from the passport's profile."""
        profile = self.passport.profile
        self.max_batch = min(
            (profile[name][2][0] for name in self.inputs if name in ("crops", "boxes")),
            default=None,
        )
        self.input_shapes = {
            name: tuple(a if a == c else None for a, _, c in zip(*profile[name], strict=True))
            for name in self.inputs
        }

    def _check(self, arrays: dict[str, NDArray[Any]]) -> bool:
        """Raise BackendError for what the engine does not take; whether there is nothing to run."""
        empty = False
        for tensor in self._tensors[0]:
            array, (least, _, most) = arrays[tensor.name], self.passport.profile[tensor.name]
            if array.dtype != tensor.dtype:
                raise BackendError(
                    f"{self.path.name} failed to run: {tensor.name} must be {tensor.dtype}, "
                    f"got {array.dtype}"
                )
            low = (0, *least[1:]) if array.ndim and array.shape[0] == 0 else least
            inside = array.ndim == len(most) and all(
                small <= size <= large
                for small, size, large in zip(low, array.shape, most, strict=True)
            )
            if not inside:
                raise BackendError(
                    f"{self.path.name} failed to run: {tensor.name} has shape {array.shape}, and "
                    f"the engine's profile goes from {least} to {most}; feed less at once, or "
                    f"build it with another profile: {rebuild_command(self.path, self.passport)}"
                )
            empty = empty or array.size == 0
        return empty

    def _no_people(self) -> dict[str, NDArray[Any]]:
        """The outputs of an empty batch, which engines do not take."""
        return {t.name: np.zeros(self._empty[t.name], t.dtype) for t in self._tensors[1]}

    @contextmanager
    def _borrowed(self) -> Iterator[Worker]:
        """A worker for this thread; one that failed is freed, and the next run makes a new one."""
        worker: Worker | None = None
        with self._condition:
            while not self._idle and self._made >= self._options.workers:
                self._condition.wait()
            if self._engine is None:
                raise BackendError(f"{self.path.name} is closed; open it again")
            if self._idle:
                worker = self._idle.pop()
            else:
                self._made += 1
            self._busy += 1
        good = False
        try:
            if worker is None:
                graphs = self._options.cuda_graph
                worker = Worker(self._engine, self._memory, *self._tensors, graphs=graphs)
            yield worker
            good = True
        except BackendError as error:
            raise BackendError(f"{self.path.name} failed to run: {error}") from error
        finally:
            with self._condition:
                self._busy -= 1
                if good and worker is not None:
                    self._idle.append(worker)
                else:
                    self._made -= 1
                self._condition.notify()
            if not good and worker is not None:
                _discard(worker)


def _discard(worker: Worker) -> None:
    try:
        worker.close()
    except BackendError:
        return  # the error of the run itself is being raised, and says more


def _open_runtime(
    path: Path, passport: Passport, options: RuntimeOptions
) -> tuple[Any, DeviceMemory]:
    """The library and the device, both what the passport asks for."""
    why, extra = f"running {path.name}", EXTRAS[passport.flavour]
    trt = open_flavour(passport.flavour, why)
    check_runtime(path, passport, passport.flavour, trt.__version__)
    try:
        memory = open_memory(options.cuda, extra=extra, why=why)
        gpu = memory.gpu()
    except BackendError as error:
        raise BackendError(f"{path.name} cannot run: {error}; or use the .onnx file") from error
    here = Machine(passport.flavour, trt.__version__, gpu.name, gpu.sm, gpu.cuda_major)
    check_machine(path, passport, here)
    return trt, memory


def _deserialise(path: Path, passport: Passport, trt: Any, data: bytes) -> tuple[Any, Any]:
    log = open_log(trt)
    log.recent.clear()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        reason = "; ".join(log.recent) or "it does not say why"
        raise BackendError(
            f"{NAMES[passport.flavour]} cannot open {path}: {reason}; "
            f"run: {rebuild_command(path, passport)}"
        )
    return runtime, engine


def _tensors(trt: Any, engine: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs, in the engine's order."""
    inputs, outputs = [], []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            limit = tuple(engine.get_tensor_profile_shape(name, 0)[2])
            inputs.append(Tensor(name, dtype, limit))
        else:
            outputs.append(Tensor(name, dtype))
    return inputs, outputs
