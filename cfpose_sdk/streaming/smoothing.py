"""The One-Euro filter over the joints of tracked people.

Casiez, Roussel and Vogel, "1 € Filter: A Simple Speed-based Low-pass Filter for Noisy Input in
Interactive Systems", CHI 2012: an exponential smoother whose cutoff frequency rises with the speed,
so that a resting joint is calm and a fast one does not lag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import InputError
from cfpose_sdk.results import Poses


@dataclass(frozen=True)
class SmoothOptions:
    """The filter's constants.

    `min_cutoff_hz`: of a joint at rest; lower is calmer. `beta`: how much speed opens the filter,
    in Hz a body size a second (a body size is the square root of the box area, so that the setting
    does not depend on the resolution); higher lags less. `derivative_cutoff_hz`: of the speed.
    `max_gap_s`: a person unseen for longer starts anew. `fps`: for sources without time stamps.
    Raises InputError when a value is out of range.
    """

    min_cutoff_hz: float = 1.0
    beta: float = 5.0
    derivative_cutoff_hz: float = 1.0
    max_gap_s: float = 0.5
    fps: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_cutoff_hz", "derivative_cutoff_hz", "max_gap_s", "fps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be a positive number, got {value}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(f"beta must be 0 or more, got {self.beta}")


class OneEuro:
    """One filter over an array of coordinates, each smoothed by its own speed."""

    def __init__(self, options: SmoothOptions, values: Float64) -> None:
        self._options = options
        self._raw = self._value = np.array(values, dtype=np.float64)
        self._speed = np.zeros_like(self._value)

    def step(self, values: Float64, seconds: float, scale: float = 1.0) -> Float64:
        """The smoothed values, `seconds` (> 0) after the last; speed is in `scale` a second."""
        options = self._options
        speed = (values - self._raw) / (seconds * scale)
        weight = _weight(options.derivative_cutoff_hz, seconds)
        self._speed = weight * speed + (1 - weight) * self._speed
        weight = _weight(options.min_cutoff_hz + options.beta * np.abs(self._speed), seconds)
        self._value = weight * values + (1 - weight) * self._value
        self._raw = values
        return self._value


class Smoother:
    """One-Euro filters by id. The poses must have ids; each id has its own filter."""

    def __init__(self, options: SmoothOptions | None = None) -> None:
        self.options = options or SmoothOptions()
        self._filters: dict[int, tuple[OneEuro, float]] = {}
        self._frames = 0

    def update(self, poses: Poses) -> Poses:
        """The same poses with smoothed `xy`, and the measured ones in `xy_raw`.

        Raises InputError when there are no ids, or no time to go by.
        """
        if poses.ids is None:
            raise InputError("smoothing needs ids; track the poses first")
        now = self._now(poses)
        smooth = poses.xy.astype(np.float64)
        for person, number in enumerate(poses.ids.tolist()):
            smooth[person] = self._step(number, smooth[person], now, _body_size(poses, person))
        gap = self.options.max_gap_s
        self._filters = {n: pair for n, pair in self._filters.items() if now - pair[1] <= gap}
        return replace(poses, xy=smooth.astype(np.float32), xy_raw=poses.xy)

    def forget(self) -> None:
        """Start another video, whose time begins at 0 again."""
        self._filters = {}
        self._frames = 0

    def _step(self, number: int, xy: Float64, now: float, scale: float) -> Float64:
        known = self._filters.get(number)
        if known is None or now - known[1] > self.options.max_gap_s:
            self._filters[number] = (OneEuro(self.options, xy), now)
            return xy
        filter_, then = known
        self._filters[number] = (filter_, now)
        return filter_.step(xy, now - then, scale) if now > then else xy

    def _now(self, poses: Poses) -> float:
        self._frames += 1
        if self.options.fps is not None:
            return (self._frames - 1) / self.options.fps
        if poses.time_s is None:
            raise InputError(
                "this source has no time stamps; say how many frames a second it has: "
                "smooth=SmoothOptions(fps=25)"
            )
        return poses.time_s


def _weight(cutoff_hz: Float64 | float, seconds: float) -> Float64 | float:
    """The paper's alpha: 1 / (1 + tau / Te) with tau = 1 / (2 pi f)."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff_hz * seconds))


def _body_size(poses: Poses, person: int) -> float:
    x1, y1, x2, y2 = poses.boxes[person].tolist()
    return max(1.0, math.sqrt((x2 - x1) * (y2 - y1)))
