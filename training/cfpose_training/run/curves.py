"""The curves of a run's log as a picture: the loss, and the figures on the development photos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from cfpose_sdk.media.image import Image, write_picture

CURVES_FILE = "curves.png"
SIZE_WH = (480, 300)  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 30  # around its axes
BACK, INK, FAINT = (255, 255, 255), (60, 60, 60), (215, 215, 215)
COLOURS = ((200, 110, 20), (40, 110, 230), (90, 150, 40), (160, 60, 160))
FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_curves(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Two panels over the epochs: `loss`, and every column that begins with `dev_`."""
    epochs = [float(row["epoch"]) for row in rows]
    names = sorted({name for row in rows for name in row if name.startswith("dev_")})
    panels = [["loss"], names] if names else [["loss"]]
    pictures = [
        _panel(epochs, {name: [_number(row.get(name)) for row in rows] for name in panel})
        for panel in panels
    ]
    write_picture(path, np.concatenate(pictures, axis=1))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _panel(epochs: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Image:
    width, height = SIZE_WH
    picture = np.full((height, width, 3), BACK, np.uint8)
    values = [v for curve in curves.values() for v in curve if math.isfinite(v)] or [0.0]
    low, high = min(values), max(values)
    span = high - low or max(1e-9, abs(high))
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def place(epoch: float, value: float) -> tuple[int, int]:
        x = LEFT + (epoch - first) / (last - first) * (width - LEFT - RIGHT)
        y = height - BOTTOM - (value - low) / span * (height - TOP - BOTTOM)
        return round(x), round(y)

    for share in (0.0, 0.5, 1.0):
        value = low + share * span
        _, y = place(first, value)
        cv2.line(picture, (LEFT, y), (width - RIGHT, y), FAINT, 1)
        cv2.putText(picture, f"{value:.3g}", (6, y + 4), FONT, 0.4, INK, 1, cv2.LINE_AA)
    for epoch in (first, last):
        x, _ = place(epoch, low)
        text = f"{epoch:.0f}"
        cv2.putText(picture, text, (x - 6, height - 10), FONT, 0.4, INK, 1, cv2.LINE_AA)
    x = LEFT
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        points = [place(e, v) for e, v in zip(epochs, curve, strict=True) if math.isfinite(v)]
        cv2.polylines(picture, [np.array(points, np.int32)], False, colour, 2, cv2.LINE_AA)
        for point in points if len(points) < 2 else ():
            cv2.circle(picture, point, 3, colour, -1, cv2.LINE_AA)
        cv2.putText(picture, name, (x, 20), FONT, 0.5, colour, 1, cv2.LINE_AA)
        x += 12 + cv2.getTextSize(name, FONT, 0.5, 1)[0][0]
    return picture
