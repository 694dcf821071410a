"""Engines of TensorRT and TensorRT-RTX, opened only when their passport fits this machine."""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.backends.base import (
    Arrays,
    Backend,
    Device,
    Given,
    HeldImage,
    RuntimeOptions,
    onnxruntime_type,
    place_of,
)
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.cuda import DeviceMemory
from cfpose_sdk.backends.tensorrt.engine import LoadedEngine, fitting_profile, within
from cfpose_sdk.backends.tensorrt.execution import Workers
from cfpose_sdk.backends.tensorrt.frames import FrameStore
from cfpose_sdk.backends.tensorrt.library import NAMES, cuda_major, open_flavour
from cfpose_sdk.backends.tensorrt.passport import (
    Machine,
    Passport,
    check_machine,
    check_runtime,
    companion_path,
    read_engine,
    rebuild_command,
)
from cfpose_sdk.errors import ArtifactError, BackendError

_FRAME = "frame"  # the input that may lie on the device already


class TensorrtBackend(Backend):
    """An engine with up to `options.workers` workers, each with context, stream and buffers.

    `device` is the GPU, "cuda" or "cuda:N". `beside`: an open engine whose held images this one
    takes, where both are on one GPU. An engine holds code: open only files that you trust as you
    trust a program. Its memory goes back with `close`, or when nobody refers to it any more.

    Raises ArtifactError when engine, passport and ONNX file do not belong together, BackendError
    when the engine was built for something else or the device fails; both name the command that
    builds it again. Not run on hardware yet.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        options: RuntimeOptions | None = None,
        beside: Backend | None = None,
    ) -> None:
        options = RuntimeOptions() if options is None else options
        options.check_unused(("precision", "spin", "tf32"), "TensorRT")
        place = place_of(device)
        if place.kind not in ("auto", "cuda", "tensorrt"):
            raise BackendError(
                f"device {device!r} was asked for, and {path.name} runs on an NVIDIA GPU only; "
                f"use the .onnx file"
            )
        self.path = path
        data, self.passport = read_engine(path)
        self.finder = companion_path(path, self.passport)
        trt, self._memory = _open_runtime(path, self.passport, options, place.gpu)
        with self._memory.current():
            loaded = LoadedEngine(path, self.passport, trt, data)
            self._workers = Workers(loaded, self._memory, options.workers)
            self._inputs, self._outputs = loaded.inputs, loaded.outputs
            self._empty = {  # shapes of the outputs for no people
                tensor.name: [max(side, 0) for side in loaded.engine.get_tensor_shape(tensor.name)]
                for tensor in loaded.outputs
            }
        self.inputs = tuple(tensor.name for tensor in self._inputs)
        self.outputs = tuple(tensor.name for tensor in self._outputs)
        self._frames = self._frame_store(beside)
        self.store = self._frames
        self._dropped = weakref.finalize(self, _drop, self._workers, self._frames)
        try:
            self._check_engine()
        except BaseException:
            self._dropped()
            raise
        self.metadata = dict(self.passport.metadata)
        self.provider = (
            f"{NAMES[self.passport.flavour]} {trt.__version__} {self.passport.precision} "
            f"on {self._memory.gpu().name}"
        )
        self._set_limits()

    def hold(self, image: NDArray[np.uint8]) -> HeldImage | None:
        """The image in the GPU's memory, for this engine and those that share its `store`."""
        self._workers.check_open()
        if self._frames is None or min(image.shape[:2]) < self.least_side:
            return None
        return self._frames.hold(image)

    def adopt(self, image: GpuImage) -> HeldImage | None:
        """The image where it lies on this engine's GPU; None for a smaller one than it takes."""
        self._workers.check_open()
        if self._frames is None or min(image.shape[:2]) < self.least_side:
            return None
        return self._frames.adopt(image)

    def _run(self, feeds: Given) -> Arrays:
        self._workers.check_open()
        values = {n: v if isinstance(v, HeldImage) else np.asarray(v) for n, v in feeds.items()}
        if self._check(values):
            return {t.name: np.zeros(self._empty[t.name], t.dtype) for t in self._outputs}
        with contextlib.ExitStack() as stack:
            frame = values.get(_FRAME)
            if self._frames is not None and not isinstance(frame, HeldImage):
                try:
                    held = self._frames.hold(np.asarray(frame))
                except BackendError as error:
                    raise BackendError(f"{self.path.name} failed to run: {error}") from error
                stack.callback(held.close)
                values[_FRAME] = held
            with self._memory.current(), self._workers.lent() as worker:
                return worker.run(values)

    def close(self) -> None:
        """Free the engine and all its memory. Raises BackendError while a run goes on."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave)  # also when the workers could not free all of theirs
            self._workers.close()

    def _leave(self) -> None:
        if self._workers.closed and self._dropped.detach() is not None and self._frames is not None:
            self._frames.leave()

    def _frame_store(self, beside: Backend | None) -> FrameStore | None:
        """Where frames are held: the neighbour's, or one of its own; None for crops."""
        if _FRAME not in self.inputs:
            return None
        shared = getattr(beside, "store", None)
        if isinstance(shared, FrameStore) and shared.memory.index == self._memory.index:
            return shared.join()
        return FrameStore(self._memory).join()

    def _check_engine(self) -> None:
        """Raise ArtifactError unless the engine has the passport's inputs, outputs and profiles."""
        passport = self.passport
        profiles = [
            {tensor.name: tensor.ranges[index] for tensor in self._inputs}
            for index in range(len(self._inputs[0].ranges))
        ]
        if set(self.outputs) != set(passport.outputs) or profiles != list(passport.profiles):
            raise ArtifactError(
                f"{self.path} has {self.inputs} → {self.outputs} and profiles {profiles}, its "
                f"passport says otherwise; run: {rebuild_command(self.path, passport)}"
            )

    def _set_limits(self) -> None:
        """`max_batch`, `input_shapes` and `input_types`, from all profiles together."""
        self.input_types = {t.name: onnxruntime_type(t.dtype) for t in self._inputs}
        self.max_batch = max(
            (
                most[0]
                for tensor in self._inputs
                if tensor.name in ("crops", "boxes")
                for _, _, most in tensor.ranges
            ),
            default=None,
        )
        self.least_side = min(
            (min(tensor.ranges[0][0][:2]) for tensor in self._inputs if tensor.name == _FRAME),
            default=self.least_side,
        )
        self.input_shapes = {
            tensor.name: tuple(
                sides.pop() if len(sides) == 1 else None
                for sides in (
                    {shape[axis] for range_ in tensor.ranges for shape in range_}
                    for axis in range(len(tensor.ranges[0][0]))
                )
            )
            for tensor in self._inputs
        }

    def _check(self, values: dict[str, NDArray[Any] | HeldImage]) -> bool:
        """Raise BackendError for what the engine does not take; whether there is nothing to run."""
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        empty = False
        for tensor in self._inputs:
            value, shape = values[tensor.name], shapes[tensor.name]
            kind = np.dtype(np.uint8) if isinstance(value, HeldImage) else value.dtype
            if kind != tensor.dtype:
                raise BackendError(
                    f"{self.path.name} failed to run: {tensor.name} must be {tensor.dtype}, "
                    f"got {kind}"
                )
            if shape and shape[0] == 0:
                shapes[tensor.name] = (tensor.ranges[0][0][0], *shape[1:])
                empty = True
            if not any(within(shapes[tensor.name], range_) for range_ in tensor.ranges):
                least, _, most = tensor.ranges[-1]
                raise BackendError(
                    f"{self.path.name} failed to run: {tensor.name} has shape {shape}, and "
                    f"the engine's profiles go from {least} to {most}; feed less at once, or "
                    f"build it with others: {rebuild_command(self.path, self.passport)}"
                )
        if fitting_profile(self._inputs, shapes) is None:
            raise BackendError(
                f"{self.path.name} failed to run: no profile takes {shapes} together, though each "
                f"alone; feed less at once"
            )
        return empty


def _drop(workers: Workers, frames: FrameStore | None) -> None:
    """Free what nobody closed. Nobody is there to hear of a failure either."""
    with contextlib.suppress(BackendError):
        workers.close()
    if frames is not None:
        with contextlib.suppress(BackendError):
            frames.leave()


def _open_runtime(
    path: Path, passport: Passport, options: RuntimeOptions, index: int
) -> tuple[Any, DeviceMemory]:
    """The library and the device, both what the passport asks for."""
    flavour, why = passport.flavour, f"running {path.name}"
    trt = open_flavour(flavour, why)
    check_runtime(path, passport, flavour, trt.__version__)
    try:
        memory = open_memory(options.cuda, flavour=flavour, why=why, index=index)
        gpu = memory.gpu()
    except BackendError as error:
        raise BackendError(f"{path.name} cannot run: {error}; or use the .onnx file") from error
    here = Machine(flavour, trt.__version__, gpu.name, gpu.sm, cuda_major(flavour, why))
    check_machine(path, passport, here)
    return trt, memory
