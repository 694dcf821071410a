"""OpenVINO on the CPU: its own .xml files, and ONNX files when it is asked for."""

from __future__ import annotations

import functools
import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends.base import (
    ArithmeticPrecision,
    Backend,
    Device,
    Feeds,
    RuntimeOptions,
    onnxruntime_type,
)
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, require
from cfpose_sdk.files import digest

_CPU_INFO = Path("/proc/cpuinfo")
_NAMES = ("flags", "features")  # on x86, on ARM


def processor_flags(path: Path = _CPU_INFO) -> frozenset[str] | None:
    """The CPU's instruction sets by Linux' names, as "avx512_bf16"; None where they are unknown."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip().lower() in _NAMES:
            return frozenset(values.split())
    return None


_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
_HEAVY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")  # layers of OpenVINO
METADATA = "framework"  # where OpenVINO keeps the metadata of an ONNX file, also in its own files


class OpenvinoBackend(Backend):
    """A compiled model with as many requests as threads run it at once.

    The arithmetic is the graph's own, float32 but for typed and quantised layers, unless
    `options.precision` asks for bf16: OpenVINO itself would choose bf16 in silence where the CPU
    has it. `provider` names the types that the compiled model's convolutions and products have.
    A precision that this CPU lacks is an error, or with `allow_fallback` a warning and f32. Raises
    as `open_backend`.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        options: RuntimeOptions | None = None,
        allow_fallback: bool = False,
    ) -> None:
        options = RuntimeOptions() if options is None else options
        options.check_unused(("spin", "tf32", "cuda", "workers"), "OpenVINO")
        if device in ("cuda", "tensorrt"):
            raise BackendError(
                f"device {device!r} was asked for, and OpenVINO runs {path.name} on the CPU; "
                f"use an .onnx file or an engine"
            )
        if device not in ("auto", "cpu", "openvino"):
            raise InputError(f"device must be auto, cpu or openvino, got {device!r}")
        require("openvino", extra="openvino", why=f"running {path.name} with OpenVINO")
        self.path = path
        self._lock, self._idle = threading.Lock(), list[Any]()
        precision = _available(path, options.precision, allow_fallback)
        model, self._compiled = _compile(path, threads, precision)
        types = _arithmetic(self._compiled)
        _check_arithmetic(path, precision, types)
        self.metadata = _metadata(model)
        self._dtypes = {i.get_any_name(): np.dtype(i.element_type.to_dtype()) for i in model.inputs}
        self.inputs = tuple(self._dtypes)
        self.input_shapes = {
            i.get_any_name(): tuple(
                None if side.is_dynamic else side.get_length() for side in i.partial_shape
            )
            for i in model.inputs
        }
        self.input_types = {name: onnxruntime_type(kind) for name, kind in self._dtypes.items()}
        self.outputs = tuple(output.get_any_name() for output in model.outputs)
        self.provider = f"OpenVINO CPU {'+'.join(types) or precision}"

    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            self._check_feed(name, array, self._dtypes[name])  # it would convert, or misread
        request = self._take()
        try:
            values = request.infer(arrays)
            return {name: np.array(values[name]) for name in self.outputs}
        except Exception as error:  # OpenVINO raises plain RuntimeError, TypeError and more
            raise BackendError(f"{self.path.name} failed to run: {error}") from error
        finally:
            with self._lock:
                self._idle.append(request)

    def _take(self) -> Any:
        with self._lock:
            if self._compiled is None:
                raise BackendError(f"{self.path.name} is closed; open it again")
            return self._idle.pop() if self._idle else self._compiled.create_infer_request()

    def close(self) -> None:
        with self._lock:
            self._compiled = None
            self._idle.clear()


def shared_core() -> Any:
    """This process's one `openvino.Core`, which stays; OpenVINO must be installed.

    OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack, and puts the one
    before it back when it goes. Two plugins that do not go last in, first out leave a stack that
    is no longer there, and the next signal ends the process: SIGINT, or the end of a child.
    """
    return _core(os.getpid())


@functools.cache
def _core(process: int) -> Any:
    """By process: a fork has none of its parent's threads."""
    import openvino

    return openvino.Core()


def ir_weights(path: Path) -> Path:
    """The file with the weights of an .xml file."""
    return path.with_suffix(".bin")


def ir_record(path: Path) -> Path:
    """The JSON file beside an .xml file: where it comes from, and the hashes of both its parts."""
    return path.with_name(f"{path.name}.json")


def lacking(precision: ArithmeticPrecision) -> str:
    """Why OpenVINO cannot compute in this precision on this CPU; "" when it can.

    OpenVINO must be installed.
    """
    able = shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in able:
        return f"this CPU has only {sorted(able)}, no AVX512_BF16 and no AMX"
    flags = processor_flags()
    if precision == "int8" and flags is not None and not flags.intersection(_INT8_FLAGS):
        return "this CPU has no int8 products (AVX512_VNNI, AVX_VNNI, AMX_INT8)"
    return ""


def _available(
    path: Path, precision: ArithmeticPrecision, allow_fallback: bool
) -> ArithmeticPrecision:
    """The asked-for precision where the CPU has it, else f32 if that fallback is allowed."""
    problem = "" if precision == "f32" else lacking(precision)
    if not problem:
        return precision
    if not allow_fallback:
        raise BackendError(
            f"precision {precision!r} was asked for, but {problem}. To run {path.name} in float32: "
            f"precision='f32', or allow_fallback=True"
        )
    warnings.warn(f"{problem}; running {path.name} in float32", RuntimeWarning, stacklevel=2)
    return "f32"


def _compile(path: Path, threads: int | None, precision: ArithmeticPrecision) -> tuple[Any, Any]:
    core = shared_core()
    # int8 is no hint: quantised layers run so by themselves, and the rest stays float32
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    if path.suffix.lower() == ".xml":
        _check_parts(path)
    try:
        model = core.read_model(str(path))
        return model, core.compile_model(model, "CPU", settings)
    except Exception as error:  # OpenVINO raises plain RuntimeError with its source lines
        raise ArtifactError(
            f"{path} is not a model that OpenVINO can open; export it again ({_last(error)})"
        ) from error


def _metadata(model: Any) -> dict[str, str]:
    if not model.has_rt_info([METADATA]):
        return {}
    record = model.get_rt_info([METADATA]).value
    return {name: str(model.get_rt_info([METADATA, name]).value) for name in record}


def _arithmetic(compiled: Any) -> list[str]:
    """The types that the compiled model's convolutions and products really have."""
    kinds = set()
    for layer in compiled.get_runtime_model().get_ordered_ops():
        facts = layer.get_rt_info()
        if facts["layerType"].astype(str) in _HEAVY:
            kinds.add(facts["runtimePrecision"].astype(str))
    return sorted({"int8" if kind in ("u8", "i8") else str(kind) for kind in kinds})


def _check_arithmetic(path: Path, precision: ArithmeticPrecision, types: list[str]) -> None:
    if precision == "f32" or precision in types or (precision == "bf16" and not types):
        return
    if precision == "int8":
        raise ArtifactError(
            f"precision 'int8' was asked for, but {path.name} holds no quantised layer that "
            f"OpenVINO runs so, only {types}; run: cfpose-export lower MODEL.onnx --precision int8 "
            f"-o {path.stem}-int8.onnx"
        )
    raise BackendError(
        f"precision {precision!r} was asked for, but OpenVINO compiled {path.name} to {types}; "
        f"use precision='f32'"
    )


def _check_parts(path: Path) -> None:
    """Raise ArtifactError unless the .xml file, its weights and its record are of one export."""
    weights, record = ir_weights(path), ir_record(path)
    again = f"run: cfpose-export openvino MODEL.onnx -o {path}"
    data = path.read_bytes()
    if not data.lstrip().startswith(b"<?xml") or b"<net" not in data:
        raise ArtifactError(f"{path} is not an OpenVINO model; {again}")
    if not weights.is_file():
        raise ArtifactError(f"{path} has no weights {weights.name} beside it; {again}")
    if not record.is_file():
        return  # of another exporter; its metadata tells whether it is a cfpose artifact
    try:
        expected = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        wrong = [p.name for p in (path, weights) if digest(p) != expected[p.suffix.lower()[1:]]]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{record} cannot be read ({error}); {again}") from error
    if wrong:
        raise ArtifactError(f"{wrong} changed since {record.name} was written; {again}")


def _last(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
