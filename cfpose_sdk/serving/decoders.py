"""Decoder processes with a time limit; one that dies or hangs is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.media.image import Image

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_START_S = 60.0
_TRIES = 2  # a process may have been killed for another reason than its photo
_STARTS = 5


class RefusedError(InputError):
    """A request that is not answered with poses: its HTTP status, and why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class DecoderOptions:
    """`processes` decode at the same time, each with its limits of seconds, MiB and pixels."""

    processes: int = 2
    seconds: float = 5.0
    memory_mb: int = 1024
    max_pixels: int = 32_000_000


class Decoders:
    """`image = await decoders.decode(data)`. For one event loop."""

    def __init__(self, options: DecoderOptions) -> None:
        self._options = options
        self._idle: asyncio.Queue[asyncio.subprocess.Process | None] = asyncio.Queue()
        self._alive: set[asyncio.subprocess.Process] = set()
        self._tasks: set[asyncio.Task[Image]] = set()
        self.ended = 0  # processes that died or were killed

    async def start(self) -> None:
        """Start all processes. Raises BackendError when one does not start."""
        for _ in range(self._options.processes):
            self._idle.put_nowait(await self._spawn())

    @property
    def pids(self) -> list[int]:
        """Of the processes that live."""
        return sorted(process.pid for process in self._alive if process.returncode is None)

    async def decode(self, data: bytes) -> Image:
        """Pixels of a picture's file. Raises RefusedError.

        A caller who is cancelled leaves the process to finish: it need not be replaced.
        """
        task = asyncio.create_task(self._decode(data))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Image]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even where its caller has gone

    async def close(self) -> None:
        """Kill all processes."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in list(self._alive):
            await self._end(process)

    async def _decode(self, data: bytes) -> Image:
        for _ in range(_TRIES):
            process = await self._idle.get()
            sound = False
            try:
                if process is None or process.returncode is not None:
                    await self._end(process)
                    process = await self._respawn()
                said, image = await asyncio.wait_for(
                    _exchange(process, data), self._options.seconds
                )
                sound = True
            except TimeoutError:
                text = f"the photo was not decoded within {self._options.seconds:g} s"
                raise RefusedError(422, f"{text}; send it as a JPEG or PNG, or smaller") from None
            except (asyncio.IncompleteReadError, ConnectionError):
                continue
            finally:
                if not sound:
                    await self._end(process)
                # the next photo starts another in the place of one that was ended
                self._idle.put_nowait(process if sound else None)
            if image is None:
                raise RefusedError(said["status"], said["detail"])
            return image
        raise RefusedError(422, "the photo ended the process that decoded it; is it damaged?")

    async def _respawn(self) -> asyncio.subprocess.Process:
        """`_spawn`, several times: processes may be killed while they start."""
        for _ in range(_STARTS):
            with contextlib.suppress(BackendError):
                return await self._spawn()
        raise RefusedError(503, "no decoder process starts; try again later")

    async def _spawn(self) -> asyncio.subprocess.Process:
        """A process that has answered once. Raises BackendError."""
        pixels = {"OPENCV_IO_MAX_IMAGE_PIXELS": str(self._options.max_pixels)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cfpose_sdk.serving.decoder", str(self._options.memory_mb),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD, **pixels},
            start_new_session=True,  # Ctrl-C is for the server, which ends them
        )  # fmt: skip
        self._alive.add(process)
        try:  # its imports take a while, which is no photo's fault
            await asyncio.wait_for(_exchange(process, b""), _START_S)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            await self._end(process)
            raise BackendError(
                f"a decoder process does not start within {_START_S:g} s with "
                f"{self._options.memory_mb} MiB; give it more with --decode-memory"
            ) from error
        except BaseException:
            await self._end(process)
            raise
        return process

    async def _end(self, process: asyncio.subprocess.Process | None) -> None:
        if process is None:
            return
        if process in self._alive:
            self._alive.discard(process)
            self.ended += 1
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        if process.stdout is not None:  # to its end, so that nothing of the pipe stays open
            with contextlib.suppress(ConnectionError):
                await process.stdout.read()
        await process.wait()


async def _exchange(
    process: asyncio.subprocess.Process, data: bytes
) -> tuple[dict[str, Any], Image | None]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise ConnectionError("the process has no pipes")
    stdin.write(len(data).to_bytes(8, "big"))
    stdin.write(data)
    await stdin.drain()
    size = int.from_bytes(await stdout.readexactly(8), "big")
    said: dict[str, Any] = json.loads(await stdout.readexactly(size))
    if "shape" not in said:
        return said, None
    height, width, channels = said["shape"]
    pixels = await stdout.readexactly(height * width * channels)
    return said, np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
