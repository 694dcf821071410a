"""An engine in a GPU's memory: deserialised, its tensors and profiles, its contexts and kernels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk.backends.tensorrt.library import NAMES, open_log
from cfpose_sdk.backends.tensorrt.passport import Passport, Shape, Shapes, rebuild_command
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.files import write_file

_LOG = logging.getLogger("cfpose.tensorrt")


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine. `ranges`: an input's shapes in each profile."""

    name: str
    dtype: np.dtype[Any]
    ranges: tuple[Shapes, ...] = ()


def kernels_path(engine: Path) -> Path:
    """Where TensorRT-RTX's compiled kernels of an engine are kept between processes."""
    return engine.with_name(f"{engine.name}.kernels")


class LoadedEngine:
    """A deserialised engine. Give it up with `close` after its workers, on the thread's device.

    Raises BackendError, with TensorRT's own words, when it is not for this machine or damaged.
    """

    def __init__(self, path: Path, passport: Passport, trt: Any, data: bytes) -> None:
        self.path, self.passport, self._trt = path, passport, trt
        self.log = open_log(trt)
        mark = self.log.mark()
        self._runtime = trt.Runtime(self.log)
        self._check_validity(data, mark)
        self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise BackendError(
                f"{NAMES[passport.flavour]} cannot open {path}{self.log.since(mark)}; "
                f"run: {rebuild_command(path, passport)}"
            )
        self.inputs, self.outputs = self._tensors()
        self._config: Any = None
        self._kernels: Any = None
        self._kernels_size = 0
        if passport.flavour == "rtx":
            self._open_kernels()

    def create_context(self) -> Any:
        """A new execution context. Raises BackendError, as where memory is short."""
        if self._config is not None:
            context = self.engine.create_execution_context(self._config)
        else:
            context = self.engine.create_execution_context(self._strategy())
        if context is None:
            raise BackendError(
                "TensorRT could not make an execution context; the GPU may lack free memory, "
                "see: nvidia-smi"
            )
        return context

    def save_kernels(self) -> None:
        """Write the kernels that TensorRT-RTX compiled, where there are new ones."""
        if self._kernels is None:
            return
        made = self._kernels.serialize()
        data = b"" if made is None else bytes(made)
        if len(data) in (0, self._kernels_size):
            return
        self._kernels_size = len(data)
        path = kernels_path(self.path)
        try:
            write_file(path, data)
        except (InputError, OSError) as error:
            _LOG.warning("%s cannot be kept, so each process compiles anew: %s", path, error)

    def close(self) -> None:
        """Let go of the engine, and then of its runtime."""
        self._config = self._kernels = None
        self.engine = None
        self._runtime = None

    def _strategy(self) -> Any:
        """Memory for the profile that is in use, rather than for the largest of all."""
        strategies = self._trt.ExecutionContextAllocationStrategy
        several = self.engine.num_optimization_profiles > 1
        return strategies.ON_PROFILE_CHANGE if several else strategies.STATIC

    def _open_kernels(self) -> None:
        self._config = self.engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(self._strategy())
        self._kernels = self._config.create_runtime_cache()
        path = kernels_path(self.path)
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        if data and not self._kernels.deserialize(data):
            _LOG.warning("%s is of another machine or damaged; its kernels are compiled anew", path)
            data = b""
        self._kernels_size = len(data)
        self._config.set_runtime_cache(self._kernels)

    def _check_validity(self, data: bytes, mark: int) -> None:
        """Raise BackendError where the runtime says that it cannot run this engine here."""
        if not hasattr(self._runtime, "get_engine_validity"):  # TensorRT has none, RTX does
            return
        validity, diagnostics = self._runtime.get_engine_validity(data)
        kinds = self._trt.EngineValidity
        if validity == kinds.VALID:
            return
        reasons = _reasons(self._trt.EngineInvalidityDiagnostics, int(diagnostics))
        what = f"{self.path}: {NAMES[self.passport.flavour]} calls it {validity.name}{reasons}"
        again = f"run: {rebuild_command(self.path, self.passport)}"
        if validity == kinds.INVALID:
            raise BackendError(f"{what}{self.log.since(mark)}; {again}")
        warnings.warn(f"{what}; {again}", RuntimeWarning, stacklevel=2)

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs, in the engine's order."""
        trt, engine = self._trt, self.engine
        inputs, outputs = [], []
        profiles = range(engine.num_optimization_profiles)
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                shapes = [engine.get_tensor_profile_shape(name, index) for index in profiles]
                inputs.append(Tensor(name, dtype, tuple(_shapes(rows) for rows in shapes)))
            else:
                outputs.append(Tensor(name, dtype))
        return inputs, outputs


def fitting_profile(inputs: list[Tensor], shapes: Mapping[str, Shape]) -> int | None:
    """The first profile that takes arrays of these shapes; None: none does."""
    for index in range(len(inputs[0].ranges)):
        if all(within(shapes[tensor.name], tensor.ranges[index]) for tensor in inputs):
            return index
    return None


def within(shape: Shape, range_: Shapes) -> bool:
    """Whether a shape lies in a profile's range."""
    least, _, most = range_
    return len(shape) == len(most) and all(
        small <= size <= large for small, size, large in zip(least, shape, most, strict=True)
    )


def _shapes(rows: Any) -> Shapes:
    least, best, most = (tuple(int(size) for size in row) for row in rows)
    return least, best, most


def _reasons(diagnostics: Any, bits: int) -> str:
    """The diagnostics by name; the values are a bit each."""
    names = [name for name, kind in diagnostics.__members__.items() if bits & int(kind)]
    return f" ({', '.join(names)})" if names else ""
