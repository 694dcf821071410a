"""Versions that do not fit: packages below what cfpose declares, wheels above what the driver runs.

A driver runs wheels of its own CUDA major version, and of older ones.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
from collections.abc import Iterable, Mapping

CudaVersion = tuple[int, int]  # major, minor

_LEAST = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[.*?\])?\s*>=\s*([0-9][0-9.]*)")
# of a wheel's requirements: nvidia-cublas-cu12, tensorrt_cu13, nvidia-cuda-runtime==13.0.48
_BUILT_FOR = re.compile(
    r"(?:nvidia|tensorrt)[a-z0-9_-]*[-_]cu(\d\d)\b|nvidia-cuda-runtime\D*(\d\d)\."
)
_WITH_CUDA = ("onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx", "cuda-bindings")


def requirements(distribution: str = "cfpose-sdk") -> list[str]:
    """What an installed distribution declares that it needs; [] where it is not installed."""
    try:
        return list(importlib.metadata.requires(distribution) or ())
    except importlib.metadata.PackageNotFoundError:
        return []


def too_old(installed: Mapping[str, str | None], declared: Iterable[str]) -> dict[str, str]:
    """Package → a sentence, for each that is installed below the version that is declared."""
    found = {}
    for requirement in declared:
        match = _LEAST.match(requirement)
        version = installed.get(match[1]) if match else None
        if match and version and _numbers(version) < _numbers(match[2]):
            found[match[1]] = (
                f"{match[1]} {version} is older than {match[2]}, which cfpose needs; run: pip "
                f"install --upgrade '{match[1]}>={match[2]}'"
            )
    return found


def driver_cuda(library: str = "libcuda.so.1") -> CudaVersion | None:
    """The newest CUDA that this machine's NVIDIA driver runs; None without a driver."""
    version = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or not version.value else divmod(version.value // 10, 100)


def cuda_of_wheels() -> dict[str, int]:
    """Installed package → the CUDA major version that it was built for, where it tells."""
    found = {}
    for name in _WITH_CUDA:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        told = filter(None, map(_BUILT_FOR.match, requirements(name)))
        majors = [int(match[1] or match[2]) for match in told]
        if name == "cuda-bindings":
            majors = [_numbers(version)[0]]
        if majors:
            found[name] = max(majors)
    return found


def too_new(driver: CudaVersion | None, wheels: Mapping[str, int]) -> list[str]:
    """A sentence for each wheel that was built for a CUDA which the driver does not run."""
    if driver is None:
        return []
    runs = f"{driver[0]}.{driver[1]}"
    return [
        f"{name} was built for CUDA {major}, this NVIDIA driver runs CUDA {runs} at most; update "
        f"the driver, or install a build of {name} for CUDA {driver[0]}"
        for name, major in wheels.items()
        if major > driver[0]
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """1.26.0rc1 → (1, 26, 0), as far as it is numbers; trailing zeros count for nothing."""
    numbers = [int(part) for part in re.findall(r"\d+", re.split(r"[a-z+]", version)[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers) or (0,)
