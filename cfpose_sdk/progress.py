"""A line that tells how far a command is, on a terminal only."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_WIDTH = 30
_EVERY_S = 0.1


class Progress:
    """`with Progress("clip.mp4", 340) as line: line.step()`. Prints nothing when piped."""

    def __init__(self, label: str, total: int | None, stream: TextIO | None = None) -> None:
        self._label, self._total = label, total
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._begun = time.monotonic()
        self._drawn = 0.0
        self._done = 0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if self._shown and (now - self._drawn >= _EVERY_S or self._done == self._total):
            self._drawn = now
            self._stream.write(f"\r\x1b[K{self._text(now)}")
            self._stream.flush()

    def clear(self) -> None:
        """Wipe the line, for something else to be printed there."""
        if self._shown and self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _text(self, now: float) -> str:
        rate = self._done / max(1e-6, now - self._begun)
        if not self._total:
            return f"{self._label}  {self._done}  {rate:.1f}/s"
        share = min(1.0, self._done / self._total)
        bar = "#" * round(share * _WIDTH)
        left = max(0, self._total - self._done) / rate
        return (
            f"{self._label}  [{bar:<{_WIDTH}}] {self._done}/{self._total}  {rate:.1f}/s  "
            f"{left:.0f} s left"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
