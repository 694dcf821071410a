"""Run the steps of a plan: several side by side, each recorded when done, resumed where it stopped.

Every step is a process of its own. Ctrl-C and SIGTERM are handed on to the steps under way, which
save their state; the same command then goes on.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.files import write_file
from cfpose_training.reproduce.plan import Step
from cfpose_training.run.loop import LOG_FILE

JOURNAL_FILE = "plan.json"
LOCK_FILE = "plan.lock"
LOGS = "logs"
CODE = "import sys; from cfpose_sdk.commands import {0}; sys.exit({0}())"
MEMORY_COLUMN = "memory_gb"  # of a run's log, where it trains on a GPU
TAIL = 15  # lines of a failed step's log

# step, its device's number, descriptors that it keeps open -> its process
Start = Callable[[Step, int, Sequence[int]], subprocess.Popen[bytes]]


@dataclass
class Journal:
    """The steps that are done, kept in a file: arguments, seconds and gigabytes of each."""

    path: Path
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(folder: Path) -> Journal:
        """The journal of a folder, which need not be there yet."""
        path = folder / JOURNAL_FILE
        records = json.loads(path.read_bytes()) if path.is_file() else {}
        return Journal(path, records)

    def is_done(self, step: Step) -> bool:
        """Whether a step was run to its end, and its file is still there.

        Raises TrainingError when it was run with other arguments.
        """
        record = self.records.get(step.name, {})
        if not record.get("done"):
            return False
        if record["arguments"] != list(step.arguments):
            raise TrainingError(
                f"{self.path.parent} holds another plan: its step {step.name!r} was "
                f"{shlex.join(record['arguments'])}, now {shlex.join(step.arguments)}; give "
                f"another --out, or the options of then"
            )
        return step.output.is_file()

    def add(self, step: Step, seconds: float, gigabytes: float, *, done: bool) -> None:
        """Record a step that ended; seconds of interrupted tries are kept and added."""
        with self.lock:
            before = self.records.get(step.name, {})
            again = not before.get("done", False)
            self.records[step.name] = {
                "arguments": list(step.arguments),
                "command": step.command,
                "done": done,
                "seconds": round(seconds + (before.get("seconds", 0.0) if again else 0.0), 1),
                "gigabytes": round(max(gigabytes, before.get("gigabytes", 0.0)), 3),
            }
            write_file(self.path, json.dumps(self.records, indent=1) + "\n")


def run_steps(
    steps: Sequence[Step], folder: Path, devices: int = 1, start: Start | None = None
) -> Journal:
    """Run what is not done yet, `devices` steps side by side; returns the journal.

    Raises TrainingError when a step fails, when the folder is in use or holds another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _folder_lock(folder) as lock:
        journal = Journal.open(folder)
        done = {step.name for step in steps if journal.is_done(step)}
        _Run(steps, journal, folder, devices, lock, start or _start_in(folder, devices)).run(done)
    return journal


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[int]:
    """A locked descriptor. Steps inherit it, so one that outlives its plan keeps the folder."""
    descriptor = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(
                f"another reproduce works in {folder}, or a step of one that was killed; wait for "
                f"it or end it, or give another --out"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass
class _Run:
    steps: Sequence[Step]
    journal: Journal
    folder: Path
    devices: int
    lock: int
    start: Start
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopping: bool = False

    def run(self, done: set[str]) -> None:
        """Start each step when those that it needs are done and a device is free."""
        free = list(range(self.devices))
        waiting: dict[Future[None], tuple[Step, int]] = {}
        started = set(done)
        with ThreadPoolExecutor(self.devices) as pool:
            try:
                while len(done) < len(self.steps):
                    for step in self.steps:
                        if free and step.name not in started and done.issuperset(step.needs):
                            started.add(step.name)
                            device = free.pop(0)
                            self._say(f"{self._place(step)} begins: {step.command}")
                            waiting[pool.submit(self._one, step, device)] = step, device
                    ended = wait(waiting, return_when=FIRST_COMPLETED).done
                    for future in ended:
                        step, device = waiting.pop(future)
                        future.result()
                        done.add(step.name)
                        free.append(device)
            except BaseException:
                self._stop()
                raise

    def _place(self, step: Step) -> str:
        number = [each.name for each in self.steps].index(step.name) + 1
        return f"step {number} of {len(self.steps)}, {step.name},"

    def _one(self, step: Step, device: int) -> None:
        """Run a step to its end. Raises TrainingError when it fails."""
        step.output.parent.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        process = self.start(step, device, [self.lock])
        self.running[step.name] = process
        if self.stopping:
            process.send_signal(signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        del self.running[step.name]
        good = process.returncode == 0 and step.output.is_file()
        seconds = time.monotonic() - begun
        gigabytes = _logged_memory(step) or usage.ru_maxrss * 1024 / 1e9
        self.journal.add(step, seconds, gigabytes, done=good)
        if good:
            self._say(f"{self._place(step)} is done after {seconds:.0f} s")
        elif not self.stopping:
            raise TrainingError(self._failure(step, process.returncode))

    def _failure(self, step: Step, code: int) -> str:
        log = self.folder / LOGS / f"{step.name.replace('/', '-').replace(' ', '-')}.log"
        if log.is_file():
            text = log.read_text(errors="replace").splitlines()[-TAIL:]
            print("\n".join(text), file=sys.stderr, flush=True)
        ended = f"with code {code}" if code else f"without {step.output}"
        return (
            f"the step {step.name!r} ended {ended}; what it said is above; its command was: "
            f"{step.command}; once that is mended, the same reproduce command goes on"
        )

    def _stop(self) -> None:
        """Ask the steps under way to save their state and end, and wait for them.

        By SIGTERM, which commands take as Ctrl-C: SIGINT is ignored below a shell's `&`.
        """
        self.stopping = True
        for process in list(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        if self.running:
            self._say("asked the steps under way to save their state; waiting for them")

    def _say(self, text: str) -> None:
        print(f"cfpose-train: {text}", file=sys.stderr, flush=True)


def _logged_memory(step: Step) -> float:
    """The most GB of a GPU that a run's log names; 0 where it names none."""
    log = step.output.parent / LOG_FILE
    if step.recipe is None or not log.is_file():
        return 0.0
    with log.open(newline="") as file:
        values = [row.get(MEMORY_COLUMN) or 0.0 for row in csv.DictReader(file)]
    return max(map(float, values), default=0.0)


def _start_in(folder: Path, devices: int) -> Start:
    """Start a step: beside others into a log file, alone onto the terminal."""

    def start(step: Step, device: int, keep: Sequence[int]) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", CODE.format(step.program), *step.arguments, *step.settings]
        with contextlib.ExitStack() as opened:
            target = None
            if devices > 1:
                log = folder / LOGS / f"{step.name.replace('/', '-').replace(' ', '-')}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                target = opened.enter_context(log.open("ab"))
            return subprocess.Popen(
                words, stdout=target or sys.__stderr__, stderr=target, stdin=subprocess.DEVNULL,
                env=_environment(device, devices), pass_fds=keep,
                process_group=0,  # Ctrl-C reaches the plan alone, which hands it on once
            )  # fmt: skip

    return start


def _environment(device: int, devices: int) -> Mapping[str, str]:
    """Beside others a step sees its own GPU alone."""
    if devices == 1:
        return os.environ
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(number) for number in range(devices)]
    return {**os.environ, "CUDA_VISIBLE_DEVICES": names[device % len(names)]}
