"""`cfpose-train reproduce --miniature`, from its first step to its table; interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = "import sys; from cfpose_sdk.commands import train; sys.exit(train())"
FAST = ["--miniature", "--accelerator", "cpu", "--threads", "1", "--devices", "2"]


def reproduce(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CFPOSE_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "reproduce", *words],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def figures(folder: Path) -> dict[str, list[float]]:
    content = json.loads((folder / "table.json").read_text())
    found: dict[str, list[float]] = {}
    for figure in content["figures"]:
        found.setdefault(figure["row"], []).append(figure["ours"])
    return found


def test_table_one(tmp_path: Path) -> None:
    out, err = (process := reproduce(tmp_path, "coco", *FAST, "--out", "a")).communicate()
    assert process.returncode == 0, err
    assert "HRNets of width 4 and 8 in place of W32 and W48" in err
    assert "figures mean nothing beside the paper's" in out
    assert "75.1 AP on COCO test-dev" in out
    for row in ("| SimCC-W32 | 75.3 |", "| teacher, SimCC-W48 | 75.9 |", "| ours | 76.2 |"):
        assert row in out
    assert all(value is not None for row in figures(tmp_path / "a").values() for value in row)
    # the same command finds all done, and writes the same table
    table = (tmp_path / "a" / "table.md").read_text()
    out, err = (process := reproduce(tmp_path, "coco", *FAST, "--out", "a")).communicate()
    assert process.returncode == 0, err
    assert "begins" not in err
    assert (tmp_path / "a" / "table.md").read_text() == table


def test_table_four_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    words = ["crowdpose", "--table", "4", *FAST, "--out", "a"]
    process = reproduce(tmp_path, *words)
    state = tmp_path / "a" / "seed1" / "stage1-labels" / "log.csv"
    while not state.is_file() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    journal = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert journal["check"]["done"]
    out, err = (process := reproduce(tmp_path, *words)).communicate()
    assert process.returncode == 0, err
    assert "check, begins" not in err
    assert out.count("| 66.7 |") == 1
    rows = figures(tmp_path / "a")
    assert len(rows) == 8
    assert all(value is not None for row in rows.values() for value in row)
    # one step after the other gives the same table
    one = [w if w != "2" else "1" for w in words[:-1]]
    for scheme in ("baseline", "6"):
        out, err = (process := reproduce(tmp_path, *one, scheme, "--schemes", scheme)).communicate()
        assert process.returncode == 0, err
        for row, values in figures(tmp_path / scheme).items():
            assert values == pytest.approx(rows[row], abs=1e-9)
