"""ONNX files with onnxruntime, on exactly the provider that was asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cfpose_sdk.backends.base import Backend, Device, Feeds, place_of
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, require

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3  # onnxruntime's severity scale: 2 is warning, 3 error, 4 fatal


class OnnxBackend(Backend):
    """An onnxruntime session. onnxruntime sessions may be run by several threads at once.

    `device` "auto" is CUDA where this onnxruntime has it, else the CPU; `provider` says which. A
    CUDA provider that does not load is an error, or with `allow_fallback` a warning and the CPU.
    `spin` is that of `RuntimeOptions`. Raises as `open_backend`.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        spin: bool = False,
        allow_fallback: bool = False,
    ) -> None:
        place_of(device)
        if threads is not None and threads < 1:
            raise InputError(f"threads must be 1 or more, got {threads}")
        require("onnxruntime", extra="cpu", why=f"running {path.name}")
        self.path = path
        self._session = _open(path, device, _session_options(threads, spin), allow_fallback)
        self.provider = str(self._session.get_providers()[0])
        nodes = self._session.get_inputs()
        self.inputs = tuple(node.name for node in nodes)
        self.input_shapes = {
            node.name: tuple(side if isinstance(side, int) else None for side in node.shape)
            for node in nodes
        }
        self.output_shapes = {
            node.name: tuple(side if isinstance(side, int) else None for side in node.shape or ())
            for node in self._session.get_outputs()
        }
        self.input_types = {node.name: str(node.type) for node in nodes}
        self.outputs = tuple(node.name for node in self._session.get_outputs())
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)

    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        session = self._session
        if session is None:
            raise BackendError(f"{self.path.name} is closed; open it again")
        try:
            values = session.run(list(self.outputs), dict(feeds))
        except Exception as error:  # onnxruntime's own classes are private and many
            raise BackendError(f"{self.path.name} failed to run: {error}") from error
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


def _open(path: Path, device: Device, options: Any, allow_fallback: bool) -> Any:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and _CUDA not in available):
        return _session(path, _CPU, options)
    if _CUDA in available:
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN in NVIDIA's wheels
        session = _session(path, _CUDA, options)
        if session.get_providers()[0] == _CUDA:
            return session
        problem = (
            "onnxruntime lists its CUDA provider, but it does not load (driver, CUDA or cuDNN); "
            "see: cfpose doctor"
        )
    else:
        problem = (
            f"this onnxruntime has only {available}; run: pip uninstall onnxruntime; "
            f"pip install 'cfpose-sdk[gpu]'"
        )
    if not allow_fallback:
        raise BackendError(
            f"device {device!r} was asked for, but {problem}. To run on the CPU: device='cpu', or "
            f"allow_fallback=True"
        )
    warnings.warn(f"{problem}; running on the CPU", RuntimeWarning, stacklevel=2)
    return _session(path, _CPU, options)


def _session_options(threads: int | None, spin: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    # waiting threads sleep: spinning, those of the finder and of the pose model take the cores from
    # each other, and from every other program
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")  # as a call ends
    return options


def _session(path: Path, provider: str, options: Any) -> Any:
    import onnxruntime

    try:
        # without enable_fallback=0 a provider that fails later is replaced with a mere print
        return onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=[provider], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own classes are private and many
        if provider == _CUDA:
            raise BackendError(f"{path.name} cannot be opened on CUDA: {error}") from error
        raise ArtifactError(
            f"{path} is not an ONNX model that onnxruntime can open; export or fetch it again "
            f"({error})"
        ) from error
