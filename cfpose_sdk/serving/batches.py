"""Images that wait together go through the estimator together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cfpose_sdk.media.image import Image
from cfpose_sdk.results import Poses

Predict = Callable[[Sequence[Image]], list[Poses]]


class Batches:
    """`poses = await batches.predict(image)`: at most `most` images a call of `predict_all`.

    One thread runs the calls, one after the other. It takes what waits when it is free and never
    waits for more, so that a lone image is not delayed. For one event loop.
    """

    def __init__(self, predict_all: Predict, most: int, on_batch: Callable[[int], None]) -> None:
        self._predict_all, self._most, self._on_batch = predict_all, most, on_batch
        self._waiting: deque[tuple[Image, asyncio.Future[Poses]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cfpose-model")
        self._task: asyncio.Task[None] | None = None

    async def predict(self, image: Image) -> Poses:
        """Poses of one image. One whose caller was cancelled while it waited is left out."""
        future: asyncio.Future[Poses] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, future))
        self._arrived.set()
        return await future

    async def start(self) -> None:
        """Begin to take images."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End; images that wait are cancelled. Waits for the call that runs."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for _, future in self._waiting:
            future.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._next()
            if not batch:
                self._arrived.clear()
                continue
            self._on_batch(len(batch))
            await self._answer(batch)

    def _next(self) -> list[tuple[Image, asyncio.Future[Poses]]]:
        batch: list[tuple[Image, asyncio.Future[Poses]]] = []
        while self._waiting and len(batch) < self._most:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch

    async def _answer(self, batch: list[tuple[Image, asyncio.Future[Poses]]]) -> None:
        images, futures = zip(*batch, strict=True)
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._predict_all, images)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, poses in zip(futures, results, strict=True):
            if not future.done():
                future.set_result(poses)
