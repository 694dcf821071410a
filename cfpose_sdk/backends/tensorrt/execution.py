"""One worker of an engine: an execution context, a stream, and buffers for the largest shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends.tensorrt.cuda import Bytes, DeviceMemory
from cfpose_sdk.errors import BackendError

MAX_GRAPHS = 8  # CUDA graphs that a worker keeps, one for each combination of input shapes
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine. `limit` is an input's largest shape."""

    name: str
    dtype: np.dtype[Any]
    limit: Shape = ()


class Worker:
    """Runs an engine for one thread at a time. All memory is taken here and given back by `close`.

    Raises BackendError when the device has not enough memory.
    """

    def __init__(
        self,
        engine: Any,
        memory: DeviceMemory,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        graphs: bool,
    ) -> None:
        self._memory, self._inputs, self._outputs = memory, inputs, outputs
        self._with_graphs = graphs
        self._graphs: dict[tuple[Shape, ...], int] = {}
        self._seen: set[tuple[Shape, ...]] = set()
        self._host: dict[str, Bytes] = {}
        self._device: dict[str, int] = {}
        with ExitStack() as stack:  # gives back what was taken when a step fails
            self._stream = memory.open_stream()
            stack.callback(memory.close_stream, self._stream)
            self._context = engine.create_execution_context()
            stack.callback(self._drop_context)
            if self._context is None:
                raise BackendError(
                    "TensorRT could not make an execution context; the GPU may lack free memory, "
                    "see: nvidia-smi"
                )
            for tensor in inputs:
                self._accept(tensor.name, self._context.set_input_shape(tensor.name, tensor.limit))
                self._take(stack, tensor, int(np.prod(tensor.limit)) * tensor.dtype.itemsize)
            for tensor in outputs:
                self._take(stack, tensor, int(self._context.get_max_output_size(tensor.name)))
            stack.callback(self._free_graphs)
            self._stack = stack.pop_all()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Copy in, run, copy out. `feeds`: arrays of the right types, within the limits."""
        key = tuple(feeds[tensor.name].shape for tensor in self._inputs)
        sizes: dict[str, int] = {}
        for tensor, shape in zip(self._inputs, key, strict=True):
            array = feeds[tensor.name]
            sizes[tensor.name] = array.nbytes
            self._host[tensor.name][: array.nbytes].view(tensor.dtype).reshape(shape)[...] = array
            self._accept(tensor.name, self._context.set_input_shape(tensor.name, shape))
        shapes = {t.name: tuple(self._context.get_tensor_shape(t.name)) for t in self._outputs}
        for tensor in self._outputs:
            sizes[tensor.name] = int(np.prod(shapes[tensor.name])) * tensor.dtype.itemsize
            if min(shapes[tensor.name]) < 0 or sizes[tensor.name] > len(self._host[tensor.name]):
                raise BackendError(f"TensorRT gives {tensor.name} as {shapes[tensor.name]}")
        self._begin(key, sizes)
        self._memory.wait(self._stream)
        return {
            t.name: self._host[t.name][: sizes[t.name]].view(t.dtype).reshape(shapes[t.name]).copy()
            for t in self._outputs
        }

    def close(self) -> None:
        """Give everything back, also when some of it fails; then raise the first failure."""
        with contextlib.suppress(BackendError):  # a lost device cannot be waited for
            self._memory.wait(self._stream)
        self._stack.close()

    def _begin(self, key: tuple[Shape, ...], sizes: Mapping[str, int]) -> None:
        """Begin a run; from the second of the same shapes on, by a CUDA graph if asked for."""
        if key in self._graphs:
            self._memory.launch(self._graphs[key], self._stream)
            return
        # the first run of new shapes may allocate, which cannot be recorded
        if not self._with_graphs or key not in self._seen or len(self._graphs) >= MAX_GRAPHS:
            if len(self._seen) < 10 * MAX_GRAPHS:
                self._seen.add(key)
            self._enqueue(sizes)
            return
        self._memory.begin_capture(self._stream)
        try:
            self._enqueue(sizes)
        finally:
            graph = self._memory.end_capture(self._stream)
            self._graphs[key] = graph
        self._memory.launch(graph, self._stream)

    def _enqueue(self, sizes: Mapping[str, int]) -> None:
        for name in (tensor.name for tensor in self._inputs):
            self._memory.upload(self._device[name], self._host[name][: sizes[name]], self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise BackendError("TensorRT failed to enqueue the engine")
        for name in (tensor.name for tensor in self._outputs):
            self._memory.download(self._host[name][: sizes[name]], self._device[name], self._stream)

    def _take(self, stack: ExitStack, tensor: Tensor, size: int) -> None:
        if size <= 0:
            raise BackendError(f"TensorRT does not tell how large {tensor.name} can become")
        self._device[tensor.name] = address = self._memory.allocate(size)
        stack.callback(self._memory.free, address)
        self._host[tensor.name] = pinned = self._memory.pin(size)
        stack.callback(self._memory.unpin, pinned)
        self._accept(tensor.name, self._context.set_tensor_address(tensor.name, address))

    def _accept(self, name: str, accepted: bool) -> None:
        if not accepted:
            raise BackendError(f"TensorRT does not take the shape or the address of {name}")

    def _free_graphs(self) -> None:
        while self._graphs:
            self._memory.free_graph(self._graphs.popitem()[1])

    def _drop_context(self) -> None:
        self._context = None
