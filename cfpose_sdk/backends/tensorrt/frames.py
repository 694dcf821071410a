"""Frames in a GPU's memory: uploaded once, and read by the finder's engine and the pose engine."""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.backends.base import HeldImage
from cfpose_sdk.backends.tensorrt.cuda import Bytes, DeviceMemory
from cfpose_sdk.errors import BackendError

_SPARE = 4  # buffers that wait for the next frame; a stream has about as many frames under way


@dataclass(frozen=True)
class Buffer:
    """Device memory for a frame."""

    address: int
    size: int


class FrameStore:
    """Uploads frames to one GPU. Threads may share it, and so may the engines of an estimator.

    A frame is copied into pinned memory and from there to the device; `hold` returns when it is
    there, so that any stream may read it. Memory goes back when the last user has left and the last
    image was let go, and at the latest when the store itself is.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.uploads = 0
        # entered again where the garbage collector lets an image go in the middle of it
        self._lock = threading.RLock()
        self._users = 0
        self._spare: list[Buffer] = []
        self._pinned: Bytes | None = None
        self._stream: int | None = None

    def join(self) -> FrameStore:
        """Count one more user."""
        with self._lock:
            self._users += 1
        return self

    def leave(self) -> None:
        """Count one user less; the last frees what is not held."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._free_all()

    def hold(self, image: NDArray[np.uint8]) -> HeldImage:
        """Upload an image. Raises BackendError, and keeps nothing, when the device fails."""
        with self._lock, self.memory.current():
            buffer = self._buffer(image.nbytes)
            try:
                self._upload(image, buffer)
            except BaseException:
                with contextlib.suppress(BackendError):
                    self._free_staging()  # a copy may still run in it
                with contextlib.suppress(BackendError):
                    self.memory.free(buffer.address)
                raise
            self.uploads += 1
        return HeldImage(image, self, buffer, self._give_back)

    def adopt(self, image: GpuImage) -> HeldImage:
        """Hold an image in others' memory; nothing is copied.

        It returns when the image is finished there, so that any stream may read it, and keeps it
        from being freed. Raises ImageError when it is not on this GPU.
        """
        with self.memory.current():
            self.memory.receive(image.address, image.stream)
        return HeldImage(image, self, Buffer(image.address, math.prod(image.shape)), _let_go)

    def _upload(self, image: NDArray[np.uint8], buffer: Buffer) -> None:
        memory, size = self.memory, image.nbytes
        if self._stream is None:
            self._stream = memory.open_stream()
        if self._pinned is not None and len(self._pinned) < size:
            pinned, self._pinned = self._pinned, None
            memory.unpin(pinned)
        if self._pinned is None:
            self._pinned = memory.pin(size)
        staged = self._pinned[:size]
        staged.reshape(image.shape)[...] = image
        memory.upload(buffer.address, staged, self._stream)
        memory.wait(self._stream)

    def _buffer(self, size: int) -> Buffer:
        """The smallest spare one that is large enough, else a new one."""
        fitting = [spare for spare in self._spare if spare.size >= size]
        if fitting:
            chosen = min(fitting, key=lambda spare: spare.size)
            self._spare.remove(chosen)
            return chosen
        while self._spare:  # of smaller frames than now come
            self.memory.free(self._spare.pop().address)
        return Buffer(self.memory.allocate(size), size)

    def _give_back(self, buffer: Buffer) -> None:
        with self._lock:
            if self._users and len(self._spare) < _SPARE:
                self._spare.append(buffer)
                return
            with contextlib.suppress(BackendError), self.memory.current():
                self.memory.free(buffer.address)

    def _free_all(self) -> None:
        """Free everything also when some of it fails; then the last failure is raised."""
        with self.memory.current(), contextlib.ExitStack() as stack:
            stack.callback(self._free_staging)
            while self._spare:
                stack.callback(self.memory.free, self._spare.pop().address)

    def _free_staging(self) -> None:
        stream, self._stream = self._stream, None
        pinned, self._pinned = self._pinned, None
        with contextlib.ExitStack() as stack:
            if pinned is not None:
                stack.callback(self.memory.unpin, pinned)
            if stream is not None:
                stack.callback(self.memory.close_stream, stream)
                with contextlib.suppress(BackendError):  # a lost device cannot be waited for
                    self.memory.wait(stream)


def _let_go(buffer: Buffer) -> None:
    """Others' memory is theirs to free."""
    del buffer
