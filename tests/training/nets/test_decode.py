"""The torch decoder against its numpy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cfpose_sdk import keypoints
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.nets import decode

DECODES = ["argmax", "subbin"]


def peaks(seed: int, batch: int = 2, joints: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Noisy bin logits with a peak at a random place, some of them past the ends."""
    draw = np.random.default_rng(seed)
    logits = []
    for bins in (384, 512):
        centre = draw.uniform(-3, bins + 2, (batch, joints, 1))
        height = draw.uniform(0, 12, (batch, joints, 1))
        hump = height * np.exp(-((np.arange(bins) - centre) ** 2) / (2 * 4.0**2))
        logits.append(hump + 0.3 * draw.standard_normal((batch, joints, bins)))
    return logits[0], logits[1]


def run(x: np.ndarray, y: np.ndarray, kind: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return decode.decode_simcc(
        torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype), 2.0, kind
    )


@pytest.mark.parametrize("kind", DECODES)
@given(seed=st.integers(0, 2**16))
def test_equals_the_reference_in_float64(kind: Any, seed: int) -> None:
    x, y = peaks(seed)
    xy, score = run(x, y, kind, torch.float64)
    expected_xy, expected_score = keypoints.decode_simcc(x, y, 2.0, kind)
    np.testing.assert_allclose(xy.numpy(), expected_xy, atol=1e-9)
    np.testing.assert_allclose(score.numpy(), expected_score, atol=1e-12)


@given(seed=st.integers(0, 2**16), width=st.floats(0.1, 3))
def test_wide_windows_equal_the_reference(seed: int, width: float) -> None:
    x, y = peaks(seed)
    windows = tuple(width * 2 * sigma for sigma in COCO_17.oks_sigmas)
    tensors = [torch.from_numpy(values) for values in (x, y)]
    xy, score = decode.decode_simcc(tensors[0], tensors[1], 2.0, "subbin", windows)
    expected_xy, expected_score = keypoints.decode_simcc(x, y, 2.0, "subbin", windows)
    np.testing.assert_allclose(xy.numpy(), expected_xy, atol=1e-7)
    np.testing.assert_allclose(score.numpy(), expected_score, atol=1e-12)
    assert np.abs(expected_xy - keypoints.decode_simcc(x, y, 2.0)[0]).max() > 0.01
    single = [values.float() for values in tensors]
    xy32, _ = decode.decode_simcc(single[0], single[1], 2.0, "subbin", windows)
    assert xy32.dtype == torch.float32
    # a joint between two equal ways may take either in float32; all others agree
    off = np.abs(xy32.numpy() - expected_xy).max(axis=-1)
    assert np.quantile(off, 0.95) < 0.01
    nobody = [values[:0] for values in tensors]
    assert decode.decode_simcc(nobody[0], nobody[1], 2.0, "subbin", windows)[0].shape == (0, 17, 2)


@pytest.mark.parametrize("kind", DECODES)
def test_equals_the_reference_in_float32(kind: Any) -> None:
    x, y = (logits.astype(np.float32) for logits in peaks(7, batch=20))
    xy, score = run(x, y, kind, torch.float32)
    expected_xy, expected_score = keypoints.decode_simcc(x, y, 2.0, kind)
    np.testing.assert_allclose(xy.numpy(), expected_xy, atol=1e-3)
    np.testing.assert_allclose(score.numpy(), expected_score, atol=1e-5)


@pytest.mark.parametrize("kind", DECODES)
def test_half_precision_logits_are_decoded_in_float32(kind: Any) -> None:
    x, y = peaks(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        xy, score = run(x, y, kind, torch.bfloat16)
    rounded = [torch.from_numpy(v).bfloat16().double().numpy() for v in (x, y)]
    expected_xy, _ = keypoints.decode_simcc(rounded[0], rounded[1], 2.0, kind)
    assert xy.dtype == score.dtype == torch.float32
    np.testing.assert_allclose(xy.numpy(), expected_xy, atol=1e-3)


@pytest.mark.parametrize("kind", DECODES)
def test_no_people(kind: Any) -> None:
    xy, score = run(np.zeros((0, 17, 384)), np.zeros((0, 17, 512)), kind, torch.float32)
    assert xy.shape == (0, 17, 2)
    assert score.shape == (0, 17)


def test_subbin_finds_a_peak_between_bins() -> None:
    bins = np.arange(384.0)
    for centre_px in (40.0, 40.1, 40.37, 90.25):
        logits = -((bins / 2 - centre_px) ** 2) / (2 * 1.5**2)
        xy, _ = run(logits[None, None], logits[None, None], "subbin", torch.float32)
        np.testing.assert_allclose(xy.numpy(), centre_px, atol=2e-3)


@given(
    score=st.lists(st.floats(0, 1), max_size=8),
    slope=st.floats(0.1, 3),
    intercept=st.floats(-4, 4),
)
def test_calibrate_equals_the_reference(score: list[float], slope: float, intercept: float) -> None:
    raw = np.array(score, dtype=np.float64)
    expected = keypoints.calibrate(raw, (slope, intercept))
    ours = decode.calibrate(torch.from_numpy(raw), (slope, intercept))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)
    ours32 = decode.calibrate(torch.from_numpy(raw).float(), (slope, intercept))
    # 1 - 1e-6, where the score is clipped, is 1 % off in float32: up to 1e-3 in confidence
    np.testing.assert_allclose(ours32.numpy(), expected, atol=1e-3)


def test_soft_argmax_under_label_smoothing() -> None:
    """tau = 2 undoes the pull of a smoothed label towards the middle of the axis; 1 does not."""
    target_px, smoothing, bins = 10.0, 0.1, 384
    mass = torch.full((bins,), smoothing / (bins - 1), dtype=torch.float64)
    mass[round(2 * target_px)] = 1 - smoothing
    logits = mass.log()[None, None]
    biased = (1 - smoothing) * target_px + smoothing * (bins - 1) / 4
    assert abs(decode.soft_argmax(logits, 2.0, 1.0).item() - biased) < 0.05
    assert abs(decode.soft_argmax(logits, 2.0, 2.0).item() - target_px) < 0.03


def test_soft_argmax_has_a_gradient_over_the_whole_axis() -> None:
    logits = torch.zeros(1, 1, 64, requires_grad=True)
    xy = decode.soft_argmax(logits, 2.0, 2.0)
    assert xy.shape == (1, 1)
    assert abs(xy.item() - 63 / 4) < 1e-4
    xy.sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad != 0).all())


@given(
    seed=st.integers(0, 2**16),
    temperature=st.one_of(st.just(1.0), st.floats(0.3, 3)),
    isotropy=st.floats(0, 1),
)
def test_covariance_equals_the_reference(seed: int, temperature: float, isotropy: float) -> None:
    x, y = peaks(seed)
    xy = keypoints.decode_simcc(x, y, 2.0)[0] + np.random.default_rng(seed).normal(0, 3, (2, 17, 2))
    drawn = {"temperature": temperature, "isotropy": isotropy}
    expected = keypoints.covariance(x, y, xy, 2.0, **drawn)
    tensors = [torch.from_numpy(values) for values in (x, y, xy)]
    double = decode.covariance(*tensors, 2.0, **drawn).numpy()
    np.testing.assert_allclose(double, expected, rtol=1e-11)
    single = decode.covariance(*(t.float() for t in tensors), 2.0, **drawn).numpy()
    np.testing.assert_allclose(single, expected, rtol=1e-4)
    assert single.dtype == np.float32


@given(seed=st.integers(0, 2**16), power=st.floats(0, 1))
def test_widened_covariance_equals_the_reference(seed: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    matrices, confidence = rng.uniform(1, 9, (2, 17, 2, 2)), rng.uniform(0, 1, (2, 17))
    confidence[0, :2] = 0, 1  # finite there too
    expected = keypoints.widen(matrices, confidence, power)
    got = decode.widen(torch.from_numpy(matrices), torch.from_numpy(confidence), power)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)
    odds = confidence[1] / (1 - confidence[1])
    np.testing.assert_allclose(expected[1], matrices[1] / odds[:, None, None] ** power, rtol=1e-3)


@given(seed=st.integers(0, 2**16))
def test_expected_oks_equals_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 190, (2, 17, 2))
    spread = rng.uniform(0.1, 400, (2, 17, 2, 1)) * np.eye(2)
    sigmas = COCO_17.oks_sigmas
    expected = keypoints.expected_oks(xy, spread, sigmas)
    got = decode.expected_oks(torch.from_numpy(xy), torch.from_numpy(spread), sigmas)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    single = [torch.from_numpy(values).float() for values in (xy, spread)]
    np.testing.assert_allclose(decode.expected_oks(*single, sigmas).numpy(), expected, rtol=1e-4)
    assert ((expected > 0) & (expected < 1)).all()


def test_covariance_of_nobody_and_of_half_precision_logits() -> None:
    x, y = (torch.from_numpy(v).bfloat16() for v in peaks(5))
    xy = torch.full((2, 17, 2), 90.0)
    got = decode.covariance(x, y, xy, 2.0)
    expected = keypoints.covariance(x.double().numpy(), y.double().numpy(), xy.numpy(), 2.0)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)
    assert decode.covariance(x[:0], y[:0], xy[:0], 2.0).shape == (0, 17, 2, 2)
