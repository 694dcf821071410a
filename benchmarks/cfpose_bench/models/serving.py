"""Run a cfpose artifact or MoveNet behind a pipe, in a process of its own.

`python -m cfpose_bench.models.serving OPTIONS`, options as JSON; `ProcessWorker` starts it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.models.base import plain_poses
from cfpose_bench.models.open import OpenModel, open_model, parse_name
from cfpose_bench.peers.serve import Record, UnreadableError, pin, serve
from cfpose_sdk.backends import Backend
from cfpose_sdk.backends.base import Feeds
from cfpose_sdk.errors import ImageError, InputError
from cfpose_sdk.media.image import read_image


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


class ServedModel:
    """An open model that returns plain values; the other end is a `ProcessWorker`."""

    def __init__(self, opened: OpenModel) -> None:
        self.opened = opened
        self.facts: Record = {
            "skeleton": dataclasses.asdict(opened.facts.skeleton),
            "precision": opened.facts.precision,
            "provider": opened.facts.provider,
            "size_wh": opened.facts.size_wh,
            "one_stage": opened.facts.one_stage,
            "flips_inside": opened.facts.flips_inside,
            "calibration": opened.facts.calibration,
        }

    def predict(self, image: str, boxes: Any) -> Record:
        """Poses of the photo at a path."""
        try:
            poses = self.opened.model.predict(image, boxes=boxes)
        except ImageError as error:
            raise UnreadableError(str(error)) from error
        return plain_poses(poses)

    @contextmanager
    def prepared(self, image: str, boxes: Any, people: int) -> Iterator[Callable[[], Record]]:
        """`predict` of the decoded photo; its stages, and `networks`: ms inside their runs."""
        try:
            frame = read_image(image)
        except ImageError as error:
            raise UnreadableError(str(error)) from error
        finder, model = self.opened.finder, self.opened.model
        if boxes is None and finder is None:
            raise InputError("people are to be found, and this worker has no finder")
        given = None if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        with network_clock() as clock:

            def call() -> Record:
                before = clock.ms
                poses = model.predict(frame, boxes=given)
                return {**poses.speed_ms, "networks": clock.ms - before, "people": len(poses)}

            if finder is not None:
                finder.people = people
            try:
                yield call
            finally:
                if finder is not None:
                    finder.people = None


def main(options: Record) -> int:
    """Serve until the pipe is closed."""
    pin(options["cpus"], options["threads"])
    return serve(
        lambda: ServedModel(
            open_model(
                parse_name(options["model"]),
                find=options["find"],
                detector=options["detector"],
                device=options["device"],
                threads=options["threads"],
                flip_test=options["flip_test"],
                precision=options["precision"],
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
