"""Runtimes and devices of this machine, tried out rather than taken from a list."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk.backends.tuned import read_tuned
from cfpose_sdk.errors import CfposeError

_NOT_LOCAL = {"AzureExecutionProvider"}  # runs models of a remote service, not files


def package_version(distribution: str) -> str | None:
    """The installed version; None when it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def listed_providers() -> list[str]:
    """The execution providers that onnxruntime was built with."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def running_providers(model: Path, listed: list[str]) -> dict[str, str]:
    """Provider → "runs", or why it does not, by running `model` on zeros with it alone."""
    states = {}
    for provider in listed:
        if provider in _NOT_LOCAL:
            continue
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                str(model), sess_options=options, providers=[provider], enable_fallback=0
            )
            got = session.get_providers()[0]
            if got == provider:
                session.run(None, {node.name: _zeros(node) for node in session.get_inputs()})
        except Exception as error:  # onnxruntime's own classes are private and many
            states[provider] = f"does not run: {' '.join(str(error).split())[:200]}"
            continue
        states[provider] = "runs" if got == provider else f"does not load; got {got}"
    return states


def torch_devices() -> dict[str, str] | str | None:
    """PyTorch's version, and for CPU and CUDA whether a convolution runs; None when it is absent,
    and what went wrong when it does not load.
    """
    try:
        torch: Any = importlib.import_module("torch")
        state = {"version": str(torch.__version__), "cpu": _convolution(torch, "cpu")}
        if torch.cuda.is_available():
            name = torch.cuda.get_device_name(0)
            return {**state, "cuda": f"{_convolution(torch, 'cuda')} on {name}"}
        built = torch.version.cuda
        why = f"built for CUDA {built}, reaches no GPU" if built else "built without CUDA"
        return {**state, "cuda": why}
    except ModuleNotFoundError:
        return None
    except Exception as error:  # a missing shared library is an ImportError, or worse
        return f"does not load: {' '.join(str(error).split())[:200]}"


def _convolution(torch: Any, device: str) -> str:
    try:
        maps = torch.ones(1, 1, 3, 3, device=device)
        right = float(torch.nn.functional.conv2d(maps, maps)) == 9
    except RuntimeError as error:
        return f"does not run: {' '.join(str(error).split())[:200]}"
    return "runs" if right else "gives a wrong answer"


def tuning_of(model: Path) -> str:
    """What `cfpose tune` brought for a model here, or what is missing and the command."""
    try:
        return read_tuned(model).told
    except CfposeError as error:
        return str(error)


def _zeros(node: Any) -> Any:
    """Zeros for one person or frame, of the shape and type of an onnxruntime input."""
    shape = [side if isinstance(side, int) else 1 for side in node.shape]
    names = {"float": "float32", "double": "float64"}
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    return np.zeros(shape, names.get(kind, kind))


def nvidia_gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each NVIDIA GPU, as `nvidia-smi` reports; [] without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = "name,driver_version,memory.total,compute_cap"
    try:
        run = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in run.stdout.splitlines()]
    return [dict(zip(fields.split(","), row, strict=False)) for row in rows if row]


def openvino_devices() -> list[str] | str | None:
    """OpenVINO's devices, what went wrong, or None when it is absent."""
    try:
        core: Any = importlib.import_module("openvino").Core()
        return [str(device) for device in core.available_devices]
    except ModuleNotFoundError:
        return None
    except Exception as error:  # plugins raise RuntimeError and worse
        return f"does not load: {' '.join(str(error).split())[:200]}"


def tensorrt_flavours() -> dict[str, str]:
    """Flavour → version, or why it does not import; only those that are installed."""
    states = {}
    for module in ("tensorrt", "tensorrt_rtx"):
        try:
            states[module] = str(importlib.import_module(module).__version__)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # a missing shared library is an ImportError, or worse
            states[module] = f"does not load: {' '.join(str(error).split())[:200]}"
    return states
