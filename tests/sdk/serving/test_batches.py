"""Batches: what waits goes together, and nobody gets another's answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.serving.batches import Batches


class Model:
    """Answers each image with its first pixel; a call waits until it is let go."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, images: Sequence[Any]) -> Any:
        values = [int(image[0, 0, 0]) for image in images]
        self.calls.append(values)
        self.go.wait(10)
        if 99 in values:
            raise RuntimeError("the model broke")
        return values


def _image(value: int) -> Any:
    return np.full((2, 2, 3), value, np.uint8)


def _run(model: Model, work: Callable[[Batches], Awaitable[None]], sizes: list[int]) -> None:
    async def run() -> None:
        batches = Batches(model, 3, sizes.append)
        await batches.start()
        try:
            await asyncio.wait_for(work(batches), 20)
        finally:
            model.go.set()
            await batches.close()

    asyncio.run(run())


async def _called(model: Model, times: int) -> None:
    while len(model.calls) < times:
        await asyncio.sleep(0.001)


def test_what_waits_goes_together() -> None:
    model, sizes = Model(), list[int]()

    async def work(batches: Batches) -> None:
        first = asyncio.create_task(batches.predict(_image(1)))
        await _called(model, 1)  # a lone image is not kept waiting
        others = [asyncio.create_task(batches.predict(_image(n))) for n in range(2, 7)]
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(first, *others) == [1, 2, 3, 4, 5, 6]

    _run(model, work, sizes)
    assert model.calls == [[1], [2, 3, 4], [5, 6]]
    assert sizes == [1, 3, 2]


def test_one_that_gave_up_is_left_out() -> None:
    model, sizes = Model(), list[int]()

    async def work(batches: Batches) -> None:
        first = asyncio.create_task(batches.predict(_image(1)))
        await _called(model, 1)
        second = asyncio.create_task(batches.predict(_image(2)))
        third = asyncio.create_task(batches.predict(_image(3)))
        await asyncio.sleep(0)
        second.cancel()
        model.go.set()
        assert await asyncio.gather(first, third) == [1, 3]

    _run(model, work, sizes)
    assert model.calls == [[1], [3]]


def test_an_error_reaches_its_callers_and_no_later_one() -> None:
    model, sizes = Model(), list[int]()
    model.go.set()

    async def work(batches: Batches) -> None:
        with pytest.raises(RuntimeError, match="the model broke"):
            await batches.predict(_image(99))
        assert await batches.predict(_image(7)) == 7

    _run(model, work, sizes)
