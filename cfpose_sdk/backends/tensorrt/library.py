"""TensorRT or TensorRT-RTX: one API in two packages, and which of them is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections import deque
from typing import Any, Literal

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


def choose_flavour(choice: Flavour | Literal["auto"]) -> Flavour:
    """The flavour to build with. "auto" is the one that is installed.

    Raises MissingDependencyError when none is, InputError when both are.
    """
    if choice != "auto":
        return choice
    installed = [f for f, module in MODULES.items() if importlib.util.find_spec(module) is not None]
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


@functools.cache
def open_log(trt: Any) -> Any:
    """The logger of a flavour: one a process, because the library keeps the first that it gets.

    Warnings and errors go to Python's logger "cfpose.tensorrt"; `recent` holds the last errors.
    """
    python = logging.getLogger("cfpose.tensorrt")
    serious = {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR}

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.recent: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self.recent.append(message.strip())
                python.debug("%s", message)  # the error that we raise holds it
            elif severity == trt.ILogger.WARNING:
                python.warning("%s", message)

    return Log()
