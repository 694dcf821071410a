"""The decode subgraphs in onnxruntime against the papers' formulas, a map at a time, in float64."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from cfpose_export.adopt.decode.heatmap import MAX_STEP, Maps, blur_matrix, heatmap_decoder
from cfpose_export.adopt.decode.simcc import Vectors, simcc_decoder
from cfpose_export.adopt.decode.text import PREFIX
from cfpose_export.adopt.reference import decode_maps, decode_vectors
from cfpose_export.adopt.surgery import coordinates_decoder
from cfpose_sdk import keypoints
from cfpose_sdk.spec import Reading

Float64 = NDArray[np.float64]
JOINTS, WIDTH, HEIGHT = 5, 12, 16
STRIDE = (4.0, 4.0)


def answer(graph: onnx.GraphProto, feeds: dict[str, NDArray[np.float32]]) -> dict[str, NDArray]:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = session.run(None, {PREFIX + name: value for name, value in feeds.items()})
    names = [output.name.removeprefix(PREFIX) for output in session.get_outputs()]
    return dict(zip(names, values, strict=True))


def peaks(count: int = 40, seed: int = 0) -> NDArray[np.float32]:
    """(count, JOINTS, HEIGHT, WIDTH) Gaussians, some cut by the border, over a little noise."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    maps = np.zeros((count, JOINTS, HEIGHT, WIDTH))
    for n, k in np.ndindex(count, JOINTS):
        cx, cy = draw.uniform(-0.4, WIDTH - 0.6), draw.uniform(-0.4, HEIGHT - 0.6)
        maps[n, k] = draw.uniform(0.2, 1) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8)
    return (maps + draw.uniform(0, 0.002, maps.shape)).astype(np.float32)


def dark(heat: Float64, x: int, y: int, kernel: int) -> Float64:
    """Zhang et al., equation 9, on a map that OpenCV blurs with a border of zeros."""
    border = kernel // 2
    padded = cv2.GaussianBlur(np.pad(heat, border), (kernel, kernel), 0)
    logs = np.log(np.maximum(padded[border:-border, border:-border], 1e-10))
    if not (1 < x < WIDTH - 2 and 1 < y < HEIGHT - 2):
        return np.array([x, y], float)
    first = 0.5 * np.array([logs[y, x + 1] - logs[y, x - 1], logs[y + 1, x] - logs[y - 1, x]])
    dxx = 0.25 * (logs[y, x + 2] - 2 * logs[y, x] + logs[y, x - 2])
    dyy = 0.25 * (logs[y + 2, x] - 2 * logs[y, x] + logs[y - 2, x])
    dxy = 0.25 * (logs[y + 1, x + 1] - logs[y - 1, x + 1] - logs[y + 1, x - 1] + logs[y - 1, x - 1])
    step = np.linalg.inv([[dxx, dxy], [dxy, dyy]]) @ first
    return np.array([x, y]) - np.clip(step, -MAX_STEP, MAX_STEP)


def dark_udp(heat: Float64, x: int, y: int, kernel: int, sigma: float) -> Float64:
    """UDP's form, on a map blurred with its mirror image beyond the border."""
    reach = kernel // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    smooth = np.pad(heat, reach, mode="symmetric")
    for axis in (0, 1):
        smooth = np.apply_along_axis(np.convolve, axis, smooth, weights, mode="valid")
    logs = np.pad(np.log(np.clip(smooth, 0.001, 50)), 1, mode="edge")
    x1, y1 = x + 1, y + 1
    here, right, below = logs[y1, x1], logs[y1, x1 + 1], logs[y1 + 1, x1]
    left, above = logs[y1, x1 - 1], logs[y1 - 1, x1]
    first = 0.5 * np.array([right - left, below - above])
    dxx, dyy = right - 2 * here + left, below - 2 * here + above
    corners = logs[y1 + 1, x1 + 1] + logs[y1 - 1, x1 - 1]
    dxy = 0.5 * (corners - right - below + 2 * here - left - above)
    step = np.linalg.inv([[dxx, dxy], [dxy, dyy]]) @ first
    return np.array([x, y]) - np.clip(step, -MAX_STEP, MAX_STEP)


def quarter(heat: Float64, x: int, y: int) -> Float64:
    """A quarter of a pixel towards the larger neighbour, inside the map."""
    if not (1 < x < WIDTH - 1 and 1 < y < HEIGHT - 1):
        return np.array([x, y], float)
    slope = [heat[y, x + 1] - heat[y, x - 1], heat[y + 1, x] - heat[y - 1, x]]
    return np.array([x, y]) + 0.25 * np.sign(slope)


def expected(heat: NDArray[np.float32], decode: Reading, blur: tuple[int, float]) -> Float64:
    found = np.zeros((*heat.shape[:2], 2))
    for n, k in np.ndindex(heat.shape[:2]):
        values = heat[n, k].astype(np.float64)
        y, x = np.unravel_index(values.argmax(), values.shape)
        found[n, k] = {
            "argmax": lambda v, x, y: np.array([x, y], float),
            "shift": quarter,
            "dark": lambda v, x, y: dark(v, x, y, blur[0]),
            "dark-udp": lambda v, x, y: dark_udp(v, x, y, *blur),
        }[decode](values, int(x), int(y))
    return found


@pytest.mark.parametrize(
    ("decode", "blur"),
    [("argmax", (1, 1.0)), ("shift", (1, 1.0)), ("dark", (3, 0.84932)), ("dark", (11, 2.0)),
     ("dark-udp", (11, 0.8)), ("dark-udp", (3, 0.8))],
)  # fmt: skip
def test_heatmaps(decode: Reading, blur: tuple[int, float]) -> None:
    heat = peaks()
    maps = Maps(JOINTS, (WIDTH, HEIGHT), STRIDE, decode, blur)
    got = answer(heatmap_decoder(maps), {"maps": heat})
    right = expected(heat, decode, blur)
    np.testing.assert_allclose(got["xy"], right * STRIDE, atol=2e-3)
    np.testing.assert_allclose(decode_maps(heat, maps).xy, right * STRIDE, atol=1e-4)
    np.testing.assert_allclose(got["score"], heat.max(axis=(2, 3)))
    coarse = expected(heat, "argmax", blur)
    np.testing.assert_array_equal(got["coarse_xy"], coarse * STRIDE)


def test_dark_finds_the_centre_of_a_gaussian() -> None:
    """Where the map is a Gaussian, the method is exact, and the argmax is off by up to half."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    centre = np.array([5.3, 7.6])
    heat = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 8)[None, None]
    for decode in ("dark", "dark-udp"):
        maps = Maps(1, (WIDTH, HEIGHT), (1, 1), decode, (3, 0.8))
        got = answer(heatmap_decoder(maps), {"maps": heat.astype(np.float32)})
        np.testing.assert_allclose(got["xy"][0, 0], centre, atol=0.03)


def test_variances_of_a_gaussian_and_of_a_flat_map() -> None:
    """Of a map's square: half its variance; times the stride squared, plus a pixel's own."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    heat = np.exp(-((x - 6) ** 2) / (2 * 1.5**2) - ((y - 8) ** 2) / (2 * 1.2**2))[None, None]
    maps = Maps(1, (WIDTH, HEIGHT), STRIDE, "argmax")
    got = answer(heatmap_decoder(maps), {"maps": heat.astype(np.float32)})
    right = np.array([1.5**2, 1.2**2]) / 2 * 16 + 16 / 12
    np.testing.assert_allclose(got["variances"][0, 0], right, rtol=1e-3)
    nothing = answer(heatmap_decoder(maps), {"maps": -np.ones((1, 1, HEIGHT, WIDTH), np.float32)})
    assert all(np.isfinite(value).all() for value in nothing.values())


def test_the_window_moves_towards_a_near_second_peak() -> None:
    """As wide as OKS forgives: between two peaks that it forgives, at one that it does not."""
    heat = peaks(3, seed=4)
    for window, sigmas in ((1.0, (0.02,) * JOINTS), (3.0, (0.1,) * JOINTS)):
        windows = tuple(window * 2 * s for s in sigmas)
        maps = Maps(JOINTS, (WIDTH, HEIGHT), STRIDE, "window", windows=windows)
        got = answer(heatmap_decoder(maps), {"maps": heat})
        right = decode_maps(heat, maps)
        np.testing.assert_allclose(got["xy"], right.xy, atol=2e-3)
    assert np.abs(right.xy - right.coarse).max() > 1  # it does move


def test_of_nobody() -> None:
    for decode in ("argmax", "shift", "dark", "dark-udp", "window"):
        maps = Maps(JOINTS, (WIDTH, HEIGHT), STRIDE, decode, (3, 0.8), (0.1,) * JOINTS)
        got = answer(heatmap_decoder(maps), {"maps": np.zeros((0, JOINTS, HEIGHT, WIDTH), "f4")})
        assert {name: v.shape for name, v in got.items()} == {
            "xy": (0, JOINTS, 2), "coarse_xy": (0, JOINTS, 2), "score": (0, JOINTS),
            "variances": (0, JOINTS, 2),
        }  # fmt: skip


def test_blur_keeps_the_sum_where_the_border_is_mirrored() -> None:
    np.testing.assert_allclose(blur_matrix(9, 11, 2.0, mirrored=True).sum(axis=1), 1)
    lost = blur_matrix(9, 3, 0.8, mirrored=False).sum(axis=1)
    assert lost[0] < 0.8
    assert lost[4] == pytest.approx(1)


def vectors(values: str = "logits", **others: object) -> Vectors:
    arguments = {"decode": "argmax", "score": "min", "temperature": 1.0} | others
    return Vectors(JOINTS, (96, 128), 2.0, values=values, **arguments)  # type: ignore[arg-type]


def simcc_case(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    draw = np.random.default_rng(seed)
    parts = []
    for bins in (96, 128):
        centre = draw.uniform(0, bins, (30, JOINTS, 1))
        away = (np.arange(bins) - centre) / draw.uniform(1, 9, (30, JOINTS, 1))
        parts.append((8 * np.exp(-(away**2) / 2) + draw.normal(0, 0.1, away.shape)).astype("f4"))
    return parts[0], parts[1]


@pytest.mark.parametrize("decode", ["argmax", "subbin"])
def test_simcc_agrees_with_the_sdk_on_logits(decode: Reading) -> None:
    x, y = simcc_case()
    case = vectors(decode=decode)
    got = answer(simcc_decoder(case), {"x": x, "y": y})
    xy, _ = keypoints.decode_simcc(x, y, 2.0, decode)  # type: ignore[arg-type]
    np.testing.assert_allclose(got["xy"], xy, atol=2e-3)
    spread = keypoints.covariance(x, y, xy, 2.0)
    np.testing.assert_allclose(
        got["variances"], np.stack([spread[..., 0, 0], spread[..., 1, 1]], -1), rtol=2e-3
    )
    np.testing.assert_allclose(decode_vectors(x, y, case).xy, xy, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "score"),
    list(itertools.product(["scores", "probabilities"], ["min", "max", "mean"])),
)
def test_scores_are_peaks(values: str, score: str) -> None:
    x, y = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in simcc_case(1))
    got = answer(simcc_decoder(vectors(values, score=score)), {"x": x, "y": y})
    top = np.stack([x.max(-1), y.max(-1)])
    np.testing.assert_allclose(got["score"], getattr(np, score)(top, axis=0), rtol=1e-6)
    right = np.stack([x.argmax(-1), y.argmax(-1)], -1) / 2
    np.testing.assert_array_equal(got["xy"], right)


def test_temperature_sharpens_the_spread() -> None:
    x, y = simcc_case(2)
    for temperature in (1.0, 0.25):
        case = vectors("scores", temperature=temperature)
        got = answer(simcc_decoder(case), {"x": x, "y": y})
        spread = keypoints.covariance(x, y, got["xy"], 2.0, temperature=temperature)
        np.testing.assert_allclose(got["variances"][..., 0], spread[..., 0, 0], rtol=2e-3)


@pytest.mark.parametrize("rank", [3, 4])
def test_coordinates(rank: int) -> None:
    draw = np.random.default_rng(0)
    rows = draw.uniform(0, 1, (4, JOINTS, 3)).astype(np.float32)
    sigmas = (0.03, 0.05, 0.07, 0.09, 0.1)
    fed = rows[:, None] if rank == 4 else rows
    got = answer(coordinates_decoder(rank, (64, 32), sigmas), {"triples": fed})
    xy = np.stack([rows[..., 1] * 64, rows[..., 0] * 32], -1)
    np.testing.assert_allclose(got["xy"], xy, rtol=1e-6)
    np.testing.assert_array_equal(got["score"], rows[..., 2])
    area = keypoints.person_area(xy)
    right = (2 * np.array(sigmas)) ** 2 * area[:, None]
    np.testing.assert_allclose(got["variances"], np.stack([right] * 2, -1), rtol=1e-4)
