"""A bare environment, NumPy and OpenCV only: what imports, how fast, and what the rest says."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

HOMES = {
    "cfpose_sdk": ".",
    "cfpose_bench": "benchmarks",
    "cfpose_training": "training",
    "cfpose_export": "export",
}
EXTRAS = {"cfpose_bench": "bench", "cfpose_training": "train", "cfpose_export": "adopt"}

IMPORT_ALL = """
import importlib, json, sys
said = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
    else:
        said[name] = ["", ""]
print(json.dumps(said))
"""


@dataclass(frozen=True)
class BareEnvironment:
    """A virtual environment whose packages are NumPy, OpenCV and this tree."""

    python: Path

    def run(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in a fresh interpreter that reads nothing of the caller's environment."""
        command = [str(self.python), "-I", "-W", "error", "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def bare(root: Path, tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    """The environment; packages are links, so that it costs no installation."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    for module, prefix in ((np, "numpy"), (cv2, "opencv_python")):
        source = Path(module.__file__ or "").parents[1]
        for entry in [*source.glob(f"{prefix}*"), source / module.__name__]:
            if not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    homes = "\n".join(str((root / home).resolve()) for home in HOMES.values())
    (packages / "cfpose.pth").write_text(homes + "\n", encoding="utf-8")
    return BareEnvironment(folder / "bin" / "python")


def _modules(root: Path, package: str) -> list[str]:
    home = root / HOMES[package]
    files = [path.relative_to(home).with_suffix("") for path in (home / package).rglob("*.py")]
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files)


def _import_all(bare: BareEnvironment, names: list[str]) -> dict[str, list[str]]:
    result = bare.run(IMPORT_ALL, *names)
    assert result.returncode == 0, result.stderr
    said: dict[str, list[str]] = json.loads(result.stdout)
    assert list(said) == names
    return said


def test_the_environment_is_bare(bare: BareEnvironment) -> None:
    optional = ["torch", "onnx", "onnxruntime", "pycocotools", "tqdm", "pandas", "pip"]
    said = _import_all(bare, ["numpy", "cv2", *optional])
    assert [name for name, (kind, _) in said.items() if kind == ""] == ["numpy", "cv2"]


def test_every_module_of_the_sdk_imports(root: Path, bare: BareEnvironment) -> None:
    names = _modules(root, "cfpose_sdk")
    assert "cfpose_sdk.estimator" in names
    assert {n: e for n, e in _import_all(bare, names).items() if e[0]} == {}


@pytest.mark.parametrize("package", EXTRAS)
def test_every_other_module_names_its_extra(
    root: Path, bare: BareEnvironment, package: str
) -> None:
    for name, (kind, message) in _import_all(bare, _modules(root, package)).items():
        assert kind == "MissingDependencyError", f"{name}: {kind}: {message}"
        assert f"pip install 'cfpose-sdk[{EXTRAS[package]}]'" in message, name


def test_the_sdk_loads_numpy_and_opencv_only(bare: BareEnvironment) -> None:
    code = (
        "import sys, numpy, cv2; before = set(sys.modules); import cfpose_sdk;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    result = bare.run(code)
    assert result.returncode == 0, result.stderr
    foreign = set(result.stdout.split()) - sys.stdlib_module_names - {"cfpose_sdk"}
    # numpy and cv2 may load more of themselves; nothing else may come in
    assert foreign <= {"numpy", "cv2"}


def test_the_sdk_imports_quickly(bare: BareEnvironment) -> None:
    code = (
        "import time, numpy, cv2; start = time.perf_counter(); import cfpose_sdk;"
        "print(time.perf_counter() - start)"
    )
    # the best of five: the bound is about the code, not about what else the machine does
    assert min(float(bare.run(code).stdout) for _ in range(5)) <= 0.3


def test_an_import_changes_nothing(bare: BareEnvironment) -> None:
    code = (
        "import os, cv2, numpy; state = lambda: (dict(os.environ), cv2.getNumThreads(),"
        "numpy.get_printoptions(), numpy.geterr());"
        "before = state(); import cfpose_sdk; assert state() == before"
    )
    result = bare.run(code)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_the_runtime_names_its_extra(bare: BareEnvironment) -> None:
    code = "import cfpose_sdk; cfpose_sdk.PoseEstimator()"
    result = bare.run(code)
    assert "MissingDependencyError" in result.stderr
    assert "cfpose-sdk[cpu]" in result.stderr


@pytest.mark.parametrize(
    ("command", "extra"), [("bench", "bench"), ("train", "train"), ("export", "adopt")]
)
def test_a_command_names_its_extra(bare: BareEnvironment, command: str, extra: str) -> None:
    code = (
        f"import sys; sys.argv = ['cfpose-{command}', '--help'];"
        f"from cfpose_sdk.commands import {command}; sys.exit({command}())"
    )
    result = bare.run(code)
    assert result.returncode == 2, result.stderr
    assert f"cfpose-sdk[{extra}]" in result.stderr
    assert "Traceback" not in result.stderr
