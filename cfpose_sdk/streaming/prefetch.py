"""Run an iterator in a thread, a bounded number of items ahead of its reader."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
JOIN_S = 5.0  # a thread that is held longer by a device ends when the device lets go


class Prefetcher(Generic[T]):
    """The items of `items` in order, made in a thread; at most `size` of them wait.

    An error of the thread is raised here, after the items before it. `close` stops the thread; the
    thread closes `items` if it is a generator.
    """

    def __init__(self, items: Iterator[T], size: int, name: str) -> None:
        self._items, self._size = items, size
        self._ready: deque[T] = deque()
        self._change = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._change:
            while not (self._ready or self._ended or self._closed):
                self._change.wait()
            if self._closed:
                raise StopIteration
            if self._ready:
                item = self._ready.popleft()
                self._change.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop the thread, and wait until it has ended, or for `JOIN_S` seconds."""
        with self._change:
            self._closed = True
            self._ready.clear()
            self._change.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            while self._make_one():
                pass
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _make_one(self) -> bool:
        """Make the next item when there is room; False at the end."""
        with self._change:
            while len(self._ready) >= self._size and not self._closed:
                self._change.wait()
            closed = self._closed
        try:
            if closed:
                close = getattr(self._items, "close", None)
                if close is not None:
                    close()
                return False
            item = next(self._items)
        except StopIteration:
            return False
        except BaseException as error:  # raised again where the items are read
            self._error = error
            return False
        with self._change:
            if not self._closed:
                self._ready.append(item)
                self._change.notify_all()
        return True
