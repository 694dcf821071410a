"""Table IV by two processes as by one, and Ctrl-C among several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfpose_training.ablation.run import run_ablation
from cfpose_training.ablation.schemes import SCHEMES
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.run.loop import RunOptions
from cfpose_training.run.state import STATE_FILE
from tests.training.conftest import RECIPE, write_tiny_data

TEACHER = """
[teacher]
name = "wide"
hrnet = { width = 8, stem = 4, bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }
"""


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    write_tiny_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace('kind = "gaussian"', 'kind = "smoothed"') + TEACHER)
    return path


def test_the_whole_table_is_the_same(tiny_recipe: Path, tiny_root: Path, tmp_path: Path) -> None:
    recipe, data = load_recipe(tiny_recipe), DataOptions(tiny_root, tmp_path / "cache")
    tables = []
    for processes in (1, 2):
        out = tmp_path / f"with-{processes}"
        options = RunOptions(out, accelerator="cpu", threads=1)
        rows = run_ablation(recipe, list(SCHEMES), [1], data, options, processes=processes)
        assert rows is not None
        tables.append([(out / name).read_bytes() for name in ("ablation.csv", "ablation.md")])
    assert tables[0] == tables[1]


def test_ctrl_c_lets_every_run_save_its_state(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    text = tiny_recipe.read_text().replace("epochs = 2", "epochs = 100000")
    tiny_recipe.write_text(text)
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from cfpose_sdk.commands import train; exit(train())"]
    command += ["ablation", "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    command += ["--out", str(out), "--jobs", "2", "--threads", "1", "--device", "cpu"]
    command += ["--schemes", "baseline,5", "--seeds", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    states = [out / "teacher" / STATE_FILE, out / "seed1/stage1-labels" / STATE_FILE]
    try:
        deadline = time.monotonic() + 300
        while not all(state.is_file() for state in states) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert all(state.is_file() for state in states)
