"""gpu.sh where there is no GPU, its plan, and its whole course with stand-ins for the commands."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest


def run_script(root: Path, tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / "benchmarks/gpu.sh"), *arguments],
        env={**os.environ, "PATH": f"{tools}:/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder before all others in PATH, whose nvidia-smi is there but finds no driver."""
    folder = tmp_path / "tools"
    folder.mkdir()
    stand_in(folder, "exit 9")
    return folder


def stand_in(tools: Path, body: str) -> None:
    file = tools / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.fixture
def steps(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module gpu_steps, on a machine with a GPU."""
    spec = importlib.util.spec_from_file_location("gpu_steps", root / "benchmarks/gpu_steps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_steps", module)
    spec.loader.exec_module(module)
    machine = {"gpu": {"name": "Some GPU 9000"}, "gpus": 1}
    monkeypatch.setattr(module, "environment", lambda: machine)
    return module


STEPS = ("doctor", "tests", "torch", "engine-fp32", "engine-fp16", "check-pose", "check-finder",
         "bench-engines", "bench-onnxruntime", "simcc", "bench-rtmlib")  # fmt: skip


def test_without_a_gpu_it_says_what_it_would_have_measured(root: Path, tools: Path) -> None:
    done = run_script(root, tools, "--model", "tiny=tiny.onnx")
    assert done.returncode == 2
    assert "no CUDA GPU here" in done.stderr
    assert "It would have measured" in done.stderr
    for name in STEPS:
        assert f"tiny, {name}: " in done.stderr
    assert done.stdout == ""


def test_a_dry_run_prints_every_step_with_its_command(root: Path, tools: Path) -> None:
    done = run_script(root, tools, "--dry-run", "--flavour", "rtx")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    names = [line.split(", ")[1].split(":")[0] for line in lines[::2]]
    assert names == list(STEPS)
    commands = [line.split()[0] for line in lines[1::2]]
    assert set(commands) == {"cfpose", "cfpose-export", "cfpose-bench", "pytest", "python"}
    build = next(line for line in lines if "--precision fp16" in line)
    assert build.strip() == (
        "cfpose-export engine --model default --flavour rtx --precision fp16 "
        "-o WORK/default-fp16.engine"
    )


def test_each_step_is_recorded_and_the_rest_goes_on(
    steps: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        seen.append(list(words))
        text = " ".join(words)
        if "torch" in text:
            return subprocess.CompletedProcess(words, 2, "", "torch is not there\n")
        if "check" in words and "finder" in text:
            return subprocess.CompletedProcess(words, 1, "", "boxes differ by 9")
        if "simcc" in words:
            raise subprocess.TimeoutExpired(words, 1)
        if "--json" in words and "bench" in text:
            Path(words[words.index("--json") + 1]).write_text('{"models": [1]}')
        return subprocess.CompletedProcess(
            words, 0, 'building {"a": {"b": 1}} {"built": true}\n', ""
        )

    line = ["--model", "tiny=tiny.onnx", "--model", "other=other.onnx", "--results", str(tmp_path)]
    assert steps.main(line, run) == 0
    found = json.loads((tmp_path / "gpu-tiny-some-gpu-9000.json").read_text())
    assert found["environment"]["gpu"]["name"] == "Some GPU 9000"
    records = found["steps"]
    assert tuple(records) == STEPS
    assert records["torch"]["status"] == "skipped"
    assert records["torch"]["why"] == "torch is not there"
    assert records["check-finder"]["status"] == "failed"
    assert "did not end" in records["simcc"]["why"]
    assert records["engine-fp16"]["figures"] == {"built": True}
    assert records["bench-engines"]["figures"] == {"models": [1]}
    assert records["check-pose"]["command"].endswith("--reference tiny.onnx")
    other = json.loads((tmp_path / "gpu-other-some-gpu-9000.json").read_text())["steps"]
    assert "doctor" not in other  # once a machine
    assert "failed boxes differ by 9" in capsys.readouterr().out
    # the commands of this checkout, whatever is installed
    assert all(words[0] == sys.executable for words in seen)


@pytest.mark.parametrize("arguments", [["--model", "x.onnx"], ["--models"], ["--model"]])
def test_wrong_use_is_refused(root: Path, tools: Path, arguments: list[str]) -> None:
    done = run_script(root, tools, *arguments)
    assert done.returncode == 2
    assert "gpu.sh:" in done.stderr


def test_every_command_is_one_that_cfpose_has(steps: ModuleType) -> None:
    """The commands' own parsers take every line of the plan."""
    from cfpose_bench.cli import _parser as bench
    from cfpose_export.cli import _parser as export
    from cfpose_sdk.cli.main import _parser as sdk

    parsers = {"cfpose": sdk(), "cfpose-export": export(), "cfpose-bench": bench()}
    for step in steps.steps_of("tiny", "tiny.onnx", Path("work"), "auto", first=True):
        if step.command[0] in parsers:
            parsers[step.command[0]].parse_args(step.command[1:])
