"""A camera or address that is lost and opened again: its frames go on, its people begin anew."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from cfpose_sdk.errors import InputError
from cfpose_sdk.media.frames import Footage, Frame, Item, Unread

_FIRST_PAUSE_S = 0.25
# shorter than a closing stream waits for the thread that reads
_LONGEST_PAUSE_S = 2.0


def reconnecting(
    first: Footage, open_again: Callable[[], Footage], label: str, patience_s: float
) -> Footage:
    """Live footage that is opened again whenever it ends, each time for up to `patience_s`.

    The pauses between two tries double, up to 2 seconds. Frames go on to be counted, and their
    times count from the very first one; those after a gap are of another `take`. Each gap is a
    RuntimeWarning. The last item is an Unread: nobody answered in time, or frames of another size
    came back.
    """
    run = _Takes(first, open_again, label, patience_s)
    items = run.items()

    def close() -> None:
        items.close()
        run.footage.close()  # also when the generator never started

    return replace(first, items=items, close=close)


class _Takes:
    def __init__(
        self, first: Footage, open_again: Callable[[], Footage], label: str, patience_s: float
    ) -> None:
        self.footage, self._open, self._label = first, open_again, label
        self._patience_s = patience_s
        self._count = 0
        self._shape: tuple[int, ...] | None = None
        self._begun: float | None = None

    def items(self) -> Generator[Item, None, None]:
        try:
            for take in itertools.count():
                lost = yield from self._take(take)
                self.footage.close()
                if lost is not None:
                    yield lost
                    return
                problem = self._reopen()
                if problem is not None:
                    yield problem
                    return
        finally:
            self.footage.close()

    def _take(self, take: int) -> Generator[Item, None, Unread | None]:
        """The frames until the next gap; returns what ends the whole, or None."""
        for item in self._until_lost():
            if self._shape not in (None, item.image.shape):
                return Unread(
                    InputError(f"{self._label} came back with another frame size; open it again")
                )
            self._shape = item.image.shape
            now = time.monotonic()
            self._begun = now if self._begun is None else self._begun
            stem = (item.name or "").rpartition("-")[0]
            yield replace(
                item,
                name=f"{stem}-{self._count:06d}",
                number=self._count,
                time_s=now - self._begun,
                take=take,
            )
            self._count += 1
        return None

    def _until_lost(self) -> Iterator[Frame]:
        for item in self.footage.items:
            if isinstance(item, Unread):  # of live footage: it ended
                return
            yield item

    def _reopen(self) -> Unread | None:
        """Open the source again; an Unread when that took too long."""
        lost_at, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            left = lost_at + self._patience_s - time.monotonic()
            if left <= 0:
                return Unread(
                    InputError(
                        f"{self._label} was lost after {self._count} frames, and did not answer "
                        f"again within {self._patience_s:g} s; open it again"
                    )
                )
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            try:
                self.footage = self._open()
            except InputError:
                continue
            warnings.warn(
                f"{self._label} was lost after {self._count} frames and is there again after "
                f"{time.monotonic() - lost_at:.1f} s; people get new numbers",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
