"""Decoder processes: what they answer, and that they come back."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import BackendError
from cfpose_sdk.media.image import read_image
from cfpose_sdk.serving import decoders as module
from cfpose_sdk.serving.decoder import decode
from cfpose_sdk.serving.decoders import DecoderOptions, Decoders, RefusedError

T = TypeVar("T")
ONE = DecoderOptions(processes=1, max_pixels=1_000_000)


def _run(work: Callable[[Decoders], Awaitable[T]], options: DecoderOptions = ONE) -> T:
    async def run() -> T:
        decoders = Decoders(options)
        try:
            await decoders.start()
            return await asyncio.wait_for(work(decoders), 60)
        finally:
            await decoders.close()

    return asyncio.run(run())


def _png(width: int, height: int, rows: int) -> bytes:
    """A grey PNG that says its size, and holds so many of its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes((width + 1) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_pixels_are_those_of_read_image(root: Path) -> None:
    photo = root / "examples" / "photos" / "street.jpg"
    image = _run(lambda decoders: decoders.decode(photo.read_bytes()))
    np.testing.assert_array_equal(image, read_image(photo))


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 400, "empty"),
        (b"no photo", 422, "not an image"),
        (_png(1, 1, 1), 422, "1 x 1 pixels; expected 16"),
        (_png(400, 15, 15), 422, "400 x 15"),
    ],
)
def test_refusals_say_why(data: bytes, status: int, said: str) -> None:
    image, answer = decode(data)
    assert image is None
    assert answer["status"] == status
    assert said in str(answer["detail"])


def test_a_truncated_photo_is_refused(root: Path) -> None:
    data = (root / "examples" / "photos" / "street.jpg").read_bytes()[:-5000]
    assert decode(data)[1]["status"] == 422


def test_pixels_are_counted_before_decoding() -> None:
    bomb = _png(20_000, 20_000, rows=1)  # says 400 megapixels

    async def work(decoders: Decoders) -> None:
        before = decoders.pids
        with pytest.raises(RefusedError, match="more than 1000000 pixels") as refused:
            await decoders.decode(bomb)
        assert refused.value.status == 413
        assert decoders.pids == before  # nobody had to die

    _run(work)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
def test_memory_is_bounded() -> None:
    large = _png(12_000, 12_000, rows=12_000)  # 432 MB as BGR

    async def work(decoders: Decoders) -> None:
        with pytest.raises(RefusedError) as refused:
            await decoders.decode(large)
        assert refused.value.status == 413
        assert "more memory" in refused.value.detail
        assert (await decoders.decode(_png(64, 64, 64))).shape == (64, 64, 3)

    _run(work, DecoderOptions(processes=1, memory_mb=200, max_pixels=200_000_000))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGSTOP")
def test_one_that_hangs_is_replaced() -> None:
    async def work(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RefusedError, match=r"not decoded within 0\.5 s") as refused:
            await decoders.decode(_png(64, 64, 64))
        assert refused.value.status == 422
        assert (await decoders.decode(_png(64, 64, 64))).shape == (64, 64, 3)
        assert pid not in decoders.pids
        assert decoders.ended == 1

    _run(work, DecoderOptions(processes=1, seconds=0.5))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_one_that_is_killed_comes_back_and_no_photo_is_lost() -> None:
    async def work(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGKILL)
        assert (await decoders.decode(_png(64, 64, 64))).shape == (64, 64, 3)
        assert len(decoders.pids) == 1
        assert pid not in decoders.pids

    _run(work)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGSTOP")
def test_a_caller_who_leaves_costs_no_process() -> None:
    async def work(decoders: Decoders) -> None:
        (pid,) = decoders.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(decoders.decode(_png(64, 64, 64)), 0.2)
        os.kill(pid, signal.SIGCONT)
        assert (await decoders.decode(_png(64, 64, 64))).shape == (64, 64, 3)
        assert decoders.pids == [pid]

    _run(work)


def test_one_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "false")

    async def work(decoders: Decoders) -> None:
        raise AssertionError("it started")

    with pytest.raises(BackendError, match="decode-memory"):
        _run(work)


def test_more_photos_than_processes() -> None:
    shades = [int(v) for v in np.linspace(0, 255, 9)]

    def photo(shade: int) -> bytes:
        return cv2.imencode(".png", np.full((32, 48, 3), shade, np.uint8))[1].tobytes()

    async def work(decoders: Decoders) -> list[np.ndarray]:
        return await asyncio.gather(*(decoders.decode(photo(shade)) for shade in shades))

    images = _run(work, DecoderOptions(processes=2))
    assert [int(image[0, 0, 0]) for image in images] == shades
