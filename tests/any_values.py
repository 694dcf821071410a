"""Values of every kind, drawn from a seed: arrays, boxes, paths, JSON, damaged records and files.

A property test draws a seed and makes its value of it here. That takes a tenth of the time of
drawing the value piece by piece; what is lost is that a failure is shown as it was drawn, not in
its smallest form.
"""

from __future__ import annotations

import copy
import os
import random
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1).map(random.Random)
DTYPES = (
    "u1", "u1", "u1", "i1", "u2", "<i8", ">i4", "f2", "<f4", ">f4", "f8", "g", "c8", "?", "O", "S3",
    "U2", "M8[s]", "m8[D]", "V4",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 4, 300, 2**31, 2**63, 2**64, 10**400, 0.5, 1.0, -0.0, 1e-45, 1e-308, 3e38, 1e39,
    1e308, -1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
ODDITIES = (None, True, False, "", "1", "x", b"", b"1", 1j, Decimal("NaN"), {}, set(), object())
PIECES = (
    "a.png", "b.jpg", "d", "v.avi", "t.mp4", "e.jpg", ".", "..", "*", "?", "[", "]", "[!a]", "\0",
    "/", "x" * 300, "~", "$HOME", " ", "\n", "\r", "é", "\ud800", "\udcff", ".jpg", ".mp4", "//",
    "://", "http:", "file:", "concat:", "%", "%00", "%d", "\\", "{", "\x1b[0m", "😀", "\u202e", ":",
    "-1", "dead", "loop", "#", "?x=1", "-o", "NUL", "\ufffe",
)  # fmt: skip


def draws(count: int) -> settings:
    """So many examples; the files that a test writes anew each time are its fixture's."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, suppress_health_check=health)


def any_number(rng: random.Random) -> Any:
    """A float or whole number, often an extreme one."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return struct.unpack("<d", rng.randbytes(8))[0]
    return rng.uniform(-60, 60) if kind == 2 else rng.randint(-60, 60)


def any_array(rng: random.Random) -> np.ndarray:
    """An array of any type, shape, content and strides; what is huge repeats one number."""
    dtype = np.dtype(rng.choice(DTYPES))
    if rng.random() < 0.5:
        shape = (rng.randrange(12), rng.randrange(12), rng.randrange(6))
    else:
        shape = tuple(rng.randrange(5) for _ in range(rng.randrange(6)))
    kind = rng.choice(("zeros", "noise", "repeated", "huge", "backwards", "fortran", "matrix"))
    if kind == "huge":
        huge = ((1 << 20, 1 << 20, 3), (1 << 40, 1, 3), (1, 1 << 31, 3), (1 << 31, 4), (1 << 40,))
        return np.broadcast_to(np.zeros((), dtype), rng.choice(huge))
    if kind == "repeated":
        return np.broadcast_to(np.ones((), dtype), shape)
    array = np.zeros(shape, dtype)
    if kind == "noise" and dtype.kind != "O" and array.size:
        return np.frombuffer(rng.randbytes(array.nbytes), dtype).reshape(shape)
    if kind == "backwards" and array.ndim:
        return array[::-1, ..., ::2] if array.ndim > 1 else array[::-2]
    if kind == "matrix" and array.ndim == 2:
        return array.view(np.matrix)
    return np.asfortranarray(array) if kind == "fortran" else array


class Foreign:
    """As other projects' detections are: `xyxy` and `confidence`."""

    def __init__(self, xyxy: object, confidence: object) -> None:
        self.xyxy, self.confidence = xyxy, confidence


def any_boxes(rng: random.Random, depth: int = 2) -> Any:
    """Boxes that may be right, lists of anything, arrays of any kind, foreign objects."""
    kind = rng.randrange(8)
    if kind < 3:  # likely to be right but for its numbers
        columns = rng.choice((4, 4, 4, 5))
        rows = [[any_number(rng) for _ in range(columns)] for _ in range(rng.randrange(4))]
        for row in rows:
            if rng.random() < 0.8 and all(abs(value) < 1e300 for value in row):
                row[2], row[3] = row[0] + abs(row[2]), row[1] + abs(row[3])
        return rows
    if kind == 3:
        numbers = np.frombuffer(rng.randbytes(64), rng.choice(("f4", "f8", "i2", "u8")))
        return np.sort(numbers.reshape(-1, 4)[:, [0, 2, 1, 3]]) if rng.random() < 0.5 else numbers
    if kind == 4:
        return any_array(rng)
    if kind == 5 and depth:
        return Foreign(any_boxes(rng, depth - 1), any_boxes(rng, depth - 1))
    if kind == 6 and depth:
        return [any_boxes(rng, depth - 1) for _ in range(rng.randrange(3))]
    return rng.choice((*ODDITIES, any_number(rng), [rng.choice(ODDITIES)], (1, 2, 3, 4)))


def any_text(rng: random.Random) -> str:
    """Text of any letters, surrogates and control characters among them; no digits alone, which
    are cameras, and nothing that leads out of the folder that a test works in.
    """
    if rng.random() < 0.7:
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(5)))
    elif rng.random() < 0.5:
        text = os.fsdecode(rng.randbytes(rng.randrange(24)))
    else:
        text = "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(12)))
    text = text.lstrip("/").replace("..", "." if rng.random() < 0.9 else "_")
    return f"{text}_" if text.isdigit() else text


class OfBytes:
    """A path whose text is bytes, as os.scandir(b".") gives them."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return self._path


def any_path(rng: random.Random) -> Any:
    """Text, a Path, or a path of bytes."""
    if rng.random() < 0.2:
        return OfBytes(rng.randbytes(rng.randrange(12)).lstrip(b"/"))
    text = any_text(rng)
    return Path(text) if rng.random() < 0.5 else text


def any_json(rng: random.Random, depth: int = 2) -> Any:
    """A value that JSON can hold, in Python's reading of it: NaN and long numbers too."""
    kind = rng.randrange(8)
    if kind < 3 or not depth:
        return rng.choice((None, True, False, "", "1", "person", "\ud800", "a\0b", any_number(rng)))
    if kind < 5:
        return [any_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 7:
        names = ("id", "bbox", "keypoints", "x")
        return {rng.choice(names): any_json(rng, depth - 1) for _ in range(rng.randrange(3))}
    return any_text(rng)


def bent(rng: random.Random, record: Any) -> Any:
    """A copy of a record with one to three of its values changed or gone."""
    whole = copy.deepcopy(record)
    for _ in range(rng.randint(1, 3)):
        holder = whole
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
                holder = holder[key]
                continue
            if rng.random() < 0.25:
                del holder[key]
            else:
                holder[key] = any_json(rng)
            break
    return whole


def bent_bytes(rng: random.Random, data: bytes) -> bytes:
    """A copy of a file with some bytes changed, cut off, or noise in its place."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(60))
    changed = bytearray(data)
    for _ in range(rng.randrange(6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.3 else changed)
