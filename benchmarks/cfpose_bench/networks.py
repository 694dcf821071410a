"""How long the networks of this process run: wall time inside `Backend.run`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from numpy.typing import NDArray

from cfpose_sdk.backends import Backend
from cfpose_sdk.backends.base import Feeds


@dataclass
class NetworkClock:
    """Milliseconds and number of the runs of all opened models so far."""

    ms: float = 0.0
    runs: int = 0


@contextmanager
def network_clock() -> Iterator[NetworkClock]:
    """Time every `Backend.run` of this process while the block lasts.

    Inside the very calls that are measured, so with the same inputs and the same cold caches. What
    the runtime does to take its inputs and to hand out its outputs counts as network.
    """
    clock, plain = NetworkClock(), Backend.run

    def run(self: Backend, feeds: Feeds) -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        try:
            return plain(self, feeds)
        finally:
            clock.ms += (time.perf_counter() - start) * 1e3
            clock.runs += 1

    with mock.patch.object(Backend, "run", run):
        yield clock
