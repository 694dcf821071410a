"""`open_backend`: a model file opened with the runtime that its suffix asks for."""

from __future__ import annotations

import os
from pathlib import Path

from cfpose_sdk.backends.base import Backend, Device, RuntimeOptions
from cfpose_sdk.backends.onnxruntime import OnnxBackend
from cfpose_sdk.backends.openvino import OpenvinoBackend
from cfpose_sdk.backends.plugins import CHECKPOINT, open_plugin, plugin_suffixes
from cfpose_sdk.backends.tensorrt.backend import TensorrtBackend
from cfpose_sdk.errors import ArtifactError, InputError, is_installed
from cfpose_sdk.files import as_path, check_model_file, shown

__all__ = ["Backend", "Device", "RuntimeOptions", "open_backend"]

_ENGINES = (".engine", ".plan")
_SUFFIXES = (".onnx", *_ENGINES, ".xml")


def open_backend(
    path: str | os.PathLike[str],
    *,
    device: Device = "auto",
    threads: int | None = None,
    options: RuntimeOptions | None = None,
    allow_fallback: bool = False,
) -> Backend:
    """Open a model file: .onnx, .engine or .plan with its passport, .xml of OpenVINO, and with the
    extra train a checkpoint (.safetensors), or what another package registered (`plugins`).

    `device` "openvino" runs an .onnx file with OpenVINO as well, "auto" where onnxruntime is not
    installed and OpenVINO is. `threads`: CPU threads of one
    call, of which engines have none; None lets the runtime choose. `allow_fallback`: when
    onnxruntime's CUDA is there but does not load, or OpenVINO's CPU lacks the precision, warn and
    take the CPU in float32, not raise. Raises ArtifactError when the file is missing, corrupt or of
    an unknown kind, BackendError when this machine cannot run it, MissingDependencyError without
    the runtime, InputError for an option that it does not have.
    """
    file, options = as_path(path), RuntimeOptions() if options is None else options
    suffix = _known_suffix(file)
    if threads is not None and threads < 1:
        raise InputError(f"threads must be 1 or more, got {threads}")
    if device == "auto" and not is_installed("onnxruntime") and is_installed("openvino"):
        device = "openvino" if suffix == ".onnx" else device
    if suffix in _ENGINES:
        return TensorrtBackend(file, device=device, options=options)
    if suffix == ".xml" or (suffix == ".onnx" and device == "openvino"):
        return OpenvinoBackend(
            file, device=device, threads=threads, options=options, allow_fallback=allow_fallback
        )
    if suffix not in _SUFFIXES:
        return open_plugin(
            file, device=device, threads=threads, options=options, allow_fallback=allow_fallback
        )
    options.check_unused(("precision", "cuda", "cuda_graph", "workers"), "onnxruntime")
    return OnnxBackend(
        file, device=device, threads=threads, spin=options.spin, allow_fallback=allow_fallback
    )


def _known_suffix(file: Path) -> str:
    """The file's suffix. Raises ArtifactError for one that nothing opens, and for no file."""
    suffix = file.suffix.lower()
    known = dict.fromkeys((*_SUFFIXES, CHECKPOINT, *plugin_suffixes()))
    if suffix not in known:
        raise ArtifactError(
            f"{shown(file)} has suffix {suffix!r}; expected one of {', '.join(known)}"
        )
    check_model_file(file)
    return suffix
