"""Runtimes in turns: whose turn it is, what a ratio is, and a whole run with stand-ins."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfpose_bench.cli import main
from cfpose_bench.models.open import open_model, parse_name
from cfpose_bench.models.serving import ServedModel, network_clock
from cfpose_bench.models.workers import ProcessWorker, Setting
from cfpose_bench.models.wrappers import CountedFinder
from cfpose_bench.peers import serve
from cfpose_bench.runtimes import command
from cfpose_bench.runtimes.command import Plan, measure
from cfpose_bench.runtimes.contestants import RTMLIB, W32, Arena, Contestant
from cfpose_bench.runtimes.turns import (
    Summary,
    Task,
    first_results,
    order,
    outside_share,
    rows,
    run_task,
    speedup,
)
from cfpose_export.graph.rules import load_model, whole_letterboxes
from cfpose_sdk.backends import Backend
from cfpose_sdk.detectors.base import BUNDLED_FINDER, Detections
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator

BOXES = np.array([[152.0, 330.0, 200.0, 451.0], [449.0, 242.0, 481.0, 343.0]])
ADAPTER = """
import os, time
import numpy as np
import onnx

class Model:
    facts = {"provider": "Fake", "versions": {"onnxruntime": "0.0"}}

    def __init__(self, path):
        self.delay, self.log = open(path).read().split()

    def find(self, image):
        return np.zeros((0, 4)) if self.delay == "0.5" else [[0, 0, 9, 9], [5, 5, 20, 20]]

    def predict(self, image, boxes):
        start = time.monotonic()
        time.sleep(float(self.delay))
        with open(self.log, "a") as log:
            print(os.getpid(), id(image), len(boxes), start, time.monotonic(), file=log)
        return np.repeat(boxes[:, None, :2], 17, axis=1), np.full((len(boxes), 17), 0.5)

def open_model(path, *, device, threads):
    return Model(path)
"""
# what cfpose takes of rtmlib 0.0.16: constructors, sessions, and the three steps
RTMLIB_PACKAGE = """
import numpy as np
import onnx
import onnxruntime

class RTMPose:
    def __init__(self, path, model_input_size, mean=1, std=1, device="cpu"):
        assert mean is None and std is None
        self.size_wh = model_input_size
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def preprocess(self, image, box):
        return image[: self.size_wh[1], : self.size_wh[0]], np.array(box[:2]), np.array(box[2:])

    def inference(self, crop):
        planes = np.ascontiguousarray(crop.transpose(2, 0, 1)[None], dtype=np.float32)
        return self.session.run(None, {"input": planes})

    def postprocess(self, outputs, centre, scale):
        x, y = outputs
        return np.stack([x.argmax(-1), y.argmax(-1)], -1) / 2 + centre, x.max(-1)

class YOLOX:
    def __init__(self, path, model_input_size, device, score_thr, nms_thr):
        assert (score_thr, nms_thr) == (0.25, 0.5)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, image):
        return np.array([[100.0, 100.0, 180.0, 300.0]])
"""


class Noted:
    """Answers `ms` of each round, times the round's slowness, and writes down who was asked."""

    def __init__(self, name: str, diary: list[str], ms: float, slow: list[float]) -> None:
        self.name, self.diary, self.ms, self.slow = name, diary, ms, slow
        self.questions: list[Mapping[str, Any]] = []

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        self.diary.append(self.name)
        self.questions.append(question)
        ms = self.ms * self.slow[len(self.questions) - 1]
        stages = {"people": question["people"], "infer": ms / 2, "networks": ms / 2}
        began = 10.0 * len(self.questions)
        calls = question["repeats"]
        return {"ms": [ms] * calls, "stages": [stages] * calls, "cpu_s": [began, began + 9]}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_everybody_has_every_place_and_follows_everybody(count: int) -> None:
    turns = [order(count, turn) for turn in range(2 * count)]
    for half in (turns[:count], turns[count:]):
        for place in range(count):
            assert Counter(turn[place] for turn in half) == Counter(range(count))
    before = {pair for turn in turns for pair in pairwise(turn)}
    assert all((b, a) in before for a, b in before)  # nobody always follows the same one


def test_a_task_is_done_in_turns_and_its_ratios_are_of_the_same_round() -> None:
    diary: list[str] = []
    slow = [1.0, 7.0, 2.0, 1.0]  # the whole machine, by round
    workers = {name: Noted(name, diary, ms, slow) for name, ms in (("a", 30.0), ("b", 10.0))}
    task = Task(Path("p.jpg"), 2, BOXES, rounds=4, repeats=3)
    base, own = rows(run_task(workers, task, rest_s=0), "a")
    assert "".join(diary) == "abbabaab"
    asked = workers["b"].questions[0]
    assert (asked["warmup"], asked["repeats"], asked["boxes"]) == (1, 3, BOXES.tolist())
    assert "speedup" not in base
    ratio = own["speedup"]
    assert [ratio[n] for n in ("median", "low", "high")] == pytest.approx([3.0] * 3)
    assert ratio["by_round"] == pytest.approx((3.0,) * 4)
    assert own["ms"] == 15.0
    assert own["outside_share"]["median"] == pytest.approx(0.5)
    assert own["idle_cpu_ms"] == pytest.approx(1000.0)  # from 9 s after the start to 10 s
    assert own["samples_ms"] == [[10.0] * 3, [70.0] * 3, [20.0] * 3, [10.0] * 3]


def test_what_is_no_task_is_refused() -> None:
    for wrong in ({"rounds": 0}, {"repeats": 0}, {"people": 3}, {"people": 0, "boxes": None}):
        with pytest.raises(InputError):
            Task(
                **{"photo": Path("p"), "people": 2, "boxes": BOXES, "rounds": 1, "repeats": 1}
                | wrong
            )

    class Wrong(Noted):
        def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
            said = super().ask(question)
            said["stages"][0]["people"] = 1
            return said

    with pytest.raises(BackendError, match=r"posed \{1\} people, asked for 2"):
        run_task({"a": Wrong("a", [], 1.0, [1.0])}, Task(Path("p"), 2, BOXES, 1, 1))


milliseconds = st.floats(0.1, 1e4)


@settings(max_examples=25)
@given(st.lists(st.tuples(milliseconds, milliseconds), min_size=1, max_size=9), st.floats(0.1, 10))
def test_a_delay_in_one_runtime_moves_its_ratio_alone(
    times: list[tuple[float, float]], factor: float
) -> None:
    base, own = [[b] for b, _ in times], [[o] for _, o in times]
    plain = speedup(base, own)
    later = speedup(base, [[o * factor] for (o,) in own])
    np.testing.assert_allclose(later.by_round, np.array(plain.by_round) / factor)
    np.testing.assert_allclose(later.median, plain.median / factor)
    slowed = speedup([[b * factor] for (b,) in base], [[o * factor] for (o,) in own])
    np.testing.assert_allclose(slowed.by_round, plain.by_round)
    assert plain.low <= plain.median <= plain.high
    assert min(plain.by_round) <= plain.low
    assert plain.high <= max(plain.by_round)


def test_summaries_by_hand() -> None:
    found = speedup([[4, 6, 100], [8]], [[2], [1, 1, 9]])
    assert found.by_round == (3.0, 8.0)
    assert found.median == 5.5
    share = outside_share([[10, 20], [10]], [[9, 10], [9]])
    np.testing.assert_allclose(share.by_round, [0.3, 0.1])
    with pytest.raises(InputError, match="same rounds"):
        speedup([[1]], [[1], [2]])
    with pytest.raises(InputError, match="at least one round"):
        Summary.of([])


def stand_in(folder: Path, name: str, delay: float, log: Path) -> str:
    (folder / "fake.py").write_text(ADAPTER)
    (folder / f"{name}.bin").write_text(f"{delay} {log}")
    return f"adapter:{folder / 'fake.py'}:{folder / name}.bin"


def test_one_process_works_at_a_time(tmp_path: Path, root: Path) -> None:
    log = tmp_path / "log"
    names = [stand_in(tmp_path, name, delay, log) for name, delay in (("late", 0.06), ("b", 0.0))]
    late, prompt = (ProcessWorker(parse_name(name), Setting()) for name in names)
    with closing(late), closing(prompt):
        task = Task(root / "examples/photos/street.jpg", 5, None, rounds=3, repeats=2)
        slow, quick = rows(run_task({"late": late, "prompt": prompt}, task), "late")
    calls = [line.split() for line in log.read_text().splitlines()]
    assert len(calls) == 2 * 3 * (1 + 2)
    assert all(float(a[4]) <= float(b[3]) for a, b in pairwise(calls))  # no two at once
    turns = [call[0] for call in calls[::3]]
    assert [call[0] for call in calls] == [pid for pid in turns for _ in range(3)]
    late_pid, prompt_pid = turns[0], turns[1]
    assert late_pid != prompt_pid
    assert turns == [late_pid, prompt_pid, prompt_pid, late_pid, prompt_pid, late_pid]
    for n in range(0, len(calls), 3):  # a turn's calls have the same decoded frame
        assert len({call[1] for call in calls[n : n + 3]}) == 1
    assert {call[2] for call in calls} == {"5"}  # two are found, and repeated
    assert min(min(ms) for ms in slow["samples_ms"]) >= 60.0
    assert quick["speedup"]["median"] > 1.0


def test_nobody_found_cannot_be_repeated(tmp_path: Path, root: Path) -> None:
    name = parse_name(stand_in(tmp_path, "empty", 0.5, tmp_path / "log"))
    task = Task(root / "examples/photos/street.jpg", 5, None, 1, 1)
    with (
        closing(ProcessWorker(name, Setting())) as worker,
        pytest.raises(BackendError, match="found nobody"),
    ):
        run_task({"empty": worker}, task)


def test_a_turn_times_its_calls_and_not_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, spent = [0.0], iter([5.0, 0.25, 0.5])

    class Served:
        def prepared(self, image: str, boxes: Any, people: int) -> Any:
            def call() -> dict[str, Any]:
                now[0] += next(spent)
                return {"people": people}

            now[0] += 100  # decoding
            return nullcontext(call)

    monkeypatch.setattr(serve.time, "perf_counter", lambda: now[0])
    asked = {"do": "time", "image": "", "boxes": None, "people": 3, "warmup": 1, "repeats": 2}
    said = serve.timed(Served(), asked)  # type: ignore[arg-type]
    assert said["ms"] == [250.0, 500.0]
    assert said["stages"] == [{"people": 3}] * 2


def test_the_clock_has_the_networks_of_the_very_call(root: Path) -> None:
    candidate = open_model(parse_name("default"), find=True, device="cpu", threads=1)
    served, photo = ServedModel(candidate), str(root / "examples/photos/street.jpg")
    plain = Backend.run
    with closing(candidate):
        for boxes, runs, people in ((None, 2, 9), (BOXES, 1, 2)):
            with network_clock() as clock, served.prepared(photo, boxes, people) as call:
                said = call()
            assert clock.runs == runs  # finder and pose network
            assert said["people"] == people
            parts = said["detect"] + said["infer"]
            # the networks are inside finding and inferring, and most of them
            assert 0.5 * parts < said["networks"] <= parts
        assert Backend.run is plain
        assert candidate.finder is not None
        assert candidate.finder.people is None
        with PoseEstimator(device="cpu", threads=1) as bundled:
            assert len(candidate.model.predict(photo)) == len(bundled.predict(photo))
        served.opened = open_model(parse_name("default"), device="cpu", threads=1)
        with pytest.raises(InputError, match="no finder"), served.prepared(photo, None, 1):
            pass


class Finder:
    name, path, provider = "finder", BUNDLED_FINDER, "stand-in"

    def __init__(self, people: int) -> None:
        self.boxes = np.float32([[n, 0, n + 5, 9] for n in range(people)]).reshape(-1, 4)

    def __call__(self, image: Any) -> Detections:
        return Detections(self.boxes, np.linspace(0.9, 0.5, len(self.boxes), dtype=np.float32))

    def close(self) -> None:
        pass


def test_exactly_so_many_people() -> None:
    frame = np.zeros((9, 9, 3), np.uint8)
    finder = CountedFinder(Finder(3))
    for people, expected in ((None, [0, 1, 2]), (2, [0, 1]), (7, [0, 1, 2, 0, 1, 2, 0])):
        finder.people = people
        found = finder(frame)
        np.testing.assert_array_equal(found.boxes[:, 0], expected)
        np.testing.assert_allclose(found.scores, np.array([0.9, 0.7, 0.5])[expected], atol=1e-6)
    empty = CountedFinder(Finder(0))
    assert len(empty(frame)) == 0
    empty.people = 2
    with pytest.raises(InputError, match="nobody to repeat"):
        empty(frame)


def test_the_first_result_is_from_spawn_to_line(tmp_path: Path) -> None:
    said = "import time; time.sleep(0.1); print(4, 0.01, 0.02, 0.03, flush=True); time.sleep(0.2)"
    found = first_results(tmp_path / "photo.jpg", 2, code=said)
    assert (found["people"], len(found["samples_s"])) == (4, 2)
    assert found["max_s"] >= found["median_s"] >= 0.1
    parts = found["parts_s"]
    assert (parts["import"], parts["open"], parts["predict"]) == (0.01, 0.02, 0.03)
    assert sum(parts.values()) == pytest.approx(found["median_s"])
    with pytest.raises(BackendError, match="no such thing"):
        first_results(tmp_path, 1, code="raise SystemExit('no such thing')")


def test_another_onnxruntime_is_refused(tmp_path: Path) -> None:
    contestant = Contestant("a", stand_in(tmp_path, "a", 0.0, tmp_path / "log"), optional=True)
    with Arena(1) as arena, pytest.raises(InputError, match=r"onnxruntime 0.0, expected"):
        arena.open([contestant], find=False, detector=None)
    rtmlib = Contestant("r", f"rtmlib:{tmp_path / 'a.bin'}")
    with Arena(1) as arena, pytest.raises(InputError, match="peers install rtmlib FOLDER"):
        arena.open([rtmlib], find=False, detector=None)
    for wrong in (["--w32", "none.onnx"], ["--threads", "0"]):
        with pytest.raises(InputError):
            main(["runtimes", *wrong])


@pytest.fixture
def rtmlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package rtmlib that workers can import."""
    (tmp_path / "site/rtmlib").mkdir(parents=True)
    (tmp_path / "site/rtmlib/__init__.py").write_text(RTMLIB_PACKAGE)
    facts = tmp_path / "site/rtmlib-0.0.16.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: rtmlib\nVersion: 0.0.16\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")


def test_a_whole_run(
    tmp_path: Path, rtmlib: None, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """The bundled model as W32, a stand-in for rtmlib, and a runtime that is not there."""
    missing = Contestant("cfpose, CUDA", "default", "cuda", optional=True)
    for name in ("w32_contestants", "default_contestants"):
        real = getattr(command, name)
        pick = (lambda r: lambda *given: [c for c in r(*given) if c.device == "cpu"])(real)
        monkeypatch.setattr(command, name, lambda *given, p=pick: [*p(*given), missing])
    one = {1: 1, 5: 1}
    detector = tmp_path / "whole.onnx"  # rtmlib reads the input's size from the graph
    onnx.save_model(whole_letterboxes(load_model(BUNDLED_FINDER)), detector)
    plan = Plan(
        w32=BUNDLED_MODEL, detector=detector, python=sys.executable, threads=1,
        people=(1, 5), rounds={1: 2, 5: 2}, w32_repeats=one, default_repeats=one, starts=1,
    )  # fmt: skip
    record = json.loads(json.dumps(measure(plan)))
    shown = [(t["model"], t["boxes"], t["people"], len(t["rows"])) for t in record["tasks"]]
    assert shown == [
        ("w32", "given", 1, 2), ("w32", "given", 5, 2), ("w32", "found", 1, 2),
        ("w32", "found", 5, 2), ("default", "found", 1, 1), ("default", "found", 5, 1),
    ]  # fmt: skip
    theirs, ours = record["tasks"][1]["rows"]
    assert (theirs["label"], ours["label"]) == (RTMLIB, W32)
    assert theirs["versions"]["rtmlib"] == "0.0.16"
    assert "outside_share" not in theirs
    assert 0 < ours["outside_share"]["median"] < 1
    ratios = np.divide(theirs["samples_ms"], ours["samples_ms"])[:, 0]
    np.testing.assert_allclose(ours["speedup"]["by_round"], ratios, rtol=1e-3)
    assert [entry["label"] for entry in record["left_out"]].count("cfpose, CUDA") == 2
    assert any(entry["why"] == "no --thunder was given" for entry in record["left_out"])
    assert record["first_result"]["people"] >= 2
    assert {goal["verdict"] for goal in record["goals"]} <= {
        "pass",
        "fail",
        "not measured",
        "measured",
    }
    assert str(tmp_path) not in json.dumps(record)
    assert str(root) not in json.dumps(record)


def test_a_folder_gets_the_record_by_the_kind_of_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {
        "environment": {"cpu": "a CPU", "packages": {}, "cpu_kind": "avx2", "cpu_features": []},
        "protocol": {"photo": "p.jpg", "size_wh": [7, 5], "threads": 2},
        "tasks": [],
        "goals": [],
        "left_out": [],
        "first_result": {"median_s": 1, "max_s": 1, "samples_s": [1], "parts_s": {}},
    }
    monkeypatch.setattr(command, "measure", lambda plan: record)
    assert main(["runtimes", "--results", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runtimes-avx2.json"]
    assert main(["runtimes", "--json", str(tmp_path / "mine.json")]) == 0
    assert (tmp_path / "mine.json").is_file()
    assert "AVX2: one run on a CPU with 2 threads" in capsys.readouterr().out
