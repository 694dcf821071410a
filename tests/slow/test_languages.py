"""The examples in Node and C++ answer as Python does, where these are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from cfpose_sdk import Poses
from tests.slow.conftest import Farthest

# OpenCV before 5 samples a crop at places rounded to 1/32 px, OpenCV 5 at exact ones.
MAX_PX = {"node": 0.1, "cpp": 1.0}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def node_example(root: Path, node: str) -> list[str]:
    folder = root / "examples" / "node"
    for package in ("onnxruntime-node", "sharp"):
        if not (folder / "node_modules" / package).is_dir():
            pytest.skip(f"{package} is not installed: run npm ci in examples/node")
    return [node, str(folder / "predict.js")]


@pytest.fixture(scope="module")
def cpp_example(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Built by the command of its README."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    opencv = Path("/usr/include/opencv4")
    if not (opencv / "opencv2" / "imgcodecs.hpp").is_file():
        pytest.skip("OpenCV for C++ is not installed (in Debian: apt install libopencv-dev)")
    ort = Path(os.environ.get("ONNXRUNTIME_ROOT", "/usr"))
    folders = [ort / "include", ort / "include" / "onnxruntime"]
    include = next((f for f in folders if (f / "onnxruntime_cxx_api.h").is_file()), None)
    if include is None:
        pytest.skip("onnxruntime's headers are not here: unpack a release, name ONNXRUNTIME_ROOT")
    program = tmp_path_factory.mktemp("cpp") / "pose"
    source = root / "examples" / "cpp" / "pose.cpp"
    command = ["g++", "-std=c++17", "-O2", "-Wall", str(source), f"-I{opencv}"]
    command += ["-isystem", str(include), f"-L{ort / 'lib'}", f"-Wl,-rpath,{ort / 'lib'}"]
    command += ["-lonnxruntime", "-lopencv_imgcodecs", "-lopencv_imgproc", "-lopencv_core"]
    built = _run([*command, "-o", str(program)])
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return [str(program), str(root / "cfpose_sdk" / "models")]


def test_node(node_example: list[str], expected: dict[Path, Poses], farthest: Farthest) -> None:
    run = _run([*node_example, *map(str, expected)])
    assert run.returncode == 0, run.stderr
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    away = {
        photo.name: farthest(answer["people"], poses)
        for answer, (photo, poses) in zip(answers, expected.items(), strict=True)
    }
    print("farthest joint, px:", away)
    assert max(away.values()) <= MAX_PX["node"]


def test_node_names_a_photo_that_it_cannot_read(
    node_example: list[str], photos: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:9000])
    run = _run([*node_example, str(broken), str(photos[-1])])
    assert run.returncode == 1
    assert run.stderr.startswith(f"{broken}: ")
    assert json.loads(run.stdout)["people"] == []  # the other one is answered
    assert _run(node_example).returncode == 2


def test_cpp(cpp_example: list[str], expected: dict[Path, Poses], farthest: Farthest) -> None:
    run = _run([*cpp_example, *map(str, expected)])
    assert run.returncode == 0, run.stderr
    people: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in run.stdout.splitlines():
        person = json.loads(line)
        people[person["image"]].append(person)
    away = {photo.name: farthest(people[str(photo)], poses) for photo, poses in expected.items()}
    print("farthest joint, px:", away)
    assert max(away.values()) <= MAX_PX["cpp"]


def test_cpp_names_a_photo_that_it_cannot_read(cpp_example: list[str], tmp_path: Path) -> None:
    run = _run([*cpp_example, str(tmp_path / "none.jpg")])
    assert run.returncode == 1
    assert "none.jpg cannot be read" in run.stderr


@pytest.mark.parametrize("file", ["cpp/pose.cpp", "node/predict.js"])
def test_the_examples_are_short(root: Path, file: str) -> None:
    assert len((root / "examples" / file).read_text().splitlines()) <= 121
