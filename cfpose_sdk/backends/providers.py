"""onnxruntime's providers on NVIDIA GPUs: their options, and how to get those that are absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfpose_sdk.backends.base import DeviceKind
from cfpose_sdk.errors import BackendError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
Provider = tuple[str, Mapping[str, str]]
# smallest, best and largest of a run, as of the engines that cfpose-export builds; a frame's sides
# go as far as 4K there, because one profile holds them all
_PEOPLE, _SIDES = (1, 8, 32), ((32, 1080, 3840), (32, 1920, 3840))


def gpu_providers(
    path: Path,
    name: str,
    gpu: int,
    available: Sequence[str],
    *,
    tf32: bool,
    shapes: Mapping[str, Sequence[Any]],
) -> list[Provider]:
    """The provider with its options; behind one of TensorRT also CUDA's, for what it refuses.

    `shapes`: of the inputs, an unknown side is not an int. Engines and compiled kernels are kept
    in `NAME.onnx.cache` beside the file.
    """
    if name == CUDA:
        return [(CUDA, cuda_options(gpu, tf32=tf32))]
    cache = cache_folder(path)
    ranges = {which: _range(shapes, which) for which in range(3)}
    labels = ("min", "opt", "max")
    if name == TENSORRT[0]:
        chosen = {
            "device_id": str(gpu),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": cache,
        }
        chosen |= {f"trt_profile_{labels[n]}_shapes": text for n, text in ranges.items() if text}
    else:
        chosen = {"device_id": str(gpu), "nv_runtime_cache_path": cache}
        chosen |= {f"nv_profile_{labels[n]}_shapes": text for n, text in ranges.items() if text}
    behind = [(CUDA, cuda_options(gpu, tf32=tf32))] if CUDA in available else []
    return [(name, chosen), *behind]


def cuda_options(gpu: int, *, tf32: bool) -> Mapping[str, str]:
    """CUDA's options.

    HEURISTIC: the default measures every convolution anew for each new number of people.
    """
    return {
        "device_id": str(gpu),
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1" if tf32 else "0",
        "arena_extend_strategy": "kSameAsRequested",
    }


def cache_folder(path: Path) -> str:
    """The folder of what a provider builds from a file. Raises BackendError where it cannot be."""
    folder = path.with_name(f"{path.name}.cache")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"{folder} cannot be made ({error}), and without it TensorRT would build {path.name} "
            f"anew in each process; copy the model to a folder that you may write to"
        ) from error
    return str(folder)


def missing_provider(kind: DeviceKind, available: Sequence[str]) -> str:
    """What to install where no provider of a device is there."""
    text = f"this onnxruntime has only {list(available)}; "
    if kind != "tensorrt":
        return text + "run: pip uninstall onnxruntime; pip install 'cfpose-sdk[gpu]'"
    return (
        text + "TensorRT is in onnxruntime-gpu (pip uninstall onnxruntime; pip install "
        "'cfpose-sdk[gpu]', with TensorRT's own libraries), TensorRT-RTX in "
        "onnxruntime-ep-nv-tensorrt-rtx-cu13; or build an engine: cfpose-export engine"
    )


def _range(shapes: Mapping[str, Sequence[Any]], which: int) -> str:
    """Shapes of one end of the profile, as the providers take them; "" where nothing is open."""
    rows = []
    for name, shape in shapes.items():
        if all(isinstance(side, int) for side in shape):
            continue
        sides = (
            _SIDES if name == "frame" else ((_PEOPLE if name in ("crops", "boxes") else (1,) * 3),)
        )
        filled = [
            side if isinstance(side, int) else sides[min(axis, len(sides) - 1)][which]
            for axis, side in enumerate(shape)
        ]
        rows.append(f"{name}:{'x'.join(map(str, filled))}")
    return ",".join(rows)
