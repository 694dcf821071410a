"""What works on this machine, found by running it."""

from __future__ import annotations

import platform
from typing import Any

import cv2
import numpy as np

import cfpose_sdk
from cfpose_sdk.backends import Device
from cfpose_sdk.detector import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.errors import CfposeError
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator
from cfpose_sdk.known_answers import Parity, finder_parity, pose_parity
from cfpose_sdk.machine import (
    listed_providers,
    nvidia_gpus,
    openvino_devices,
    package_version,
    running_providers,
    tensorrt_flavours,
)

# distribution → the extra of cfpose-sdk that brings it ("" where it is part of the core)
_PACKAGES = {
    "numpy": "",
    "opencv-python-headless": "",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
    "cuda-bindings": "tensorrt",
    "pycuda": "pycuda",
    "torch": "train",
    "onnx": "export",
    "pycocotools": "bench",
    "ultralytics": "ultralytics",
    "ray": "ray",
}


def examine() -> dict[str, Any]:
    """A report as plain values; `ok` tells whether the defaults work, `problems` why not, and
    `advice` what would make more of this machine.
    """
    packages = {name: package_version(name) for name in _PACKAGES}
    listed = listed_providers()
    providers = running_providers(BUNDLED_MODEL, listed)
    gpus = nvidia_gpus()
    devices: list[Device] = ["cpu"]
    if "CUDAExecutionProvider" in listed:
        devices.append("cuda")
    runs: dict[str, str] = {}
    parity: dict[str, dict[str, str]] = {}
    for device in devices:
        runs[device], parity[device] = _try_models(device)
    return {
        "ok": runs["cpu"] == "ok",
        "cfpose": cfpose_sdk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cv2": cv2.__version__,
        "packages": packages,
        "providers": listed,
        "providers_run": providers,
        "gpus": gpus,
        "tensorrt": tensorrt_flavours(),
        "openvino_devices": openvino_devices(),
        "models": {
            "pose": str(BUNDLED_MODEL),
            "finder": str(BUNDLED_FINDER),
            "runs": runs,
            "parity": parity,
        },
        "problems": _problems(runs, packages),
        "advice": _advice(gpus, providers),
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
    lines += [f"    {name}: {state}" for name, state in report["providers_run"].items()]
    for gpu in report["gpus"]:
        lines.append(f"  GPU: {', '.join(f'{key} {value}' for key, value in gpu.items())}")
    if not report["gpus"]:
        lines.append("  GPU: nvidia-smi shows none")
    lines += [f"  {name}: {state}" for name, state in report["tensorrt"].items()]
    if report["openvino_devices"] is not None:
        lines.append(f"  OpenVINO devices: {report['openvino_devices']}")
    for device, state in report["models"]["runs"].items():
        lines.append(f"  bundled models on {device}: {state}")
        answers = report["models"]["parity"][device]
        lines += [f"    {name}: {message}" for name, message in answers.items()]
    lines += ["", *(f"problem: {problem}" for problem in report["problems"])]
    lines += [f"advice: {advice}" for advice in report["advice"]]
    lines.append("The defaults work." if report["ok"] else "The defaults do not work.")
    return "\n".join(lines)


def _try_models(device: Device) -> tuple[str, dict[str, str]]:
    """Run both bundled models; "ok", or what went wrong, and how near the known answers are."""
    image = np.full((32, 24, 3), 128, dtype=np.uint8)
    answers: dict[str, Parity] = {}
    try:
        with PersonFinder(device=device) as finder:
            finder(image)
            answers["finder"] = finder_parity(finder)
        with PoseEstimator(device=device) as estimator:
            estimator.predict(image, boxes=[[2, 2, 20, 30]])
            answers["pose"] = pose_parity(estimator)
    except CfposeError as error:
        return str(error), {name: answer.message for name, answer in answers.items()}
    said = {name: answer.message for name, answer in answers.items()}
    wrong = [f"{name}: {said[name]}" for name, answer in answers.items() if answer.passed is False]
    return ("wrong answer, " + "; ".join(wrong) if wrong else "ok"), said


def _advice(gpus: list[dict[str, str]], providers: dict[str, str]) -> list[str]:
    if not gpus or providers.get("CUDAExecutionProvider") == "runs":
        return []
    state = providers.get("CUDAExecutionProvider", "is not in this onnxruntime")
    return [
        f"{gpus[0].get('name', 'a GPU')} is here, but CUDA {state}; "
        f"run: pip uninstall onnxruntime; pip install 'cfpose-sdk[gpu]'"
    ]


def _problems(runs: dict[str, str], packages: dict[str, str | None]) -> list[str]:
    problems = [f"{device}: {state}" for device, state in runs.items() if state != "ok"]
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install one"
        )
    return problems
