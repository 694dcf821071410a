"""Running steps: side by side, recorded, resumed, interrupted; the table from their reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cfpose_sdk.errors import TrainingError
from cfpose_training.reproduce.plan import Options, Plan, Row, Step
from cfpose_training.reproduce.steps import JOURNAL_FILE, Start, run_steps
from cfpose_training.reproduce.table import write_table
from cfpose_training.reproduce.targets import TABLES, Target


def step(folder: Path, name: str, *needs: str, arguments: tuple[str, ...] = ()) -> Step:
    return Step(name, "train", (name, *arguments), folder / f"{name}.out", needs=needs)


class Starter:
    """Starts steps that write their file, and notes which began and ended when."""

    def __init__(self, seconds: float = 0.0, fails: str = "", hangs: str = "") -> None:
        self.seconds, self.fails, self.hangs = seconds, fails, hangs
        self.begun: list[tuple[str, int]] = []

    def __call__(self, step: Step, device: int, keep: Sequence[int]) -> subprocess.Popen[bytes]:
        self.begun.append((step.name, device))
        code = f"sleep {self.seconds}; touch '{step.output}'; exit {int(step.name == self.fails)}"
        words = ["sleep", "60"] if step.name == self.hangs else ["sh", "-c", code]
        return subprocess.Popen(words, pass_fds=keep, process_group=0)


def test_steps_run_once_in_order_and_side_by_side(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b", "a"), step(tmp_path, "c", "a"),
             step(tmp_path, "d", "b", "c")]  # fmt: skip
    start = Starter(0.1)
    journal = run_steps(steps, tmp_path, 2, start)
    assert next(name for name, _ in start.begun) == "a"
    assert [name for name, _ in start.begun][-1] == "d"
    assert {device for name, device in start.begun if name in "bc"} == {0, 1}
    assert all(record["done"] and record["seconds"] >= 0.1 for record in journal.records.values())
    again = Starter()
    run_steps(steps, tmp_path, 1, again)
    assert again.begun == []
    (tmp_path / "d.out").unlink()
    run_steps(steps, tmp_path, 1, again)
    assert again.begun == [("d", 0)]


def test_a_step_that_fails_ends_the_plan_and_is_run_again(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b", "a"), step(tmp_path, "c", "b")]
    with pytest.raises(TrainingError, match=r"'b' ended with code 1.*cfpose-train b"):
        run_steps(steps, tmp_path, 1, Starter(fails="b"))
    again = Starter()
    run_steps(steps, tmp_path, 1, again)
    assert [name for name, _ in again.begun] == ["b", "c"]

    def nothing(step: Step, device: int, keep: Sequence[int]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["true"])

    with pytest.raises(TrainingError, match="ended without"):
        run_steps([step(tmp_path, "e")], tmp_path, 1, nothing)


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    run_steps([step(tmp_path, "a", arguments=("--boxes", "x"))], tmp_path, 1, Starter())
    with pytest.raises(TrainingError, match=r"'a' was a --boxes x, now a --boxes gt"):
        run_steps([step(tmp_path, "a", arguments=("--boxes", "gt"))], tmp_path, 1, Starter())


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as ever, also where a shell started the tests with `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_is_handed_on_and_its_time_is_kept(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b")]
    start = Starter(hangs="b")

    def interrupt() -> None:
        while not (tmp_path / "a.out").exists() or len(start.begun) < 2:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_steps(steps, tmp_path, 2, start)
    thread.join()
    records = json.loads((tmp_path / JOURNAL_FILE).read_text())
    assert records["a"]["done"]
    assert not records["b"]["done"]
    before = records["b"]["seconds"]
    assert before > 0
    again = Starter(0.1)
    journal = run_steps(steps, tmp_path, 1, again)
    assert again.begun == [("b", 0)]
    assert journal.records["b"]["seconds"] > before


PLAN = """
import subprocess, sys
from pathlib import Path
from cfpose_training.reproduce.plan import Step
from cfpose_training.reproduce.steps import run_steps
folder = Path(sys.argv[1])
start = lambda step, device, keep: subprocess.Popen(["sleep", "30"], pass_fds=keep)
run_steps([Step("a", "train", (), folder / "a")], folder, 1, start)
"""


def test_a_step_that_outlives_its_plan_keeps_the_folder(tmp_path: Path) -> None:
    plan = subprocess.Popen(
        [sys.executable, "-c", PLAN, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    assert plan.stderr is not None
    assert "begins" in plan.stderr.readline()
    time.sleep(0.3)
    children = subprocess.run(
        ["ps", "--ppid", str(plan.pid), "-o", "pid="], capture_output=True, text=True, check=True
    ).stdout.split()
    plan.kill()
    plan.wait()
    start: Start = Starter()
    with pytest.raises(TrainingError, match="a step of one that was killed"):
        run_steps([step(tmp_path, "a")], tmp_path, 1, start)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    time.sleep(0.2)
    plan.stderr.close()
    run_steps([step(tmp_path, "a")], tmp_path, 1, start)


def reported(folder: Path, name: str, **accuracy: object) -> Step:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"models": [{"accuracy": accuracy}]}))
    return Step(name, "bench", (), path, kind="measure")


def test_the_table_has_paper_ours_difference_interval_and_cost(tmp_path: Path) -> None:
    steps = [
        reported(tmp_path, "one", AP=0.70, AP50=0.9, AP_ci95=[0.69, 0.72]),
        reported(tmp_path, "two", AP=0.72, AP50=0.9),
        reported(tmp_path, "teacher", AP=0.75, AP_ci95=[0.74, 0.76]),
    ]
    ours = Target("6", "ours", {"AP": 76.2, "AP75": 82.8})
    rows = (Row(ours, ("one", "two"), ("t",)), Row(Target("teacher", "teacher"), ("teacher",)))
    given = Options("coco", TABLES["coco"][0], tmp_path, tmp_path, seeds=(1, 2))
    records = {"t": {"seconds": 7200.0, "gigabytes": 3.5}, "teacher": {"seconds": 36.0}}
    text = write_table(Plan(tuple(steps), rows), given, records)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    # mean 71.0, deviation sqrt(2), t(1) = 12.706: half a width of 12.706
    assert lines[2].startswith("| ours | 76.2 | 71.0 | -5.2 | 2 | 58.3 to 83.7 | 90.0 | - (82.8) |")
    assert lines[2].endswith("| 2.00 | 3.5 |")
    assert lines[3].startswith("| teacher | - | 75.0 | - | 1 | 74.0 to 76.0 |")
    assert text == (tmp_path / "table.md").read_text()
    content = json.loads((tmp_path / "table.json").read_text())
    (ap,) = [f for f in content["figures"] if f["row"] == "ours" and f["figure"] == "AP"]
    assert ap["difference"] == pytest.approx(-5.2)
    assert (ap["interval"], ap["seconds"], ap["gigabytes"]) == ("seeds", 7200.0, 3.5)
    csv = (tmp_path / "table.csv").read_text().splitlines()
    assert csv[0].startswith("row,figure,paper,ours,difference,seeds,low,high,interval,seconds")
    assert len(csv) == 1 + 3 + 1
    steps[0].output.write_text("{}")
    with pytest.raises(TrainingError, match="is no report of one model"):
        write_table(Plan(tuple(steps), rows), given, records)
