"""TensorRT or TensorRT-RTX: one API in two packages, and which of them is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
from collections import deque
from typing import Any, Literal

from cfpose_sdk.backends.tensorrt.cuda import Need
from cfpose_sdk.errors import (
    BackendError,
    InputError,
    MissingDependencyError,
    require,
)

Flavour = Literal["tensorrt", "rtx"]
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
_CUDA_MAJORS = range(11, 17)  # that a package of TensorRT may be for
_SHOWN = 4  # last errors of the library's log in an error of ours


def installed_flavours() -> list[Flavour]:
    """The flavours whose package is there; none is imported."""
    return [f for f, module in MODULES.items() if importlib.util.find_spec(module) is not None]


def choose_flavour(choice: Flavour | Literal["auto"]) -> Flavour:
    """The flavour to build with. "auto" is the one that is installed.

    Raises MissingDependencyError when none is, InputError when both are.
    """
    if choice != "auto":
        return choice
    installed = installed_flavours()
    if not installed:
        raise MissingDependencyError(
            "building an engine needs TensorRT or TensorRT-RTX, and neither is installed; run: "
            "pip install 'cfpose-sdk[tensorrt]' or pip install 'cfpose-sdk[tensorrt-rtx]'"
        )
    if len(installed) > 1:
        raise InputError(
            "TensorRT and TensorRT-RTX are both installed; choose: --flavour tensorrt or "
            "--flavour rtx"
        )
    return installed[0]


def open_flavour(flavour: Flavour, why: str) -> Any:
    """The module of a flavour. Raises MissingDependencyError, or BackendError when it is broken."""
    module = MODULES[flavour]
    require(module, extra=EXTRAS[flavour], why=why)
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, AttributeError) as error:
        raise BackendError(
            f"{module} is installed but cannot be imported ({error}); its libraries are missing "
            f"or broken; run: pip install --force-reinstall 'cfpose-sdk[{EXTRAS[flavour]}]'"
        ) from error


def needs_of(flavour: Flavour) -> tuple[Need, ...]:
    """The CUDA that the installed package of a flavour is for, by the name of its distribution.

    (): it does not say, as where TensorRT came with the system (JetPack).
    """
    name = MODULES[flavour].replace("_", "-")
    found = [
        Need(f"{name}-cu{major}", major)
        for major in _CUDA_MAJORS
        if any(_is_distribution(f"{name}-cu{major}{part}") for part in ("", "-bindings", "-libs"))
    ]
    return tuple(found)


def _is_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cuda_major(flavour: Flavour, why: str) -> int:
    """CUDA's major version that the installed TensorRT is for; cuda-bindings' where it is silent.

    Needs no driver. Raises BackendError where packages for two of them are installed.
    """
    needs = needs_of(flavour)
    if len(needs) > 1:
        raise BackendError(
            f"{' and '.join(need.package for need in needs)} are both installed and overwrite each "
            f"other; uninstall both, then install one"
        )
    if needs:
        return needs[0].cuda_major
    require("cuda", "cuda.bindings", extra=EXTRAS[flavour], why=why)
    code, version = importlib.import_module("cuda.bindings.runtime").cudaRuntimeGetVersion()
    if int(code) != 0:
        raise BackendError(f"cuda-bindings does not tell its CUDA version (error {int(code)})")
    return int(version) // 1000


@functools.cache
def open_log(trt: Any) -> Any:
    """The logger of a flavour: one a process, because the library keeps the first that it gets.

    Warnings and errors go to Python's logger "cfpose.tensorrt". `mark()` is a place in the log, and
    `since(mark)` the last errors after it, as the end of a sentence.
    """
    python = logging.getLogger("cfpose.tensorrt")
    serious = {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR}

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._recent: deque[tuple[int, str]] = deque(maxlen=20)
            self._count = 0

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self._count += 1
                self._recent.append((self._count, " ".join(message.split())))
                python.debug("%s", message)  # the error that we raise holds it
            elif severity == trt.ILogger.WARNING:
                python.warning("%s", message)

        def mark(self) -> int:
            return self._count

        def since(self, mark: int) -> str:
            said = [text for number, text in list(self._recent) if number > mark][-_SHOWN:]
            return f"; {trt.__name__} says: {' | '.join(said)}" if said else ""

    return Log()
