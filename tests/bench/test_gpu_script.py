"""gpu.sh where there is no GPU, and its whole course behind a stand-in for nvidia-smi."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, ModelSpec


def run_script(
    root: Path, tools: Path, *arguments: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    path = f"{tools}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", str(root / "benchmarks/gpu.sh"), *arguments],
        env={**os.environ, "PATH": path, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


def stand_in(tools: Path, body: str) -> None:
    file = tools / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


def tiny_artifact(path: Path) -> Path:
    """An artifact that puts every joint at (1, 1); enough for parsers and runtimes."""
    nodes = [
        helper.make_node("Shape", ["crops"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "tail_xy"], ["shape_xy"], axis=0),
        helper.make_node("Concat", ["n", "tail_c"], ["shape_c"], axis=0),
        helper.make_node("Expand", ["one", "shape_xy"], ["keypoints"]),
        helper.make_node("Expand", ["one", "shape_c"], ["confidence"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["N", 64, 48, 3])],
        [
            helper.make_tensor_value_info("keypoints", TensorProto.FLOAT, ["N", 17, 2]),
            helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["N", 17]),
        ],
        [
            helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("tail_xy", TensorProto.INT64, [2], [17, 2]),
            helper.make_tensor("tail_c", TensorProto.INT64, [1], [17]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    entry = model.metadata_props.add()
    entry.key, entry.value = SPEC_KEY, ModelSpec("tiny", COCO_17, (48, 64)).to_json()
    onnx.save(model, str(path))
    return path


def test_without_a_gpu_it_says_so_and_measures_nothing(root: Path, tools: Path) -> None:
    stand_in(tools, "exit 9")  # installed, but without a driver
    done = run_script(root, tools, timeout=120)
    assert done.returncode == 2
    assert "no CUDA GPU here" in done.stderr
    assert done.stdout == ""


def test_steps_that_cannot_run_say_why_and_the_rest_goes_on(
    root: Path, tools: Path, tmp_path: Path
) -> None:
    stand_in(
        tools, 'case $1 in -L) ;; *) echo "Some GPU 9000, 1.0, 2 MiB, 9.0, 3 W, 4 MHz" ;; esac'
    )
    model = tiny_artifact(tmp_path / "tiny.onnx")
    results = tmp_path / "results"
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"not a model")
    arguments = ["--model", f"tiny={model}", "--model", f"absent={tmp_path}/none.onnx"]
    arguments += ["--model", f"foreign={foreign}", "--results", str(results)]
    done = run_script(root, tools, *arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in results.iterdir()) == [
        "absent-some-gpu-9000.json",
        "foreign-some-gpu-9000.json",
        "tiny-some-gpu-9000.json",
    ]
    found = json.loads((results / "tiny-some-gpu-9000.json").read_text())
    assert found["environment"]["gpu"]["name"] == "Some GPU 9000"
    assert found["steps"].keys() == {"onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "bench"}
    for record in found["steps"].values():  # on a machine with these packages they may be done
        assert record["status"] == "done" or record["why"]
    absent = json.loads((results / "absent-some-gpu-9000.json").read_text())["steps"]
    assert {record["why"] for record in absent.values()} == {"there is no file none.onnx"}
    for line in ("tiny-some-gpu-9000.json", "absent-some-gpu-9000.json", "skipped"):
        assert line in done.stdout


@pytest.mark.parametrize("arguments", [["--model", "x.onnx"], ["--models"], ["--model"]])
def test_wrong_use_is_refused(root: Path, tools: Path, arguments: list[str]) -> None:
    done = run_script(root, tools, *arguments, timeout=120)
    assert done.returncode == 2
    assert "gpu.sh:" in done.stderr
