"""`cfpose serve` as a process: it starts, answers, and ends when it is asked to."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cfpose_sdk import PoseEstimator

httpx = pytest.importorskip("httpx2", reason="httpx2, of the extra dev, is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

SCRIPT = str(Path(sys.executable).parent / "cfpose")


@contextmanager
def _server(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [SCRIPT, "serve", "--port", "0", "--device", "cpu", *options]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            address = re.search(r"http://\S+:\d+", line)
            assert address is not None, line
            yield process, address.group()
        finally:
            process.kill()


def _documented(root: Path) -> Callable[[Path, str], str]:
    """The client of the documents: `poses_of`."""
    text = (root / "docs" / "serve.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import urllib.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    client: Callable[[Path, str], str] = names["poses_of"]
    return client


def _decoders(process: subprocess.Popen[str]) -> list[int]:
    task = Path(f"/proc/{process.pid}/task")
    return sorted(
        int(pid) for each in task.iterdir() for pid in (each / "children").read_text().split()
    )


def test_a_process_answers_as_predict_does_and_ends(root: Path) -> None:
    photo = root / "examples" / "photos" / "street.jpg"
    with _server() as (process, address):
        answer = httpx.post(
            f"{address}/predict?name=street.jpg", content=photo.read_bytes(), timeout=60
        )
        with PoseEstimator(device="cpu") as estimator:
            expected = estimator.predict(photo).to_dict()
        assert {**answer.json(), "speed_ms": 0} == {**expected, "speed_ms": 0}
        assert "server" not in answer.headers
        assert json.loads(_documented(root)(photo, address))["people"] == expected["people"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of child processes")
def test_killed_decoders_come_back_and_none_is_left(root: Path) -> None:
    photo = (root / "examples" / "photos" / "basketball1.jpg").read_bytes()
    with _server("--decoders", "1") as (process, address):
        (first,) = _decoders(process)
        os.kill(first, signal.SIGKILL)
        assert httpx.post(f"{address}/predict", content=photo, timeout=60).status_code == 200
        (second,) = _decoders(process)
        assert second != first
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        until = time.monotonic() + 10
        while Path(f"/proc/{second}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{second}").exists()


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [SCRIPT, "serve", "--port", port, "--device", "cpu"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "choose another --host or --port" in run.stderr
    assert "Traceback" not in run.stderr
