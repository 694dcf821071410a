"""Boxes: checks, overlap, suppression and the letterbox, each against a plain oracle."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_sdk.boxes import check_boxes, iou_matrix, letterbox, nms
from cfpose_sdk.detectors.base import as_detections
from cfpose_sdk.errors import BoxError

COORDINATE = st.integers(0, 30)
BOX = st.tuples(COORDINATE, COORDINATE, st.integers(1, 20), st.integers(1, 20)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
BOXES = st.lists(BOX, max_size=12)


def test_good_boxes_pass_unchanged() -> None:
    given_boxes = [[-5, 3.5, 10, 20], [0, 0, 1e4, 1]]
    checked = check_boxes(given_boxes)
    assert checked.dtype == np.float64
    np.testing.assert_array_equal(checked, given_boxes)
    for nobody in ([], (), np.zeros((0, 4)), np.zeros(0, np.float32)):
        assert check_boxes(nobody).shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "cause"),
    [
        ([1, 2, 3, 4], r"pass one box as \[box\]"),
        ([[1, 2, 3]], r"\(1, 3\)"),
        ([[[1, 2, 3, 4]]], r"\(1, 1, 4\)"),
        (np.zeros((0, 3)), r"\(0, 3\)"),
        ([[1, 2, 3, 4], [1, 2]], "boxes must be"),
        ([["a", "b", "c", "d"]], "boxes must be numbers"),
        ([[None, 2, 3, 4]], "boxes must be numbers"),
        ([[True, True, True, True]], "boxes must be numbers"),
        ([[0, 0, 1, 1], [0, 0, math.nan, 1]], "box 1 must be finite"),
        ([[0, 0, math.inf, 1]], "box 0 must be finite"),
        ([[0, 0, 5, 5], [5, 0, 1, 5]], "box 1 must have x2 > x1"),
        ([[0, 5, 5, 5]], "box 0 must have"),
        ("none", "boxes must be numbers"),
    ],
)
def test_bad_boxes_name_the_row(boxes: object, cause: str) -> None:
    with pytest.raises(BoxError, match=cause):
        check_boxes(boxes)


def pixels(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = box
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@given(BOXES, BOXES)
def test_iou_counts_pixels(
    first: list[tuple[int, int, int, int]], second: list[tuple[int, int, int, int]]
) -> None:
    iou = iou_matrix(first, second)
    assert iou.shape == (len(first), len(second))
    for i, a in enumerate(map(pixels, first)):
        for j, b in enumerate(map(pixels, second)):
            assert iou[i, j] == pytest.approx(len(a & b) / len(a | b))


def slow_nms(boxes: list[tuple[int, int, int, int]], scores: list[float], iou: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda n: (-scores[n], n)):
        mine = pixels(boxes[i])
        if all(len(mine & pixels(boxes[k])) / len(mine | pixels(boxes[k])) <= iou for k in kept):
            kept.append(i)
    return kept


@given(
    st.lists(st.tuples(BOX, st.sampled_from([0.1, 0.3, 0.5, 0.9])), max_size=12),
    st.sampled_from([0.0, 0.3, 0.61, 1.0]),
)
def test_nms_is_greedy(
    scored: list[tuple[tuple[int, int, int, int], float]], threshold: float
) -> None:
    boxes, scores = [box for box, _ in scored], [score for _, score in scored]
    assert nms(boxes, scores, threshold).tolist() == slow_nms(boxes, scores, threshold)


@given(st.integers(1, 300), st.integers(1, 300))
def test_letterbox_fits_and_pads(w: int, h: int) -> None:
    image = np.full((h, w, 3), 200, np.uint8)
    canvas, scale = letterbox(image, (96, 64), pad_value=7)
    assert canvas.shape == (64, 96, 3)
    assert scale == min(96 / w, 64 / h)
    inside = canvas[..., 0] == 200
    assert set(np.unique(canvas)) <= {7, 200}
    rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert inside[:rows, :columns].all()  # one block at the top left
    # one side is filled, the other is true to the aspect within half a pixel (at least one pixel)
    assert rows == 64 or columns == 96
    assert abs(columns - max(1, w * scale)) <= 0.5
    assert abs(rows - max(1, h * scale)) <= 0.5


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_cut_letterbox_lacks_margin_alone(w: int, h: int) -> None:
    image = np.full((h, w, 3), 200, np.uint8)
    whole, scale = letterbox(image, (96, 160), pad_value=7)
    cut, same = letterbox(image, (96, 160), pad_value=7, cut=True)
    height, width = cut.shape[:2]
    assert same == scale
    assert height % 64 == 0 or height == 160
    assert width % 64 == 0 or width == 96
    np.testing.assert_array_equal(cut, whole[:height, :width])
    assert (whole[height:] == 7).all()
    assert (whole[:, width:] == 7).all()
    inside = cut[..., 0] == 200  # and no block of 64 is margin alone
    assert height - inside.any(axis=1).sum() < 64
    assert width - inside.any(axis=0).sum() < 64


def test_letterbox_moves_no_edge() -> None:
    # a white box with edges on multiples of the scale: its edges stay at x * scale exactly
    image = np.zeros((120, 200, 3), np.uint8)
    image[40:80, 60:140] = 255
    canvas, scale = letterbox(image, (100, 100), pad_value=0)
    assert scale == 0.5
    expected = np.zeros((100, 100, 3), np.uint8)
    expected[20:40, 30:70] = 255
    np.testing.assert_array_equal(canvas, expected)


def test_letterbox_averages_when_shrinking() -> None:
    image = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    canvas, _ = letterbox(image, (16, 16), pad_value=0)
    means = image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(canvas - means).max() <= 0.5 + 1e-9


def test_letterbox_enlarges_small_photos() -> None:
    image = cv2.merge([np.full((10, 10), 90, np.uint8)] * 3)
    canvas, scale = letterbox(image, (40, 80), pad_value=114)
    assert scale == 4
    assert (canvas[:40] == 90).all()
    assert (canvas[40:] == 114).all()


class OnGpu:
    """What a CUDA tensor does."""

    def __array__(self, *_: object, **__: object) -> object:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class OnGpuWithCpu(OnGpu):
    def detach(self) -> OnGpuWithCpu:
        return self

    def cpu(self) -> object:
        return np.array([[1.0, 2, 3, 4]])


def test_boxes_of_any_tensor() -> None:
    with pytest.raises(BoxError, match="OnGpu that NumPy does not take"):
        check_boxes(OnGpu())
    with pytest.raises(BoxError, match="NumPy does not take"):
        as_detections([OnGpu()])
    assert check_boxes(OnGpuWithCpu()).tolist() == [[1, 2, 3, 4]]
    torch = pytest.importorskip("torch")
    box = torch.tensor([[1.0, 2, 3, 4]])
    for boxes in (box.requires_grad_(), box.bfloat16(), [box[0].detach()], box.double()):
        assert check_boxes(boxes).tolist() == [[1, 2, 3, 4]]
        assert len(as_detections(boxes)) == 1
    far = torch.tensor([[2**24, 0, 2**24 + 1, 9]])
    assert check_boxes(far).tolist() == [[2**24, 0, 2**24 + 1, 9]]


@pytest.mark.parametrize("confidence", [None, np.array([0.25, 0.5], np.float32)])
def test_detections_of_another_project(confidence: object) -> None:
    class Theirs:  # as supervision.Detections
        xyxy = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])

    Theirs.confidence = confidence  # type: ignore[attr-defined]
    found = as_detections(Theirs())
    assert found.boxes.tolist() == Theirs.xyxy.tolist()
    assert found.scores.tolist() == ([1, 1] if confidence is None else [0.25, 0.5])
