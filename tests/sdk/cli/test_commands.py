"""The console commands' common boundary: one line, an exit code."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

import pytest

from cfpose_sdk import commands
from cfpose_sdk.commands import Console, watched
from cfpose_sdk.errors import BackendError, InputError, MissingDependencyError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("two\nlines"), 2),
        (MissingDependencyError("run pip"), 2),
        (BackendError("no"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
@pytest.mark.parametrize("name", ["cfpose", "train", "export", "bench"])
def test_every_command_has_the_same_error_boundary(
    name: str,
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def import_module(module: str) -> object:
        asked.append(module)
        raise error

    monkeypatch.setattr("cfpose_sdk.commands.importlib.import_module", import_module)
    assert getattr(commands, name)() == code
    package = (
        "cfpose_sdk"
        if name == "cfpose"
        else {"train": "cfpose_training", "export": "cfpose_export", "bench": "cfpose_bench"}[name]
    )
    assert asked == [f"{package}.cli"]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(module: str) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr("cfpose_sdk.commands.importlib.import_module", import_module)
    with pytest.raises(ZeroDivisionError):
        commands.cfpose()


_PRINTS = """
import sys, types
from pathlib import Path
from cfpose_sdk import commands
def main(arguments):
    print("\\u7167")
    out = Path(sys.argv[1]).open("w")
    print("again", flush=True)
    print("warning \\u7167", file=sys.stderr)
    out.write("whole")
    out.close()
    return 0
module = types.ModuleType("cfpose_sdk.cli")
module.main = main
sys.modules["cfpose_sdk.cli"] = module
sys.exit(commands.cfpose())
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "console", [">&-", "2>&-", ">&- 2>&-", ">/dev/full 2>/dev/full", "| true", "<&- >&- 2>&-"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_console_never_decides_a_run(console: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(_PRINTS)
    run = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" prints.py out.txt {console}', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0
    assert (tmp_path / "out.txt").read_text() == "whole"
    assert b"Traceback" not in run.stderr
    assert b"Exception" not in run.stderr


def test_a_letter_that_the_console_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding="cp1252"))
    print("\u7167.jpg", file=console)
    console.flush()
    assert raw.getvalue().rstrip() == b"\\u7167.jpg"
    assert not Console(None).isatty()


class Cell(io.StringIO):
    """Stands for the stream of a notebook's cell, which is no terminal."""


Cell.__module__ = "ipykernel.iostream"


def test_bars_are_for_terminals_and_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(Cell())
    assert watched(cast("TextIO", Console(Cell())))  # as a command's own stream is
    assert not watched(io.StringIO())
    closed = io.StringIO()
    closed.close()
    assert not watched(closed)
    monkeypatch.setattr(sys, "stderr", Cell())
    assert watched()
    monkeypatch.setattr(sys, "stderr", None)
    assert not watched()


@pytest.fixture
def ended_by(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal at its default, whatever this process was started with: nohup ignores SIGHUP."""
    number: signal.Signals = getattr(signal, request.param)
    before = signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("ended_by", ["SIGTERM", "SIGHUP"], indirect=True)
def test_asked_to_end_is_cleaned_up_as_ctrl_c_is(
    ended_by: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number, name = ended_by, ended_by.name
    cleaned: list[bool] = []

    class Module:
        @staticmethod
        def main(arguments: list[str]) -> int:
            try:
                os.kill(os.getpid(), number)
                signal.sigtimedwait([], 5)
            except KeyboardInterrupt:
                os.kill(os.getpid(), number)  # an impatient second one
                cleaned.append(True)
                raise
            return 0

    monkeypatch.setattr(
        "cfpose_sdk.commands.importlib.import_module",
        lambda module: Module,
    )
    assert commands.cfpose() == 128 + number
    assert cleaned == [True]
    assert capsys.readouterr().err == f"cfpose: ended by {name}\n"
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("ended_by", ["SIGTERM"], indirect=True)
def test_what_a_library_makes_of_the_signal_is_still_the_signal(
    ended_by: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Module:
        @staticmethod
        def main(arguments: list[str]) -> int:
            try:
                os.kill(os.getpid(), ended_by)
                signal.sigtimedwait([], 5)
            except KeyboardInterrupt as error:  # as the import of a compiled module may
                raise ImportError("initialization failed") from error
            return 0

    monkeypatch.setattr("cfpose_sdk.commands.importlib.import_module", lambda module: Module)
    assert commands.cfpose() == 143
    assert capsys.readouterr().err == "cfpose: ended by SIGTERM\n"


_INTERRUPTED = """
import atexit, sys, time
from cfpose_sdk import commands
class Module:
    @staticmethod
    def main(arguments):
        raise KeyboardInterrupt
def leave():  # as PyTorch's and onnxruntime's own ends
    print("leaving", flush=True)
    time.sleep(60)
atexit.register(leave)
commands.importlib.import_module = lambda name: Module
sys.exit(commands.cfpose())
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_second_ctrl_c_while_leaving_ends_without_a_traceback() -> None:
    started = [sys.executable, "-c", _INTERRUPTED]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"leaving\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stderr.read() == b"cfpose: interrupted\n"
