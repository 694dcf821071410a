"""What works on this machine, found by running it."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import cv2
import numpy as np

import cfpose_sdk
from cfpose_sdk.backends import Device
from cfpose_sdk.detector import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.errors import CfposeError
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator

# distribution → the extra of cfpose-sdk that brings it ("" where it is part of the core)
_PACKAGES = {
    "numpy": "",
    "opencv-python-headless": "",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
    "pycuda": "pycuda",
    "torch": "train",
    "onnx": "export",
    "pycocotools": "bench",
    "ultralytics": "ultralytics",
}


def examine() -> dict[str, Any]:
    """A report as plain values; `ok` tells whether the defaults work, `problems` why not."""
    packages = {name: _version(name) for name in _PACKAGES}
    models = {"cpu": _try_models("cpu")}
    if "CUDAExecutionProvider" in _providers():
        models["cuda"] = _try_models("cuda")
    problems = [f"{device}: {state}" for device, state in models.items() if state != "ok"]
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install one"
        )
    return {
        "ok": models["cpu"] == "ok",
        "cfpose": cfpose_sdk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cv2": cv2.__version__,
        "packages": packages,
        "providers": _providers(),
        "models": {"pose": str(BUNDLED_MODEL), "finder": str(BUNDLED_FINDER), "runs": models},
        "problems": problems,
    }


def describe(report: dict[str, Any]) -> str:
    """`examine`'s report for people."""
    lines = [f"cfpose {report['cfpose']}, Python {report['python']}, {report['platform']}", ""]
    for name, version in report["packages"].items():
        if extra := _PACKAGES[name]:
            absent = f"absent; pip install 'cfpose-sdk[{extra}]'"
        else:
            absent = f"absent; cv2 {report['cv2']} is of another build"
        lines.append(f"  {name:24}{version or absent}")
    lines += ["", f"  onnxruntime lists: {', '.join(report['providers']) or 'nothing'}"]
    for device, state in report["models"]["runs"].items():
        lines.append(f"  bundled models on {device}: {state}")
    lines += ["", *(f"problem: {problem}" for problem in report["problems"])]
    lines.append("The defaults work." if report["ok"] else "The defaults do not work.")
    return "\n".join(lines)


def _try_models(device: Device) -> str:
    """Run both bundled models on a tiny image; "ok", or what went wrong."""
    image = np.full((32, 24, 3), 128, dtype=np.uint8)
    try:
        with PersonFinder(device=device) as finder:
            finder(image)
        with PoseEstimator(device=device) as estimator:
            estimator.predict(image, boxes=[[2, 2, 20, 30]])
    except CfposeError as error:
        return str(error)
    return "ok"


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
