"""Runtimes behind one door: `open_backend` chooses by the file's suffix."""

from __future__ import annotations

import os
from pathlib import Path

from cfpose_sdk.backends.base import Backend, Device
from cfpose_sdk.backends.onnx import OnnxBackend
from cfpose_sdk.errors import ArtifactError, BackendError

__all__ = ["Backend", "Device", "open_backend"]

_NOT_YET = {".engine": "TensorRT", ".plan": "TensorRT", ".xml": "OpenVINO"}


def open_backend(
    path: str | os.PathLike[str],
    *,
    device: Device = "auto",
    threads: int | None = None,
    allow_fallback: bool = False,
) -> Backend:
    """Open a model file. `threads`: CPU threads of one call; None lets the runtime choose.

    `allow_fallback`: when CUDA is there but does not load, warn and take the CPU, not raise.

    Raises ArtifactError when the file is missing, corrupt or of an unknown kind, BackendError when
    this version or this machine cannot run it, MissingDependencyError without the runtime.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix in _NOT_YET:
        raise BackendError(
            f"{file.name}: {_NOT_YET[suffix]} ({suffix}) is not supported by this version; "
            f"use the .onnx file"
        )
    if suffix != ".onnx":
        raise ArtifactError(f"{file} has suffix {suffix!r}; expected a model file .onnx")
    if not file.is_file():
        raise ArtifactError(f"{file} does not exist; expected a model file")
    return OnnxBackend(file, device=device, threads=threads, allow_fallback=allow_fallback)
