"""A backend of the SDK that runs training checkpoints: `PoseEstimator("refined.safetensors")`.

For development. The graph that `cfpose-export onnx` writes gives the same results without PyTorch.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from cfpose_sdk.backends import Backend, Device, RuntimeOptions, place_of
from cfpose_sdk.backends.base import Feeds
from cfpose_sdk.errors import BackendError
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY
from cfpose_training.checkpoints.files import load_finder, load_pose, load_tensors
from cfpose_training.nets.fused import FusedFinder, FusedOutput, FusedPose

_POSE_OUTPUTS = ("keypoints", "confidence", "covariance", "coarse")
_FINDER_OUTPUTS = ("boxes", "scores")


class CheckpointBackend(Backend):
    """A pose or finder checkpoint in PyTorch, float32, with the inputs and outputs of its graph.

    `device` "auto" is CUDA where this PyTorch can reach a GPU, else the CPU; `provider` says which.
    With `allow_fallback`, device "cuda" without a GPU gives a warning and runs on the CPU.
    `threads` are set while a network runs, and no other one with `threads` runs at that time:
    PyTorch has one number of threads for the whole process. It can be pickled. Raises ArtifactError
    (SpecError) for a file that is no checkpoint of cfpose, BackendError for a missing device.
    """

    _settings: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        options: RuntimeOptions | None = None,
        allow_fallback: bool = False,
    ) -> None:
        if options is not None:
            options.check_unused(("precision", "spin", "tf32", "cuda", "workers"), "PyTorch")
        self.path, self._threads = Path(path), threads
        self._again = functools.partial(
            type(self), path, device=device, threads=threads, allow_fallback=allow_fallback
        )
        self._device = _choose(self.path, device, allow_fallback)
        module = _load(self.path)
        try:
            self._module: FusedPose | FusedFinder | None = module.to(self._device)
        except RuntimeError as error:  # out of memory is one, too
            raise BackendError(f"{path} cannot be opened on {self._device}: {error}") from error
        if isinstance(module, FusedPose):
            name, self.outputs, metadata = "crops", _POSE_OUTPUTS, {SPEC_KEY: module.spec.to_json()}
        else:
            name, self.outputs = "images", _FINDER_OUTPUTS
            metadata = {FINDER_KEY: module.spec.to_json()}
        width, height = module.spec.size_wh
        self.inputs, self.metadata = (name,), metadata
        self.input_shapes = {name: (None, height, width, 3)}
        self.input_types = {name: "tensor(uint8)"}
        where = "CPU"
        if self._device.type == "cuda":
            where = f"CUDA on {torch.cuda.get_device_name(self._device)}"
        self.provider = f"PyTorch {torch.__version__} {where}"

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self._device.type

    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        module = self._module
        if module is None:
            raise BackendError(f"{self.path.name} is closed; open it again")
        (name,) = self.inputs
        images = np.asarray(feeds[name])
        self._check_feed(name, images, np.dtype(np.uint8))
        try:
            with self._as_asked(), torch.inference_mode():
                values = module(torch.tensor(images, device=self._device))
                return {
                    output: value.cpu().numpy()
                    for output, value in zip(self.outputs, _graph_outputs(values), strict=True)
                }
        except RuntimeError as error:  # out of memory is one, too
            raise BackendError(f"{self.path.name} failed to run: {error}") from error

    def close(self) -> None:
        self._module = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options, opened anew where it is unpickled."""
        return self._again, ()

    @contextmanager
    def _as_asked(self) -> Iterator[None]:
        """PyTorch's settings of the process for the length of a run: threads, and no TF32."""
        tf32 = torch.backends.cudnn.allow_tf32
        exact = not tf32 or self._device.type == "cpu"
        if self._threads is None and exact:
            yield
            return
        with self._settings:
            count = torch.get_num_threads()
            try:
                torch.backends.cudnn.allow_tf32 = False
                torch.set_num_threads(self._threads or count)
                yield
            finally:
                torch.backends.cudnn.allow_tf32 = tf32
                torch.set_num_threads(count)


def _load(path: Path) -> FusedPose | FusedFinder:
    if FINDER_KEY in load_tensors(path)[1]:
        return FusedFinder(*load_finder(path))
    return FusedPose(*load_pose(path))


def _graph_outputs(values: Any) -> tuple[torch.Tensor, ...]:
    """The outputs that a graph has: all but the logits."""
    return values[: len(_POSE_OUTPUTS)] if isinstance(values, FusedOutput) else values


def _choose(path: Path, device: Device, allow_fallback: bool) -> torch.device:
    """The device to run on. Raises BackendError when it is not there."""
    kind, index = place_of(device)
    if kind in ("openvino", "tensorrt"):
        raise BackendError(
            f"device {device!r} was asked for, and {path.name} is a checkpoint; export it with: "
            f"cfpose-export onnx --checkpoint {path} -o {path.with_suffix('.onnx').name}"
        )
    reachable = kind != "cpu" and torch.cuda.is_available()
    reachable = reachable and (index == 0 or torch.cuda.device_count() > index)
    if kind == "cuda" and not reachable:
        which = f"GPU {index}" if index else "GPU"
        problem = (
            f"PyTorch {torch.__version__} reaches no {which} here; see: nvidia-smi, cfpose doctor"
        )
        if not allow_fallback:
            raise BackendError(
                f"device {device!r} was asked for, but {problem}. To run on the CPU: "
                f"device='cpu', or allow_fallback=True"
            )
        warnings.warn(f"{problem}; running on the CPU", RuntimeWarning, stacklevel=2)
    if not reachable:
        return torch.device("cpu")
    return torch.device("cuda", index) if index else torch.device("cuda")
