"""ONNX files with onnxruntime, on exactly the provider that was asked for."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends.base import (
    Arrays,
    Backend,
    Device,
    Given,
    HeldImage,
    Place,
    RuntimeOptions,
    place_of,
)
from cfpose_sdk.backends.providers import (
    CPU,
    CUDA,
    TENSORRT,
    Provider,
    gpu_providers,
    missing_provider,
)
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, require
from cfpose_sdk.files import FINDER_KEY

_ERRORS_ONLY = 3  # onnxruntime's severity scale: 2 is warning, 3 error, 4 fatal
_TOLD = 6  # kinds of nodes that are named


class OnnxBackend(Backend):
    """An onnxruntime session. onnxruntime sessions may be run by several threads at once.

    `device` "auto" is CUDA where this onnxruntime has it, else the CPU; "tensorrt" its provider of
    TensorRT or TensorRT-RTX, which builds an engine when it is opened and keeps it beside the file;
    `provider` says which it is, and `fallen` what of the graph runs on the CPU all the same. A
    provider that does not load is an error, or with `allow_fallback` a warning and the CPU. `spin`
    and `tf32` are those of `RuntimeOptions`. Raises as `open_backend`.
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
        place = place_of(device)
        options = RuntimeOptions() if options is None else options
        options.check_unused(("precision", "cuda", "workers"), "onnxruntime")
        if threads is not None and threads < 1:
            raise InputError(f"threads must be 1 or more, got {threads}")
        require("onnxruntime", extra="cpu", why=f"running {path.name}")
        self.path, self._gpu = path, place.gpu
        settings = _session_options(threads, options.spin)
        self._session = _open(path, device, settings, options.tf32, allow_fallback)
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
        if self.device == "cuda":
            self.fallen = _fallen(self._session)
            # a value in one GPU's memory is good for every session there
            self.store = (OnnxBackend, place.gpu)

    def hold(self, image: NDArray[np.uint8]) -> HeldImage | None:
        """The image in the GPU's memory; None on the CPU."""
        if self.device != "cuda" or "frame" not in self.inputs:
            return None
        try:
            value = self._on_device(image)
        except Exception as error:  # onnxruntime's own classes are private and many
            raise BackendError(f"{self.path.name} failed to run: {error}") from error
        return HeldImage(image, self.store, value, _forget)

    def _run(self, feeds: Given) -> Arrays:
        session = self._session
        if session is None:
            raise BackendError(f"{self.path.name} is closed; open it again")
        try:
            if self.device == "cuda" and all(math.prod(v.shape) for v in feeds.values()):
                values = self._run_bound(session, feeds)
            else:
                arrays = {n: v.array if isinstance(v, HeldImage) else v for n, v in feeds.items()}
                values = session.run(list(self.outputs), arrays)
        except Exception as error:  # onnxruntime's own classes are private and many
            raise BackendError(f"{self.path.name} failed to run: {error}") from error
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        self._session = None

    def _run_bound(self, session: Any, feeds: Given) -> list[NDArray[Any]]:
        """Run with inputs in the GPU's memory; what is held there is not copied again."""
        binding = session.io_binding()
        for name, value in feeds.items():
            handle = value.handle if isinstance(value, HeldImage) else self._on_device(value)
            binding.bind_ortvalue_input(name, handle)
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        values: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return values

    def _on_device(self, array: NDArray[Any]) -> Any:
        import onnxruntime

        whole = np.ascontiguousarray(array)
        return onnxruntime.OrtValue.ortvalue_from_numpy(whole, "cuda", self._gpu)


def _forget(value: Any) -> None:
    """The memory goes when nobody refers to the value; its finaliser has just let go of it."""
    del value


def _open(path: Path, device: Device, options: Any, tf32: bool, allow_fallback: bool) -> Any:
    import onnxruntime

    place, available = place_of(device), onnxruntime.get_available_providers()
    if place.kind == "cpu" or (place.kind == "auto" and CUDA not in available):
        return _session(path, [(CPU, {})], options)
    wanted = TENSORRT if place.kind == "tensorrt" else (CUDA,)
    name = next((name for name in wanted if name in available), None)
    if name is not None:
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN in NVIDIA's wheels
        session = _session(path, _providers(path, name, place, available, tf32), options)
        if session.get_providers()[0] == name:
            return session
        problem = (
            f"onnxruntime lists its {name}, but it does not load (driver, CUDA, cuDNN or "
            "TensorRT); see: cfpose doctor"
        )
    else:
        problem = missing_provider(place.kind, available)
    if not allow_fallback:
        raise BackendError(
            f"device {device!r} was asked for, but {problem}. To run on the CPU: device='cpu', or "
            f"allow_fallback=True"
        )
    warnings.warn(f"{problem}; running on the CPU", RuntimeWarning, stacklevel=2)
    return _session(path, [(CPU, {})], options)


def _providers(
    path: Path, name: str, place: Place, available: list[str], tf32: bool
) -> list[Provider]:
    """The provider that was asked for, and behind TensorRT's the one for what it does not take."""
    shapes: dict[str, list[Any]] = {}
    if name in TENSORRT:  # their profiles are given when the session is made, by the inputs' shapes
        plain = _session_options(None, False)
        plain.graph_optimization_level = _no_optimisation()
        session = _session(path, [(CPU, {})], plain)
        shapes = {node.name: list(node.shape) for node in session.get_inputs()}
        if "images" in shapes:  # a finder's, for whole letterboxes
            facts = session.get_modelmeta().custom_metadata_map.get(FINDER_KEY)
            width, height = json.loads(facts)["size_wh"] if facts else shapes["images"][2:0:-1]
            shapes["images"][1:3] = [height, width]
    return gpu_providers(path, name, place.gpu, available, tf32=tf32, shapes=shapes)


def _no_optimisation() -> Any:
    import onnxruntime

    return onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


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


def _session(path: Path, providers: list[Provider], options: Any) -> Any:
    import onnxruntime

    first = providers[0][0]
    if first != CPU:  # what runs where is asked for when it is there
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        # without enable_fallback=0 a provider that fails later is replaced with a mere print
        return onnxruntime.InferenceSession(
            str(path),
            sess_options=options,
            providers=[name for name, _ in providers],
            provider_options=[dict(chosen) for _, chosen in providers],
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime's own classes are private and many
        if first != CPU:
            raise BackendError(f"{path.name} cannot be opened on {first}: {error}") from error
        raise ArtifactError(
            f"{path} is not an ONNX model that onnxruntime can open; export or fetch it again "
            f"({error})"
        ) from error


def _fallen(session: Any) -> str:
    """The nodes that run on the CPU although a GPU was asked for, counted and by kind.

    onnxruntime before 1.24 does not tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ""
    parts = session.get_provider_graph_assignment_info()
    kinds = Counter(n.op_type for part in parts if part.ep_name == CPU for n in part.get_nodes())
    total = sum(len(part.get_nodes()) for part in parts)
    if not kinds:
        return ""
    named = [f"{count} {kind}" for kind, count in kinds.most_common(_TOLD)]
    more = ", …" if len(kinds) > _TOLD else ""
    return f"{sum(kinds.values())} of {total} nodes run on the CPU: {', '.join(named)}{more}"
