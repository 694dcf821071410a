"""The numpy decoder against peaks whose place is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_sdk.keypoints import (
    AREA_SHARE,
    calibrate,
    covariance,
    decode_simcc,
    expected_oks,
)

RATIO = 2.0
WIDTH, HEIGHT = 96, 128


def peak(at_px: float, size: int, sigma_px: float = 2.0, ratio: float = RATIO) -> np.ndarray:
    """Logits (1, 1, bins) of a Gaussian around a pixel position."""
    bins = np.arange(round(size * ratio)) / ratio
    return (-0.5 * ((bins - at_px) / sigma_px) ** 2)[None, None]


@given(st.floats(12, WIDTH - 12), st.floats(12, HEIGHT - 12), st.sampled_from([1.0, 1.5, 2.0]))
def test_subbin_finds_a_gaussian_between_bins(x: float, y: float, sigma: float) -> None:
    xy, score = decode_simcc(peak(x, WIDTH, sigma), peak(y, HEIGHT, sigma), RATIO)
    np.testing.assert_allclose(xy[0, 0], [x, y], atol=0.02)
    assert 0 < score[0, 0] <= 1


@given(st.floats(0, WIDTH - 0.5), st.floats(0, HEIGHT - 0.5))
def test_argmax_is_the_nearest_bin(x: float, y: float) -> None:
    xy, _ = decode_simcc(peak(x, WIDTH), peak(y, HEIGHT), RATIO, "argmax")
    assert np.abs(xy[0, 0] - [x, y]).max() <= 0.5 / RATIO + 1e-9
    assert (xy * RATIO == np.round(xy * RATIO)).all()


def test_argmax_score_is_the_larger_peak_probability() -> None:
    x = np.log(np.array([[[0.1, 0.6, 0.3]]]))
    y = np.log(np.array([[[0.2, 0.25, 0.55]]]))
    xy, score = decode_simcc(x, y, 1.0, "argmax")
    np.testing.assert_array_equal(xy, [[[1, 2]]])
    assert score[0, 0] == pytest.approx(0.6)


@given(st.integers(20, WIDTH - 20), st.sampled_from([1.0, 2.0]))
def test_a_swap_of_neighbouring_bins_moves_nothing(bin_px: int, sigma: float) -> None:
    # the peak lies exactly between two bins; drift of 1e-6 decides which of them wins
    x = peak(bin_px + 0.5 / RATIO, WIDTH, sigma)
    first, second = bin_px * int(RATIO), bin_px * int(RATIO) + 1
    left, right = x.copy(), x.copy()
    left[..., first] += 1e-6
    right[..., second] += 1e-6
    assert left.argmax() != right.argmax()
    y = peak(40, HEIGHT)
    moved = decode_simcc(left, y, RATIO)[0] - decode_simcc(right, y, RATIO)[0]
    assert np.abs(moved).max() < 1e-2
    jumped = decode_simcc(left, y, RATIO, "argmax")[0] - decode_simcc(right, y, RATIO, "argmax")[0]
    assert np.abs(jumped).max() == 1 / RATIO  # what subbin is for


def test_a_second_mode_does_not_pull() -> None:
    x = np.log(np.exp(peak(30, WIDTH)) + 0.6 * np.exp(peak(70, WIDTH)))
    xy, score = decode_simcc(x, peak(50, HEIGHT), RATIO)
    assert xy[0, 0, 0] == pytest.approx(30, abs=0.02)
    _, alone = decode_simcc(peak(30, WIDTH), peak(50, HEIGHT), RATIO)
    assert score[0, 0] == pytest.approx(alone[0, 0] / 1.6, rel=1e-3)  # its share of the mass


CORNERS = np.array([[20.0, 20.0], [70.0, 20.0], [20.0, 100.0], [70.0, 100.0]])
WINDOWS = (0.02, 0.05, 0.1, 0.2)  # of √area: 1.1 to 11.3 px here


def corners(x: np.ndarray | None = None, joint: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (1, 4, bins) of sharp joints on a rectangle; those along x of one are `x`."""
    along_x = np.concatenate([peak(px, WIDTH, 1.0) for px, _ in CORNERS], axis=1)
    along_y = np.concatenate([peak(py, HEIGHT, 1.0) for _, py in CORNERS], axis=1)
    if x is not None:
        along_x[0, joint] = x
    return along_x, along_y


def test_sure_joints_stay_where_they_are_under_wide_windows() -> None:
    xy, score = decode_simcc(*corners(), RATIO, "subbin", WINDOWS)
    np.testing.assert_allclose(xy[0], CORNERS, atol=0.02)
    np.testing.assert_array_equal(score, decode_simcc(*corners(), RATIO)[1])
    nobody = [logits[:0] for logits in corners()]
    assert decode_simcc(*nobody, RATIO, "subbin", WINDOWS)[0].shape == (0, 4, 2)


@given(
    joint=st.integers(0, 3),
    apart=st.floats(0.5, 20),
    share=st.floats(0.05, 0.45),
    sigma=st.floats(1, 4),
)
def test_a_wide_window_finds_the_most_expected_oks_near_the_peak(
    joint: int, apart: float, share: float, sigma: float
) -> None:
    """Against every place on a fine grid between the peak and the second mode."""
    at = float(CORNERS[joint, 0])
    second = at + (apart if at < WIDTH / 2 else -apart)
    x = np.log((1 - share) * np.exp(peak(at, WIDTH, sigma)) + share * np.exp(peak(second, WIDTH)))
    logits = corners(x, joint)
    start, _ = decode_simcc(*logits, RATIO)
    width = WINDOWS[joint] * np.sqrt(AREA_SHARE * np.ptp(start[0], axis=0).prod())
    mass = np.exp(x[0, 0]) / np.exp(x).sum()
    bins = np.arange(mass.size) / RATIO

    def oks(place: float) -> float:
        return float((mass * np.exp(-0.5 * ((bins - place) / max(width, 0.5)) ** 2)).sum())

    found = decode_simcc(*logits, RATIO, "subbin", WINDOWS)[0][0, joint, 0]
    assert oks(found) >= oks(start[0, joint, 0]) - 1e-12  # every step of a mean shift climbs
    way = np.linspace(start[0, joint, 0], second, 400)
    values = [oks(place) for place in way]
    peaks = [i for i in range(1, 399) if values[i - 1] < values[i] > values[i + 1]]
    if len(peaks) == 1:  # one maximum on the way: that is where it goes
        assert oks(found) == pytest.approx(max(values), rel=0.02)


def test_a_second_mode_pulls_as_far_as_the_window_reaches() -> None:
    x = np.log(np.exp(peak(20, WIDTH)) + 0.6 * np.exp(peak(28, WIDTH)))[0, 0]
    moved = [
        decode_simcc(*corners(x, joint), RATIO, "subbin", WINDOWS)[0][0, joint, 0]
        for joint in (0, 2)
    ]
    assert moved[0] == pytest.approx(20, abs=0.1)
    assert moved[1] == pytest.approx((20 + 0.6 * 28) / 1.6, abs=1)


def test_adding_a_constant_changes_nothing_and_huge_logits_do_not_overflow() -> None:
    x, y = peak(33.3, WIDTH), peak(44.4, HEIGHT)
    plain = decode_simcc(x, y, RATIO)
    shifted = decode_simcc(x + 1e4, y - 1e4, RATIO)
    np.testing.assert_allclose(plain[0], shifted[0], atol=1e-6)
    np.testing.assert_allclose(plain[1], shifted[1], atol=1e-6)


def test_shapes_and_nobody() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(3, 17, 192)), rng.normal(size=(3, 17, 256))
    for decode in ("argmax", "subbin"):
        xy, score = decode_simcc(x, y, RATIO, decode)
        assert xy.shape == (3, 17, 2)
        assert score.shape == (3, 17)
        assert ((score >= 0) & (score <= 1)).all()
        one, one_score = decode_simcc(x[1:2], y[1:2], RATIO, decode)
        np.testing.assert_array_equal(xy[1:2], one)
        np.testing.assert_array_equal(score[1:2], one_score)
        assert decode_simcc(x[:0], y[:0], RATIO, decode)[0].shape == (0, 17, 2)


def test_calibration() -> None:
    score = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(calibrate(score, (1.0, 0.0))[1:4], score[1:4], rtol=1e-12)
    confidence = calibrate(score, (2.0, -1.0))
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert (np.diff(confidence) > 0).all()
    assert confidence[2] == pytest.approx(1 / (1 + np.e))


@given(
    st.floats(40, 56),
    st.floats(50, 70),
    st.floats(1, 5),
    st.floats(-6, 6),
    st.sampled_from([1.0, 2.0, 3.0]),
)
def test_covariance_of_a_gaussian_is_its_variance_and_the_distance_squared(
    x: float, y: float, sigma: float, off: float, ratio: float
) -> None:
    logits = peak(x, WIDTH, sigma, ratio), peak(y, HEIGHT, 2 * sigma, ratio)
    (matrix,) = covariance(*logits, np.array([[[x + off, y]]]), ratio, scale=0.5)[0]
    bin_ = 1 / (12 * ratio**2)
    assert matrix[0, 0] == pytest.approx(0.5 * (sigma**2 + off**2 + bin_), rel=1e-6)
    # the tails of a sigma of 10 px do not all fit on the axis
    assert matrix[1, 1] == pytest.approx(0.5 * (4 * sigma**2 + bin_), rel=1e-3)
    assert matrix[0, 1] == matrix[1, 0] == 0


def test_covariance_sees_the_whole_axis_and_stays_invertible() -> None:
    """A second mode far away counts; certainty leaves the variance of one bin."""
    both = np.log(np.exp(peak(20, WIDTH)) + np.exp(peak(60, WIDTH)))
    certain = np.where(np.arange(2 * HEIGHT) == 80, 0.0, -np.inf)[None, None]
    matrices = covariance(both, certain, np.array([[[20.0, 40.0]]]), RATIO)
    assert matrices[0, 0, 0, 0] == pytest.approx(4 + 40**2 / 2 + 1 / 48, rel=1e-3)
    assert matrices[0, 0, 1, 1] == pytest.approx(1 / 48, abs=1e-12)
    assert covariance(both[:0], certain[:0], np.zeros((0, 1, 2)), RATIO).shape == (0, 1, 2, 2)


@given(st.floats(1, 4), st.floats(0.3, 1), st.floats(0, 1))
def test_covariance_of_sharpened_bins(sigma: float, temperature: float, isotropy: float) -> None:
    """A Gaussian's variance times the temperature; drawn to a circle of the same area."""
    logits = peak(48, WIDTH, sigma), peak(64, HEIGHT, 2 * sigma)
    xy = np.array([[[48.0, 64.0]]])
    (matrix,) = covariance(*logits, xy, RATIO, temperature=temperature, isotropy=isotropy)[0]
    along_x, along_y = (temperature * (n * sigma) ** 2 + 1 / 48 for n in (1, 2))
    assert np.linalg.det(matrix) == pytest.approx(along_x * along_y, rel=1e-3)
    assert matrix[1, 1] / matrix[0, 0] == pytest.approx(
        (along_y / along_x) ** (1 - isotropy), rel=1e-3
    )


def test_expected_oks_is_the_mean_oks_of_truths_around_the_joint() -> None:
    """Against a million draws: OKS of 4 joints on a 100 x 50 px rectangle."""
    rng = np.random.default_rng(0)
    xy = np.array([[[10.0, 20.0], [110.0, 30.0], [40.0, 70.0], [50.0, 50.0]]])
    spread = rng.uniform(1, 200, (1, 4, 2))
    sigmas = (0.026, 0.079, 0.107, 0.087)
    matrices = spread[..., None] * np.eye(2)
    got = expected_oks(xy, matrices, sigmas)[0]
    area = AREA_SHARE * 100 * 50
    for joint, sigma in enumerate(sigmas):
        off = rng.normal(size=(1_000_000, 2)) * np.sqrt(spread[0, joint])
        oks = np.exp(-(off**2).sum(axis=1) / (2 * area * (2 * sigma) ** 2))
        assert got[joint] == pytest.approx(oks.mean(), abs=2e-3)


def test_expected_oks_of_the_certain_of_one_point_and_of_nobody() -> None:
    corners = np.array([[[0.0, 0.0], [30.0, 40.0]]])
    certain = np.full((1, 2, 2, 2), 1e-9) * np.eye(2)
    assert expected_oks(corners, certain, (0.05, 0.1)) == pytest.approx(1)
    one_point = expected_oks(np.zeros((1, 2, 2)), 4 * np.eye(2)[None, None], (0.05, 0.1))
    assert ((one_point > 0) & (one_point < 0.01)).all()  # nobody is smaller than a pixel
    assert expected_oks(corners[:0], certain[:0], (0.05, 0.1)).shape == (0, 2)
