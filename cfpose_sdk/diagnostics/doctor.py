"""`cfpose doctor`: runs the runtimes and the bundled models and reports what works."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any, get_args

import cv2
import numpy as np

import cfpose_sdk
from cfpose_sdk.backends import Device, RuntimeOptions
from cfpose_sdk.backends.base import ArithmeticPrecision
from cfpose_sdk.backends.bundled import bundled_models
from cfpose_sdk.backends.openvino import lacking, processor_flags
from cfpose_sdk.backends.plugins import CHECKPOINT, plugin_states
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.library import Flavour, installed_flavours
from cfpose_sdk.detectors.base import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.diagnostics.known_answers import BOUNDS, FULL, Parity, finder_parity, pose_parity
from cfpose_sdk.diagnostics.machine import (
    listed_providers,
    nvidia_gpus,
    openvino_devices,
    package_version,
    running_providers,
    tensorrt_flavours,
    torch_devices,
    tuning_of,
)
from cfpose_sdk.diagnostics.versions import (
    cuda_of_wheels,
    driver_cuda,
    requirements,
    too_new,
    too_old,
)
from cfpose_sdk.errors import CfposeError
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator

# instruction sets that make lower precisions fast, by Linux' names
_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "asimddp", "bf16")
_CORE = {"numpy", "opencv-python-headless"}  # what nothing works without
# distribution → the extra of cfpose-sdk that brings it ("" where it is part of the core)
_PACKAGES = {
    "numpy": "",
    "opencv-python-headless": "",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "openvino": "openvino",
    "tensorrt-cu13": "tensorrt-cu13",
    "tensorrt-cu12": "tensorrt-cu12",
    "tensorrt-rtx": "tensorrt-rtx",
    "cuda-bindings": "tensorrt",
    "pycuda": "pycuda",
    "torch": "train",
    "onnx": "adopt",
    "pycocotools": "bench",
    "ultralytics": "ultralytics",
    "ray": "ray",
}


def model_facts(path: str) -> dict[str, Any]:
    """What an artifact says of itself. Raises ArtifactError when it cannot be opened."""
    with PoseEstimator(path) as estimator:
        spec, info = estimator.spec, estimator.info
    facts = {
        "file": path, "name": spec.name, "provider": info.provider, "precision": spec.precision,
        "joints": len(spec.skeleton), "size_wh": list(spec.size_wh), "license": spec.license,
        "calibrated": spec.calibrated,
        "started_from": [dataclasses.asdict(start) for start in spec.started_from],
    }  # fmt: skip
    if spec.adopted is not None:
        adopted = spec.adopted
        facts |= {"adopted": adopted.family, "preset": adopted.preset, "source": adopted.source,
                  "sha256": adopted.sha256}  # fmt: skip
    return facts


def examine() -> dict[str, Any]:
    """A report as plain values.

    `ok`: whether the defaults work: the bundled models run and answer rightly, onnxruntime is there
    once, and NumPy and OpenCV are as new as declared. `problems`: why not, and what else does not
    work. `advice`: how to make better use of this machine.
    """
    packages = {name: package_version(name) for name in _PACKAGES}
    listed = listed_providers()
    providers = running_providers(BUNDLED_MODEL, listed)
    gpus = nvidia_gpus()
    driver, wheels = driver_cuda(), cuda_of_wheels()
    cv = packages["opencv-python-headless"] or cv2.__version__  # cv2 may be of another build
    old = too_old({**packages, "opencv-python-headless": cv}, requirements())
    runs: dict[str, str] = {}
    parity: dict[str, dict[str, str]] = {}
    for device in _devices(listed, packages["openvino"]):
        runs[device], parity[device] = _try_models(device)
    return {
        "ok": runs["auto"] == "ok" and not _both(packages) and not _CORE & old.keys(),
        "cfpose": cfpose_sdk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cv2": cv2.__version__,
        "packages": packages,
        "providers": listed,
        "providers_run": providers,
        "cpu_flags": sorted((processor_flags() or frozenset()).intersection(_FLAGS)),
        "gpus": gpus,
        "driver_cuda": None if driver is None else f"{driver[0]}.{driver[1]}",
        "wheels_cuda": wheels,
        "cuda": _try_cuda(packages["cuda-bindings"]),
        "tensorrt": tensorrt_flavours(),
        "openvino_devices": openvino_devices(),
        "openvino_precisions": _try_precisions(packages["openvino"]),
        "torch": torch_devices(),
        "checkpoints": plugin_states(),
        "models": {
            "pose": str(BUNDLED_MODEL),
            "finder": str(BUNDLED_FINDER),
            "runs": runs,
            "parity": parity,
        },
        "problems": [*_problems(runs, packages), *old.values(), *too_new(driver, wheels)],
        "tuning": {name: tuning_of(path) for name, path in bundled_models().items()},
        "advice": [*_advice(gpus, providers, packages), *_tuning_advice(gpus, packages)],
    }


def _devices(listed: list[str], openvino: str | None) -> list[Device]:
    """What to run the bundled models on: the default, and each device that is there."""
    devices: list[Device] = ["auto"]
    if "CPUExecutionProvider" in listed:
        devices.append("cpu")
    if "CUDAExecutionProvider" in listed:
        devices.append("cuda")
    if openvino:
        devices.append("openvino")
    return devices


def describe(report: dict[str, Any]) -> str:
    """The report of `examine` as text to read."""
    lines = [f"cfpose {report['cfpose']}, Python {report['python']}, {report['platform']}", ""]
    for name, version in report["packages"].items():
        if extra := _PACKAGES[name]:
            absent = f"absent; pip install 'cfpose-sdk[{extra}]'"
        else:
            absent = f"absent; cv2 {report['cv2']} is of another build"
        lines.append(f"  {name:24}{version or absent}")
    lines += ["", *(f"  {line}" for line in _runtimes(report))]
    for device, state in report["models"]["runs"].items():
        named = "auto, the default" if device == "auto" else device
        lines.append(f"  bundled models on {named}: {state}")
        answers = report["models"]["parity"][device]
        lines += [f"    {name}: {message}" for name, message in answers.items()]
    lines += [f"  tuning of {name}: {state}" for name, state in report["tuning"].items()]
    if model := report.get("model"):
        honest = "calibrated" if model["calibrated"] else "uncalibrated"
        lines += ["", f"  {model['file']}: {model['name']}, {model['precision']}, {honest}"]
        lines.append(f"    {model['joints']} joints, licence: {model['license'] or 'not stated'}")
        for start in model["started_from"]:
            lines.append(
                f"    started from {start['name']} ({start['source']}, {start['license']})"
            )
        if "adopted" in model:
            lines.append(
                f"    adopted from {model['source']} ({model['adopted']}, preset {model['preset']})"
            )
    lines += ["", *(f"problem: {problem}" for problem in report["problems"])]
    lines += [f"advice: {advice}" for advice in report["advice"]]
    lines.append("The defaults work." if report["ok"] else "The defaults do not work.")
    return "\n".join(lines)


def _runtimes(report: dict[str, Any]) -> list[str]:
    """Lines about the runtimes and their devices."""
    lines = [f"onnxruntime lists: {', '.join(report['providers']) or 'nothing'}"]
    lines += [f"  {name}: {state}" for name, state in report["providers_run"].items()]
    lines.append(f"CPU: {', '.join(report['cpu_flags']) or 'no instructions for bf16 or int8'}")
    for gpu in report["gpus"]:
        lines.append(f"GPU: {', '.join(f'{key} {value}' for key, value in gpu.items())}")
    if not report["gpus"]:
        lines.append("GPU: nvidia-smi shows none")
    if report["cuda"] is not None:
        lines.append(f"CUDA, for engines: {report['cuda']}")
    lines += [f"{name}: {state}" for name, state in report["tensorrt"].items()]
    if report["openvino_devices"] is not None:
        lines.append(f"OpenVINO devices: {report['openvino_devices']}")
    lines += [f"  {name}: {state}" for name, state in report["openvino_precisions"].items()]
    torch = report["torch"]
    if isinstance(torch, dict):
        lines.append(f"PyTorch {torch['version']}: CPU {torch['cpu']}; CUDA: {torch['cuda']}")
    elif torch is not None:
        lines.append(f"PyTorch {torch}")
    absent = {CHECKPOINT: "nothing opens it; pip install 'cfpose-sdk[train]'"}
    for suffix, state in {**absent, **report["checkpoints"]}.items():
        lines.append(f"{suffix} files: {state}")
    return lines


def _try_cuda(version: str | None) -> str | None:
    """The GPU that engines would run on, or why there is none; None without cuda-bindings."""
    if version is None:
        return None
    try:
        gpus = [
            open_memory("cuda-bindings", flavour=flavour, why="running engines").gpu()
            for flavour in installed_flavours() or get_args(Flavour)[:1]
        ]
    except CfposeError as error:
        return str(error)
    return f"{gpus[0].name}, SM {gpus[0].sm}"


def _try_precisions(version: str | None) -> dict[str, str]:
    """Whether each of OpenVINO's precisions works on this CPU; {} without OpenVINO."""
    if version is None:
        return {}
    states: dict[str, str] = {}
    kinds: tuple[ArithmeticPrecision, ...] = ("f32", "bf16", "int8")
    for kind in kinds:
        try:
            if problem := lacking(kind):
                states[kind] = f"absent: {problem}"
            elif kind == "int8":
                states[kind] = "this CPU has it; write a graph: cfpose-export lower"
            else:
                states[kind] = _run_precision(kind)
        except Exception as error:  # plugins raise RuntimeError and worse
            states[kind] = f"does not run: {' '.join(str(error).split())[:200]}"
    return states


def _run_precision(kind: ArithmeticPrecision) -> str:
    options = RuntimeOptions(precision=kind)
    bound = FULL if kind == "f32" else BOUNDS[f"OpenVINO {kind}"]
    with PoseEstimator(device="openvino", options=options) as estimator:
        parity = pose_parity(estimator, bound=bound)
        return f"{'runs' if parity.passed is not False else 'wrong answer'}, {parity.message}"


def _try_models(device: Device) -> tuple[str, dict[str, str]]:
    """Run the defaults, and on "auto" the other bundled pose models; "ok", or what went wrong; and
    how close to the known answers.
    """
    others = {name: path for name, path in bundled_models().items() if path != BUNDLED_MODEL}
    image = np.full((32, 24, 3), 128, dtype=np.uint8)
    answers: dict[str, Parity] = {}
    try:
        with PersonFinder(device=device) as finder:
            finder(image)
            answers["finder"] = finder_parity(finder)
        with PoseEstimator(device=device) as estimator:
            estimator.predict(image, boxes=[[2, 2, 20, 30]])
            answers["pose"] = pose_parity(estimator)
        for name, path in others.items() if device == "auto" else ():
            with PoseEstimator(path, device=device) as estimator:
                answers[name] = pose_parity(estimator)
    except CfposeError as error:
        return str(error), {name: answer.message for name, answer in answers.items()}
    messages = {name: answer.message for name, answer in answers.items()}
    wrong = [f"{name}: {messages[name]}" for name in answers if answers[name].passed is False]
    return ("wrong answer, " + "; ".join(wrong) if wrong else "ok"), messages


def _advice(
    gpus: list[dict[str, str]], providers: dict[str, str], packages: dict[str, str | None]
) -> list[str]:
    if not gpus:
        return []
    name, advice = gpus[0].get("name", "a GPU"), []
    if providers.get("CUDAExecutionProvider") != "runs":
        state = providers.get("CUDAExecutionProvider", "is not in this onnxruntime")
        advice.append(
            f"{name} is here, but CUDA {state}; "
            f"run: pip uninstall onnxruntime; pip install 'cfpose-sdk[gpu]'"
        )
    if not any(packages.get(f"tensorrt-{kind}") for kind in ("cu13", "cu12", "rtx")):
        advice.append(
            f"{name} is here, and no TensorRT to run engines on it; run: pip install "
            f"'cfpose-sdk[tensorrt-cu13]', or for a GeForce or RTX GPU 'cfpose-sdk[tensorrt-rtx]'"
        )
    return advice


def _tuning_advice(gpus: list[dict[str, str]], packages: dict[str, str | None]) -> list[str]:
    """What would give `cfpose tune` more to choose from, on a machine without a GPU."""
    if gpus or packages["openvino"]:
        return []
    return [
        "OpenVINO is another fast runtime for CPUs; run: pip install 'cfpose-sdk[openvino]', then: "
        "cfpose tune"
    ]


def _both(packages: dict[str, str | None]) -> bool:
    return bool(packages["onnxruntime"] and packages["onnxruntime-gpu"])


def _problems(runs: dict[str, str], packages: dict[str, str | None]) -> list[str]:
    problems = [f"{device}: {state}" for device, state in runs.items() if state != "ok"]
    if _both(packages):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install one"
        )
    return problems
