"""Models in processes of their own: adapters, real artifacts, and what happens when one fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.cli import main
from cfpose_bench.models.open import parse_name
from cfpose_bench.models.workers import InlineWorker, ProcessWorker, Setting, open_worker
from cfpose_sdk.backends.bundled import BUNDLED_MODEL
from cfpose_sdk.errors import ArtifactError, BackendError, ImageError, InputError

ADAPTER = """
import os, sys
import numpy as np
print("a library that chatters on stdout")

class Model:
    facts = {"provider": "Fake", "versions": {"fake": "1"}}

    def __init__(self, path):
        self.text = open(path).read()
        self.facts = {**self.facts, "precision": str(sorted(os.sched_getaffinity(0)))}

    def predict(self, image, boxes):
        if self.text == "ends":
            os._exit(7)
        if self.text == "fails":
            raise RuntimeError("out of cheese")
        if self.text == "half":
            boxes = boxes[:1]
        corners = np.repeat(boxes[:, None, :2], 17, axis=1)
        self.spans_ms = {"infer": 50.0}
        return corners, np.full(corners.shape[:2], 0.5)

def open_model(path, *, device, threads):
    return Model(path)
"""
ONE_STAGE = """
import numpy as np

class Model:
    one_stage = True

    def predict(self, image, boxes):
        assert boxes is None
        return np.ones((2, 17, 2)), np.ones((2, 17)), [[0, 0, 9, 9], [5, 5, 20, 20]], [0.5, 0.25]

def open_model(path, *, device, threads):
    return Model()
"""


@pytest.fixture
def name(tmp_path: Path) -> str:
    (tmp_path / "fake.py").write_text(ADAPTER)
    (tmp_path / "model.bin").write_text("plain")
    return f"adapter:{tmp_path / 'fake.py'}:{tmp_path / 'model.bin'}"


def test_a_peer_answers_through_its_pipe(name: str, root: Path) -> None:
    photo = root / "examples/photos/street.jpg"
    cpu = min(os.sched_getaffinity(0))
    with closing(open_worker(parse_name(name), Setting(cpus=(cpu,)))) as worker:
        boxes = [[10, 20, 30, 60, 0.5], [1, 2, 3, 4, 0.25]]
        poses = worker.predict(photo, boxes=boxes)
        np.testing.assert_array_equal(poses.xy[:, 0], [[10, 20], [1, 2]])
        np.testing.assert_array_equal(poses.box_scores, [0.5, 0.25])
        assert poses.speed_ms["infer"] == 50.0
        assert poses.speed_ms["read"] > 0
        assert len(worker.predict(photo, boxes=[])) == 0  # nobody, not the whole photo
        assert worker.facts.provider == "Fake"
        assert worker.facts.precision == f"[{cpu}]"  # it stays on its CPU
        assert worker.facts.is_peer
        used = worker.memory()
        assert 5 < (used["peak_rss"] or 0) < 2000
        with pytest.raises(ImageError):
            worker.predict(root / "pyproject.toml", boxes=boxes)
        assert len(worker.predict(photo, boxes=boxes)) == 2  # it goes on after a bad photo


@pytest.mark.parametrize(
    ("text", "message"),
    [("ends", "ended with code 7"), ("fails", "RuntimeError: out of cheese"), ("half", "no set")],
)
def test_a_peer_that_fails_says_so(name: str, root: Path, text: str, message: str) -> None:
    parsed = parse_name(name)
    parsed.path.write_text(text)
    photo = root / "examples/photos/street.jpg"
    with (
        closing(open_worker(parsed, Setting())) as worker,
        pytest.raises(BackendError, match=message),
    ):
        worker.predict(photo, boxes=[[0, 0, 9, 9], [5, 5, 9, 9]])


def test_what_cannot_be_opened_says_so(name: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_package_that_is_not_there")
    text = f"adapter:{broken}:{tmp_path / 'model.bin'}"
    with pytest.raises(BackendError, match="a_package_that_is_not_there"):
        open_worker(parse_name(text), Setting())
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="not an ONNX model"):  # the worker's own error class
        open_worker(parse_name(str(tmp_path / "x.onnx")), Setting())
    with pytest.raises(ArtifactError, match="does not exist"):
        open_worker(parse_name(str(tmp_path / "none.onnx")), Setting())
    with pytest.raises(InputError, match="process of its own"):
        open_worker(parse_name(name), Setting(), in_process=True)
    for wrong in ("openpose:x", "adapter:only.py"):
        with pytest.raises(InputError):
            parse_name(wrong)


def test_a_worker_gives_what_the_model_gives_in_this_process(root: Path) -> None:
    photo, boxes = root / "examples/photos/street.jpg", [[152, 330, 200, 451], [449, 242, 481, 343]]
    with (
        closing(InlineWorker(parse_name("default"), Setting(device="cpu"))) as inline,
        closing(ProcessWorker(parse_name("default"), Setting(device="cpu"))) as process,
    ):
        here, there = inline.predict(photo, boxes=boxes), process.predict(photo, boxes=boxes)
        np.testing.assert_allclose(there.xy, here.xy, atol=1e-3)
        np.testing.assert_allclose(there.confidence, here.confidence, atol=1e-4)
        assert process.facts.skeleton == inline.facts.skeleton
        assert process.facts.size_wh == inline.facts.size_wh
        assert set(there.speed_ms) == set(here.speed_ms)


def beside_a_one_stage_model(
    name: str, dataset_folder: Path, tmp_path: Path, *options: str
) -> list[dict[str, Any]]:
    """What a report says of a model, and of one that finds people itself."""
    (tmp_path / "one.py").write_text(ONE_STAGE)
    report = tmp_path / "report.json"
    other = f"adapter:{tmp_path / 'one.py'}:{tmp_path / 'model.bin'}"
    arguments = ["--dataset", str(dataset_folder), "--model", name, "--model", other]
    assert main([*arguments, "--threads", "1", "--json", str(report), *options]) == 0
    models: list[dict[str, Any]] = json.loads(report.read_text())["models"]
    return models


def test_models_side_by_side_in_their_processes(
    name: str, dataset_folder: Path, tmp_path: Path
) -> None:
    first, second = beside_a_one_stage_model(
        name, dataset_folder, tmp_path, "--repeats", "1", "--rounds", "2"
    )
    assert (first["model"], first["boxes"]) == ("adapter:model", "gt")
    assert (second["model"], second["boxes"]) == ("adapter:model #2", "own")
    assert first["latency_ms"]["infer"]["p50"] == 50.0
    assert first["versions"] == {"fake": "1"}
    assert second["accuracy"]["poses"] == 6
    assert "people_curve" in first
    assert "people_curve" not in second  # it takes no boxes
    assert "total" in second["ratio"]


def test_a_model_that_finds_people_is_not_charged_for_our_finder(
    name: str, dataset_folder: Path, tmp_path: Path
) -> None:
    first, second = beside_a_one_stage_model(
        name, dataset_folder, tmp_path, "--boxes", "detector", "--repeats", "0", "--rounds", "1"
    )
    assert first["latency_ms"]["detect"]["p50"] > 0
    assert second["latency_ms"]["detect"]["p50"] == 0


def test_ctrl_c_ends_the_run_and_its_workers(name: str, dataset_folder: Path) -> None:
    marker = dataset_folder / "working"
    wait = f"open({str(marker)!r}, 'w'); import time; time.sleep(30); corners ="
    slow = ADAPTER.replace("corners =", wait)
    parse_name(name).adapter.write_text(slow)  # type: ignore[union-attr]
    command = [sys.executable, "-m", "cfpose_bench.cli", "--dataset", str(dataset_folder)]
    # a test run in the background of a shell ignores Ctrl-C, and would hand that down
    run = subprocess.Popen(
        [*command, "--model", name, "--repeats", "0"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        if not children.parent.is_dir():
            pytest.skip("children of a process are read from /proc")
        deadline = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        (child,) = children.read_text().split()
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        _, said = run.communicate(timeout=30)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
    assert run.returncode == 130
    assert "interrupted" in said
    assert not Path(f"/proc/{child}").exists()


def test_a_bundled_model_is_opened_by_its_name() -> None:
    for text in ("default", "cfpose-s"):
        name = parse_name(text)
        assert (name.label, name.peer, name.path) == (text, None, BUNDLED_MODEL)
    with pytest.raises(ArtifactError, match="cfpose-x is no bundled model"):
        parse_name("cfpose-x")
