"""The console commands; here errors become messages and exit codes.

0 success, 1 a check failed, 2 wrong use or bad input, 130 interrupted, 143 asked to end. The
console decides nothing: without one, with one that lacks a letter, or whose reader has gone, the
work goes on, and the code is about the work alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from cfpose_sdk.errors import CfposeError


def cfpose() -> int:
    """`cfpose predict|serve|bulk|tune|doctor`."""
    return _run("cfpose", "cfpose_sdk.cli")


def train() -> int:
    """`cfpose-train`, of the extra train."""
    return _run("cfpose-train", "cfpose_training.cli")


def export() -> int:
    """`cfpose-export`, of the extra export."""
    return _run("cfpose-export", "cfpose_export.cli")


def bench() -> int:
    """`cfpose-bench`, of the extra bench."""
    return _run("cfpose-bench", "cfpose_bench.cli")


def number(
    low: float, high: float = math.inf, *, whole: bool = False
) -> Callable[[str], float | int]:
    """A type of argparse's arguments: a number from `low` to `high`; NaN lies in no range."""

    def read(text: str) -> float | int:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            bounds = f"of {low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {kind} {bounds}")
        return value

    return read


def watched(stream: TextIO | None = None) -> bool:
    """Whether somebody sees what is written to `stream`, by itself stderr, as it comes.

    So it is on a terminal and below the cell of a notebook: a bar that redraws its line suits both.
    """
    stream = sys.stderr if stream is None else stream
    stream = stream._stream if isinstance(stream, Console) else stream
    if stream is None or stream.closed:
        return False
    return stream.isatty() or type(stream).__module__.partition(".")[0] == "ipykernel"


def _run(command: str, module: str) -> int:
    with _console(), _end_signals() as asked, _plain_warnings(command):
        try:
            return int(importlib.import_module(module).main(sys.argv[1:]))
        except (Exception, KeyboardInterrupt) as error:
            # a library that the signal met may have made another error of it
            if asked:
                _end_at_next_interrupt()
                print(f"{command}: ended by {signal.Signals(asked[0]).name}", file=sys.stderr)
                return 128 + asked[0]
            if isinstance(error, KeyboardInterrupt):
                _end_at_next_interrupt()
                print(f"{command}: interrupted", file=sys.stderr)
                return 130
            if isinstance(error, CfposeError):
                print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
                return 2
            raise


def _end_at_next_interrupt() -> None:
    """Everything is cleaned up: another Ctrl-C ends the process, without what Python would print of
    the libraries that it met at their exit.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def _plain_warnings(command: str) -> Iterator[None]:
    """What cfpose warns of as one line, without the place in its code; other warnings as ever."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is RuntimeWarning and file is None:
            print(f"{command}: warning: {message}", file=sys.stderr)
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextlib.contextmanager
def _end_signals() -> Iterator[list[int]]:
    """SIGTERM (docker stop, a batch system) and SIGHUP (a closed terminal) as Ctrl-C.

    One that is ignored, as nohup has it, or handled already stays so. The list holds the signal
    once it has come.
    """
    asked: list[int] = []
    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [n for n in numbers if n is not None and signal.getsignal(n) == signal.SIG_DFL]

    def end(number: int, _: object) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the cleaning short
        asked.append(number)
        raise KeyboardInterrupt

    for number in taken:
        signal.signal(number, end)
    try:
        yield asked
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _console() -> Iterator[None]:
    """stdout and stderr that never raise, whatever the process was started with."""
    _fill_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", Console(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _fill_closed() -> None:
    """Put the null device where 0, 1 or 2 is closed: else the next file that is opened, a result
    say, would get the number and with it what a library prints there.
    """
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)


class Console:
    """A stream of the console; letters that it lacks are escaped, and it falls silent once its
    reader has gone, its disk is full, or where there is none.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = io.StringIO() if stream is None else stream
        self._silent = stream is None
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Print; returns the number of letters."""
        if not self._silent:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # ValueError: it was closed
                self._fall_silent()
        return len(text)

    def flush(self) -> None:
        """Print what waits."""
        if not self._silent:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._fall_silent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fall_silent(self) -> None:
        """Also for what Python flushes at its exit, which it would complain of."""
        self._silent = True
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
