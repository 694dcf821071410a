"""The workers of an engine: each an execution context, a stream, and buffers that grow."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends.base import HeldImage
from cfpose_sdk.backends.tensorrt.cuda import Bytes, DeviceMemory
from cfpose_sdk.backends.tensorrt.engine import LoadedEngine, Tensor, fitting_profile
from cfpose_sdk.backends.tensorrt.passport import Shape
from cfpose_sdk.errors import BackendError


class Worker:
    """Runs an engine for one thread at a time, on the thread's device; `close` gives all back.

    Buffers are as large as the profile that is in use can need; a larger one grows them. Raises
    BackendError when the device has not enough memory.
    """

    def __init__(self, loaded: LoadedEngine, memory: DeviceMemory) -> None:
        self._memory, self._inputs, self._outputs = memory, loaded.inputs, loaded.outputs
        self._profile = 0  # the one that a new context has
        self._device: dict[str, tuple[int, int]] = {}  # tensor → address, size
        self._host: dict[str, Bytes] = {}
        self._context: Any = None
        self._stream = memory.open_stream()
        try:
            self._context = loaded.create_context()
        except BaseException:
            with contextlib.suppress(BackendError):
                self.close()
            raise

    def run(self, feeds: Mapping[str, NDArray[Any] | HeldImage]) -> dict[str, NDArray[Any]]:
        """Copy in, run, copy out. `feeds`: of the right types, in a profile; held images stay."""
        # no local name for the context: an error's traceback would keep it past its engine
        stream = self._stream
        shapes = {tensor.name: feeds[tensor.name].shape for tensor in self._inputs}
        self._choose_profile(shapes)
        for name, shape in shapes.items():
            self._accept(name, self._context.set_input_shape(name, shape))
        results = self._result_shapes()
        copies: list[tuple[int, Bytes]] = []
        for tensor in self._inputs:
            value = feeds[tensor.name]
            if isinstance(value, HeldImage):
                address = value.handle.address
            else:
                address, pinned = self._room(tensor, value.nbytes, self._most(tensor))
                staged = pinned[: value.nbytes]
                staged.view(tensor.dtype).reshape(value.shape)[...] = value
                copies.append((address, staged))
            self._accept(tensor.name, self._context.set_tensor_address(tensor.name, address))
        found: dict[str, tuple[int, Bytes]] = {}
        for tensor in self._outputs:
            size = int(np.prod(results[tensor.name])) * tensor.dtype.itemsize
            most = int(self._context.get_max_output_size(tensor.name))
            address, pinned = self._room(tensor, size, most)
            self._accept(tensor.name, self._context.set_tensor_address(tensor.name, address))
            found[tensor.name] = (address, pinned[:size])
        for address, staged in copies:
            self._memory.upload(address, staged, stream)
        if not self._context.execute_async_v3(stream):
            raise BackendError("TensorRT failed to enqueue the engine")
        for address, wanted in found.values():
            self._memory.download(wanted, address, stream)
        self._memory.wait(stream)
        return {
            t.name: found[t.name][1].view(t.dtype).reshape(results[t.name]).copy()
            for t in self._outputs
        }

    def close(self) -> None:
        """Give everything back, also when some of it fails; then raise the last failure."""
        with ExitStack() as stack:
            stack.callback(self._memory.close_stream, self._stream)
            for address, _ in self._device.values():
                stack.callback(self._memory.free, address)
            for array in self._host.values():
                stack.callback(self._memory.unpin, array)
            with contextlib.suppress(BackendError):  # a lost device cannot be waited for
                self._memory.wait(self._stream)
            self._context = None

    def _choose_profile(self, shapes: Mapping[str, Shape]) -> None:
        """Change to the first profile that takes the shapes; all must be set again after that."""
        index = fitting_profile(self._inputs, shapes)
        if index is None:
            raise BackendError(f"no profile of the engine takes {dict(shapes)}")
        if index == self._profile:
            return
        if not self._context.set_optimization_profile_async(index, self._stream):
            raise BackendError(f"TensorRT does not change to profile {index}")
        self._profile = index

    def _result_shapes(self) -> dict[str, Shape]:
        """Shapes of the outputs for the inputs that were set."""
        if lacking := list(self._context.infer_shapes()):
            raise BackendError(f"TensorRT still asks for the shapes of {lacking}")
        shapes = {t.name: tuple(self._context.get_tensor_shape(t.name)) for t in self._outputs}
        for name, shape in shapes.items():
            if min(shape, default=0) < 0:
                raise BackendError(f"TensorRT gives {name} as {shape}")
        return shapes

    def _most(self, tensor: Tensor) -> int:
        """Bytes of an input's largest shape in the profile that is in use."""
        return int(np.prod(tensor.ranges[self._profile][2])) * tensor.dtype.itemsize

    def _room(self, tensor: Tensor, size: int, most: int) -> tuple[int, Bytes]:
        """Device memory and pinned memory for `size` bytes; new, they have room for `most`."""
        name, whole = tensor.name, max(size, most, 1)
        if name not in self._host or len(self._host[name]) < size:
            if name in self._host:
                self._memory.unpin(self._host.pop(name))
            self._host[name] = self._memory.pin(whole)
        if name not in self._device or self._device[name][1] < size:
            if name in self._device:
                self._memory.free(self._device.pop(name)[0])
            self._device[name] = (self._memory.allocate(whole), whole)
        return self._device[name][0], self._host[name]

    def _accept(self, name: str, accepted: bool) -> None:
        if not accepted:
            raise BackendError(f"TensorRT does not take the shape or the address of {name}")


class Workers:
    """At most `limit` workers of an engine, made when they are needed and lent to threads.

    Raises BackendError for what is done after `close`.
    """

    def __init__(self, loaded: LoadedEngine, memory: DeviceMemory, limit: int) -> None:
        self._loaded, self._memory, self._limit = loaded, memory, limit
        self._name = loaded.path.name
        self._idle: list[Worker] = []
        self._made = self._busy = 0
        self.closed = False
        self._condition = threading.Condition()

    @contextmanager
    def lent(self) -> Iterator[Worker]:
        """A worker for this thread; one that failed is freed, and the next run makes a new one."""
        worker: Worker | None = None
        mark = self._loaded.log.mark()
        with self._condition:
            while not (self.closed or self._idle) and self._made >= self._limit:
                self._condition.wait()
            self.check_open()
            if self._idle:
                worker = self._idle.pop()
            else:
                self._made += 1
            self._busy += 1
        good = False
        try:
            if worker is None:
                worker = Worker(self._loaded, self._memory)
                with self._condition:
                    self._loaded.save_kernels()  # a context compiles those it needs
            yield worker
            good = True
        except BackendError as error:
            said = self._loaded.log.since(mark)
            raise BackendError(f"{self._name} failed to run: {error}{said}") from error
        finally:
            with self._condition:
                self._busy -= 1
                if good and worker is not None:
                    self._idle.append(worker)
                else:
                    self._made -= 1
                self._condition.notify()
            if not good and worker is not None:
                with contextlib.suppress(BackendError):  # the error of the run says more
                    worker.close()

    def check_open(self) -> None:
        """Raise BackendError after `close`."""
        if self.closed:
            raise BackendError(f"{self._name} is closed; open it again")

    def close(self) -> None:
        """Free all of them and the engine, in this order. Raises BackendError while one runs."""
        with self._condition:
            if self._busy:
                raise BackendError(
                    f"{self._name} is running in another thread; close it when that has ended"
                )
            if self.closed:
                return
            self.closed = True
            workers, self._idle = self._idle, []
            self._condition.notify_all()
        with self._memory.current(), ExitStack() as stack:
            stack.callback(self._loaded.close)
            stack.callback(self._loaded.save_kernels)
            for worker in workers:
                stack.callback(worker.close)
            del workers
