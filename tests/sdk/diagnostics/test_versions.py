"""Versions that do not fit: packages below what is declared, wheels above what the driver runs."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cfpose_sdk.diagnostics import doctor, versions
from cfpose_sdk.diagnostics.versions import cuda_of_wheels, driver_cuda, too_new, too_old

DECLARED = [
    "numpy>=1.26",
    "opencv-python-headless>=4.9",
    'onnxruntime>=1.20; extra == "cpu"',
    'ray[data]>=2.40; extra == "ray"',
    "pre>=1.26.1",
    "zeros>=1.26.0",
    "nothing",
]


@pytest.mark.parametrize(
    ("installed", "old"),
    [
        ({"numpy": "1.26.0", "opencv-python-headless": "4.9"}, set()),
        ({"numpy": "1.25.9", "opencv-python-headless": "4.10.0.84"}, {"numpy"}),
        ({"numpy": "2.0.0rc1", "opencv-python-headless": "4.7.0.72"}, {"opencv-python-headless"}),
        ({"numpy": "1.26", "onnxruntime": "1.9.0"}, {"onnxruntime"}),
        ({"numpy": None, "ray": "2.5"}, {"ray"}),
        ({"onnxruntime": "1.20"}, set()),
        ({"pre": "1.26rc5"}, {"pre"}),
        ({"pre": "1.26+cu118"}, {"pre"}),
        ({"pre": "1.26.1+cu118", "zeros": "1.26"}, set()),
    ],
)
def test_what_is_older_than_declared(installed: dict[str, str | None], old: set[str]) -> None:
    found = too_old(installed, DECLARED)
    assert found.keys() == old
    assert all("run: pip install --upgrade" in text for text in found.values())


def test_cfpose_itself_declares_numpy_and_opencv() -> None:
    declared = versions.requirements()
    if not declared:
        pytest.skip("cfpose-sdk is not installed here, so it declares nothing")
    assert too_old({"numpy": "1.0", "opencv-python-headless": "4.0"}, declared).keys() == {
        "numpy",
        "opencv-python-headless",
    }
    assert versions.requirements("no-such-distribution") == []


@pytest.fixture
def driver(tmp_path: Path) -> Callable[[int], str]:
    """Builds a libcuda that answers with a version."""

    def build(version: int) -> str:
        source, library = tmp_path / "cuda.c", tmp_path / f"libcuda{version}.so"
        source.write_text(f"int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}")
        command = ["cc", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no C compiler to build a stand-in for the driver's library")
        return str(library)

    return build


def test_the_driver_is_asked(driver: Callable[[int], str]) -> None:
    assert driver_cuda(driver(12040)) == (12, 4)
    assert driver_cuda(driver(13000)) == (13, 0)
    assert driver_cuda(driver(0)) is None
    assert driver_cuda("libno-such-library.so") is None
    assert driver_cuda("libc.so.6") is None


def test_wheels_tell_their_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = {
        "torch": ["sympy", "nvidia-cublas-cu12==12.8.4.1; platform_system == 'Linux'"],
        "tensorrt": ["tensorrt_cu13==10.13.0"],
        "onnxruntime-gpu": ["coloredlogs", "nvidia-cuda-runtime~=13.0; extra == 'cuda'"],
        "cuda-bindings": ["cuda-pathfinder~=1.1"],
    }

    def version(name: str) -> str:
        if name not in requires:
            raise importlib.metadata.PackageNotFoundError(name)
        return "12.9.2"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", requires.get)
    expected = {"torch": 12, "tensorrt": 13, "onnxruntime-gpu": 13, "cuda-bindings": 12}
    assert cuda_of_wheels() == expected
    (first, second) = too_new((12, 8), expected)
    assert "onnxruntime-gpu was built for CUDA 13" in first + second
    assert "runs CUDA 12.8 at most" in first
    assert too_new((13, 0), expected) == too_new(None, expected) == []


@pytest.mark.usefixtures("tiny_defaults")
def test_the_defaults_do_not_work_beside_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = doctor.package_version
    monkeypatch.setattr(doctor, "_devices", lambda *_: ["auto"])
    monkeypatch.setattr(doctor, "_try_precisions", lambda *_: {})
    monkeypatch.setattr(doctor, "torch_devices", lambda: None)
    assert doctor.examine()["ok"] is True

    both = {"onnxruntime": "1.22", "onnxruntime-gpu": "1.22"}
    monkeypatch.setattr(doctor, "package_version", lambda name: both.get(name) or real(name))
    report = doctor.examine()
    assert report["ok"] is False
    assert any("are both installed" in problem for problem in report["problems"])

    monkeypatch.setattr(doctor, "package_version", {"numpy": "1.20"}.get)
    monkeypatch.setattr(doctor, "requirements", lambda: DECLARED)
    monkeypatch.setattr(doctor, "driver_cuda", lambda: (11, 8))
    monkeypatch.setattr(doctor, "cuda_of_wheels", lambda: {"torch": 12})
    report = doctor.examine()
    assert report["ok"] is False
    assert [problem.split()[0] for problem in report["problems"]] == ["numpy", "torch"]
    assert "The defaults do not work." in doctor.describe(report)


def test_of_two_declared_versions_the_lower_counts() -> None:
    """One is for CUDA 12, the other for CUDA 13."""
    declared = ["cuda-bindings<13,>=12.9.1", "cuda-bindings>=13.0", "cuda-bindings>=12.9.1,<13"]
    assert versions.too_old({"cuda-bindings": "12.9.5"}, declared) == {}
    found = versions.too_old({"cuda-bindings": "12.6"}, declared)
    assert "older than 12.9.1" in found["cuda-bindings"]
