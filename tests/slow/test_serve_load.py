"""`cfpose serve` under load: good, broken, huge, slow and empty bodies, and killed decoders.

Eight callers send 40 requests each, or as many as CFPOSE_LOAD says. With the figures shown:
CFPOSE_LOAD=200 pytest -s tests/slow/test_serve_load.py.
"""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import PoseEstimator

httpx = pytest.importorskip("httpx2", reason="httpx2, of the extra dev, is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

CALLERS, REQUESTS = 8, int(os.environ.get("CFPOSE_LOAD", "40"))
KILLS = 4
MAX_BYTES, BODY_S = 2_000_000, 1.0
# what each kind of request may be answered with; 429 and 503 are for any
ALLOWED = {
    "good": {200}, "slow": {200}, "too slow": {408}, "empty": {400}, "broken": {422},
    "no photo": {422}, "one pixel": {422}, "bomb": {413}, "huge": {413},
}  # fmt: skip
WEIGHTS = {"good": 12, "slow": 1, "too slow": 0.3, "huge": 0.5}


@dataclass
class Load:
    """What was sent and answered."""

    address: str
    bodies: dict[str, bytes]
    expected: dict[bytes, Any]
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def call(self, seed: int) -> None:
        """One caller's requests, one after the other."""
        chance = random.Random(seed)
        kinds = list(ALLOWED)
        weights = [WEIGHTS.get(kind, 1) for kind in kinds]
        with httpx.Client(timeout=60) as client:
            for _ in range(REQUESTS):
                self._send(client, chance.choices(kinds, weights)[0], chance)

    def _send(self, client: Any, kind: str, chance: random.Random) -> None:
        good = chance.choice(list(self.expected))
        content: Any = self.bodies.get(kind, good)
        if kind in ("slow", "too slow"):
            content = _dripping(good, 0.3 if kind == "slow" else 3.0)
        start = time.perf_counter()
        answer = client.post(f"{self.address}/predict", content=content)
        self.statuses[kind, answer.status_code] += 1
        if answer.status_code == 200:
            if kind == "good":
                self.seconds.append(time.perf_counter() - start)
            self._compare(answer.json(), self.expected[good])
        elif answer.status_code not in ALLOWED[kind] | {429, 503}:
            self.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")

    def _compare(self, said: Any, expected: Any) -> None:
        if len(said["people"]) != len(expected):
            self.wrong.append(f"{len(said['people'])} people instead of {len(expected)}")
        elif len(expected):
            xy = np.array([person["xy"] for person in said["people"]])
            if np.abs(xy - expected.xy).max() > 0.01:
                self.wrong.append(f"joints {np.abs(xy - expected.xy).max()} px away")


def _dripping(data: bytes, seconds: float) -> Iterator[bytes]:
    step = len(data) // 9
    for at in range(0, len(data), step):
        yield data[at : at + step]
        time.sleep(seconds / 10)


def _png(side: int, rows: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes((side + 1) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _children(pid: int) -> list[int]:
    listed = [each / "children" for each in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for file in listed if file.exists() for child in file.read_text().split()]


def _resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", text)
    return int(match[1]) / 1024 if match else 0.0


def _disturb(
    run: Load, process: subprocess.Popen[bytes], stop: threading.Event, peaks: list[float]
) -> int:
    """Kill a decoder now and then, and look at the server's memory; how many were killed."""
    each = CALLERS * REQUESTS // (KILLS + 1)
    killed = 0
    while not stop.wait(0.2):
        peaks.append(_resident_mb(process.pid))
        if sum(run.statuses.values()) >= each * (killed + 1):
            os.kill(_children(process.pid)[0], signal.SIGKILL)
            killed += 1
    return killed


@pytest.fixture
def load(root: Path, tmp_path: Path) -> Iterator[tuple[Load, subprocess.Popen[bytes]]]:
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc: the processes of the server cannot be found")
    photos = [
        (root / "examples" / "photos" / "street.jpg").read_bytes(),
        (root / "cfpose_sdk" / "models" / "known_person.png").read_bytes(),
    ]
    with PoseEstimator(device="cpu") as estimator:
        images = [cv2.imdecode(np.frombuffer(each, np.uint8), 1) for each in photos]
        expected = [estimator.predict(np.asarray(image, np.uint8)) for image in images]
    bodies = {
        "empty": b"", "broken": photos[0][:-9000], "no photo": b"%PDF-1.7 not a photo" * 99,
        "one pixel": _png(1, 1), "bomb": _png(8000, 8000), "huge": bytes(3 * MAX_BYTES),
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "cfpose"), "serve", "--port", "0"]
    command += ["--device", "cpu", "--queue", "32", "--body-seconds", str(BODY_S)]
    command += ["--max-bytes", str(MAX_BYTES), "--deadline", "20"]
    log = tmp_path / "log.txt"  # a pipe that nobody reads would hold the server up
    with log.open("w") as stream, subprocess.Popen(command, stderr=stream) as process:
        try:
            until = time.monotonic() + 60
            while not (address := re.search(r"http://\S+:\d+", log.read_text())):
                assert time.monotonic() < until
                time.sleep(0.05)
            yield Load(address.group(), bodies, dict(zip(photos, expected, strict=True))), process
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()


def test_load(load: tuple[Load, subprocess.Popen[bytes]]) -> None:
    run, process = load
    stop, memory_mb = threading.Event(), list[float]()
    before_mb = _resident_mb(process.pid)
    with ThreadPoolExecutor(CALLERS + 1) as threads:
        disturbing = threads.submit(_disturb, run, process, stop, memory_mb)
        calling = [threads.submit(run.call, seed) for seed in range(CALLERS)]
        try:
            for each in calling:
                each.result()
        finally:
            stop.set()
        killed = disturbing.result()
    assert process.poll() is None, "the server ended"
    assert run.wrong == []
    assert sum(run.statuses.values()) == CALLERS * REQUESTS
    assert {kind for kind, _ in run.statuses} == set(ALLOWED)
    assert killed >= KILLS
    assert run.statuses["good", 200] > 0.5 * sum(
        n for (kind, _), n in run.statuses.items() if kind == "good"
    )
    assert max(memory_mb) < before_mb + 400  # bodies and pixels of 32 requests at most
    health = httpx.get(f"{run.address}/healthz").json()
    assert health["waiting"] == 0
    p50, p99 = np.percentile(run.seconds, [50, 99])
    print(
        f"\nstatuses {dict(run.statuses)}; {len(run.seconds)} good: p50 {p50:.3f} s, p99 "
        f"{p99:.3f} s; memory {before_mb:.0f} MB before, {max(memory_mb):.0f} MB at most; "
        f"{killed} decoders killed"
    )
