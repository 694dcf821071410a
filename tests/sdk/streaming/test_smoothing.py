"""The One-Euro filter against its paper, and its use on people."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.errors import InputError
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.streaming.smoothing import OneEuro, Smoother, SmoothOptions


def reference(values: list[float], times: list[float], options: SmoothOptions) -> list[float]:
    """Algorithm 1 of the paper for one number, word by word."""

    def alpha(rate: float, cutoff: float) -> float:
        tau = 1 / (2 * math.pi * cutoff)
        period = 1 / rate
        return 1 / (1 + tau / period)

    out = [values[0]]
    speed = 0.0
    for n in range(1, len(values)):
        rate = 1 / (times[n] - times[n - 1])
        derivative = (values[n] - values[n - 1]) * rate
        a = alpha(rate, options.derivative_cutoff_hz)
        speed = a * derivative + (1 - a) * speed
        a = alpha(rate, options.min_cutoff_hz + options.beta * abs(speed))
        out.append(a * values[n] + (1 - a) * out[-1])
    return out


def run(values: list[float], times: list[float], options: SmoothOptions) -> np.ndarray:
    filter_ = OneEuro(options, np.array([values[0]]))
    out = [values[0]]
    for n in range(1, len(values)):
        out.append(float(filter_.step(np.array([values[n]]), times[n] - times[n - 1])[0]))
    return np.array(out)


def people(xy: Any, ids: list[int], time_s: float | None, side: float = 100.0) -> Poses:
    """One place for all joints of each person, boxes of `side` x `side`."""
    places = np.asarray(xy, dtype=np.float32).reshape(-1, 2)
    count = len(places)
    return Poses(
        xy=np.repeat(places[:, None], 17, axis=1),
        confidence=np.full((count, 17), 0.9),
        boxes=np.tile([0, 0, side, side], (count, 1)),
        box_scores=np.ones(count),
        skeleton=COCO_17,
        image_size_wh=(640, 480),
        ids=np.array(ids),
        time_s=time_s,
    )


@pytest.mark.parametrize("options", [SmoothOptions(), SmoothOptions(0.3, 0.0, 2.0),
                                     SmoothOptions(2.0, 0.05)])  # fmt: skip
def test_it_is_the_papers_filter(options: SmoothOptions) -> None:
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.uniform(0.01, 0.1, 200)).tolist()
    for values in (rng.normal(0, 5, 200), np.where(np.arange(200) < 50, 0.0, 100.0)):
        expected = reference(values.tolist(), times, options)
        np.testing.assert_allclose(run(values.tolist(), times, options), expected, rtol=1e-12)


def test_without_beta_a_step_answers_in_closed_form() -> None:
    options = SmoothOptions(min_cutoff_hz=1.5, beta=0.0)
    seconds = 0.04
    out = run([0.0] + [1.0] * 30, [n * seconds for n in range(31)], options)
    keep = 1 - 1 / (1 + 1 / (2 * math.pi * 1.5 * seconds))
    np.testing.assert_allclose(out, 1 - keep ** np.arange(31), atol=1e-12)


def test_a_resting_joint_stays_and_noise_shrinks() -> None:
    times = [n / 25 for n in range(400)]
    np.testing.assert_allclose(run([7.25] * 400, times, SmoothOptions()), 7.25, rtol=1e-14)
    noise = np.random.default_rng(1).normal(0, 0.01, 400)
    calm = run(noise.tolist(), times, SmoothOptions())
    assert calm[50:].var() < noise[50:].var() / 3


def test_a_fast_joint_does_not_lag() -> None:
    times = [n / 25 for n in range(100)]
    ramp = [3.0 * t for t in times]  # three body sizes a second
    lag = np.array(ramp) - run(ramp, times, SmoothOptions())
    stiff = np.array(ramp) - run(ramp, times, SmoothOptions(beta=0.0))
    assert 0 < lag[-1] < stiff[-1] / 5


def test_the_setting_does_not_depend_on_the_resolution() -> None:
    small, large = Smoother(), Smoother()
    rng = np.random.default_rng(0)
    for n in range(30):
        place = rng.uniform(0, 50, 2)
        one = small.update(people(place, [1], n / 10, side=80)).xy
        other = large.update(people(4 * place, [1], n / 10, side=320)).xy
        np.testing.assert_allclose(4 * one, other, rtol=1e-5)


def test_ids_are_never_mixed_and_the_raw_is_kept() -> None:
    rng = np.random.default_rng(2)
    walks = np.cumsum(rng.normal(0, 2, (40, 3, 2)), axis=0) + 100
    alone = [Smoother() for _ in range(3)]
    together = Smoother()
    for n in range(40):
        order = rng.permutation(3)
        poses = people(walks[n, order], order.tolist(), n / 25)
        smooth = together.update(poses)
        assert smooth.xy_raw is poses.xy
        for row, person in enumerate(order.tolist()):
            expected = alone[person].update(people(walks[n, person], [person], n / 25))
            np.testing.assert_array_equal(smooth.xy[row], expected.xy[0])
    assert (smooth.xy != smooth.xy_raw).any()


def test_who_returns_late_starts_anew_and_is_forgotten() -> None:
    smoother = Smoother(SmoothOptions(max_gap_s=0.5))
    smoother.update(people([10, 10], [1], 0.0))
    near = smoother.update(people([50, 50], [1], 0.4))
    assert 10 < near.xy[0, 0, 0] < 50
    late = smoother.update(people([90, 90], [1], 1.0))
    np.testing.assert_array_equal(late.xy, late.xy_raw)
    smoother.update(people([5, 5], [2], 9.0))
    assert set(smoother._filters) == {2}


def test_times() -> None:
    with pytest.raises(InputError, match="fps=25"):
        Smoother().update(people([1, 1], [1], None))
    by_fps, by_time = Smoother(SmoothOptions(fps=10)), Smoother()
    for n in range(5):
        one = by_fps.update(people([n * n, 1], [1], None))
        other = by_time.update(people([n * n, 1], [1], n / 10))
        np.testing.assert_allclose(one.xy, other.xy, rtol=1e-5)
    again = by_time.update(people([77, 1], [1], 0.4))  # a stamp that stands still divides nothing
    assert np.isfinite(again.xy).all()
    unnumbered = Poses.empty(COCO_17, (4, 4))
    with pytest.raises(InputError, match="ids"):
        Smoother().update(unnumbered)


@pytest.mark.parametrize("options", [{"min_cutoff_hz": 0}, {"beta": -1}, {"fps": 0},
                                     {"max_gap_s": float("nan")}])  # fmt: skip
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        SmoothOptions(**options)
