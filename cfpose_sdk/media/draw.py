"""Draw poses on an image: joints, limbs, boxes, ids, ellipses of the covariance."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.media.image import Image
from cfpose_sdk.skeleton import Skeleton

Colour = tuple[int, int, int]  # BGR

_LEFT: Colour = (60, 170, 255)  # orange
_RIGHT: Colour = (255, 160, 60)  # blue
_CENTRE: Colour = (110, 220, 110)  # green
_EDGE: Colour = (30, 30, 30)  # dark rim, so that colours stand out on any ground
_BOX: Colour = (225, 225, 225)
_SHIFT = 4  # OpenCV draws at 1 / 2**_SHIFT px
_FAR = 1 << 20  # px; beyond it OpenCV's fixed-point coordinates overflow


def draw_poses(
    image: Image,
    xy: NDArray[np.floating],
    confidence: NDArray[np.floating],
    boxes: NDArray[np.floating],
    skeleton: Skeleton,
    *,
    threshold: float,
    show_boxes: bool = False,
    ids: NDArray[np.integer] | None = None,
    covariance: NDArray[np.floating] | None = None,
) -> Image:
    """Draw (N, K, 2) keypoints with (N, K) confidence over a BGR image; returns a new image.

    Joints below `threshold` and their limbs are left out. Lines grow with the (N, 4) xyxy boxes;
    left is orange, right is blue, the middle is green; with (N,) `ids` each person has a colour of
    its own, and its number. (N, K, 2, 2) `covariance` adds ellipses of two standard deviations.
    Small people are drawn last, on top.
    """
    canvas = image.copy()
    sides = _joint_colours(skeleton)
    heights = [float(max(box[2] - box[0], box[3] - box[1])) for box in boxes]
    for person in sorted(range(len(xy)), key=lambda n: -heights[n]):
        width = _line_width(heights[person], canvas)
        if show_boxes:
            corners = np.round(boxes[person].clip(-_FAR, _FAR)).astype(int).tolist()
            cv2.rectangle(
                canvas, corners[:2], corners[2:], _BOX, max(1, round(width / 3)), cv2.LINE_AA
            )
        shown = (confidence[person] >= threshold) & (np.abs(xy[person]) < _FAR).all(axis=-1)
        colours = sides if ids is None else [_id_colour(int(ids[person]))] * len(skeleton)
        _draw_person(canvas, xy[person], shown, skeleton, colours, width)
        if covariance is not None:
            _draw_spread(canvas, xy[person], covariance[person], shown, colours)
        if ids is not None:
            _draw_number(canvas, int(ids[person]), boxes[person], colours[0], width)
    return canvas


def _draw_person(
    canvas: Image,
    xy: NDArray[np.floating],
    shown: NDArray[np.bool_],
    skeleton: Skeleton,
    colours: list[Colour],
    width: float,
) -> None:
    limbs = [(a, b) for a, b in skeleton.limbs if shown[a] and shown[b]]
    thick, rim = max(1, round(width)), max(1, round(width * 0.35))
    if width >= 2:
        for a, b in limbs:
            _line(canvas, xy[a], xy[b], _EDGE, thick + 2 * rim)
    for a, b in limbs:
        colour = colours[a] if colours[a] == colours[b] else _limb_colour(colours[a], colours[b])
        _line(canvas, xy[a], xy[b], colour, thick)
    radius = max(1.5, width * 1.05)
    for joint in np.flatnonzero(shown):
        _dot(canvas, xy[joint], _EDGE, radius + rim * 0.8)
        _dot(canvas, xy[joint], colours[joint], radius)


def _draw_spread(
    canvas: Image,
    xy: NDArray[np.floating],
    covariance: NDArray[np.floating],
    shown: NDArray[np.bool_],
    colours: list[Colour],
) -> None:
    """Ellipses of two standard deviations along the axes of each joint's (2, 2) covariance."""
    for joint in np.flatnonzero(shown):
        if not np.isfinite(covariance[joint]).all():
            continue
        variance, axes = np.linalg.eigh(covariance[joint].astype(np.float64))
        radii = 2 * np.sqrt(np.clip(variance, 0, _FAR))
        # along the larger axis first; the angle is clockwise on the screen, as y points down
        angle = math.degrees(math.atan2(axes[1, 1], axes[0, 1]))
        lengths = tuple(round(min(r, _FAR / 32) * (1 << _SHIFT)) for r in (radii[1], radii[0]))
        cv2.ellipse(
            canvas,
            _fixed(xy[joint]),
            lengths,
            angle,
            0,
            360,
            colours[joint],
            1,
            cv2.LINE_AA,
            _SHIFT,
        )


def _draw_number(
    canvas: Image, number: int, box: NDArray[np.floating], colour: Colour, width: float
) -> None:
    scale = max(0.4, width * 0.2)
    x, y = (round(float(value)) for value in box[:2].clip(-_FAR, _FAR))
    place = (x, max(y, round(22 * scale)))
    for paint, thickness in ((_EDGE, 3), (colour, 1)):
        thick = max(thickness, round(thickness * scale))
        cv2.putText(
            canvas, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, scale, paint, thick, cv2.LINE_AA
        )


def _id_colour(number: int) -> Colour:
    """A bright colour; golden-angle steps keep the hues of near numbers apart."""
    hue = round(number * 137.508) % 360 // 2  # OpenCV's hues go to 180
    pixel = cv2.cvtColor(np.array([[[hue, 170, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def _line_width(person_px: float, canvas: Image) -> float:
    """Width in pixels: about a hundredth of the person, never a slab, never lost."""
    largest = max(2.0, max(canvas.shape[:2]) / 110)
    return float(np.clip(person_px / 85, 1.0, largest))


def _joint_colours(skeleton: Skeleton) -> list[Colour]:
    colours = [_CENTRE] * len(skeleton)
    for left, right in skeleton.flip_pairs:
        colours[left], colours[right] = _LEFT, _RIGHT
    return colours


def _limb_colour(a: Colour, b: Colour) -> Colour:
    """A limb from the middle to a side has the side's colour; one between sides is central."""
    sides = {a, b} - {_CENTRE}
    return sides.pop() if len(sides) == 1 else _CENTRE


def _fixed(point: NDArray[np.floating]) -> tuple[int, int]:
    x, y = (math.floor(float(value) * (1 << _SHIFT) + 0.5) for value in point)
    return x, y


def _line(
    canvas: Image,
    start: NDArray[np.floating],
    end: NDArray[np.floating],
    colour: Colour,
    thickness: int,
) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), colour, thickness, cv2.LINE_AA, _SHIFT)


def _dot(canvas: Image, centre: NDArray[np.floating], colour: Colour, radius: float) -> None:
    fixed_radius = round(radius * (1 << _SHIFT))
    cv2.circle(canvas, _fixed(centre), fixed_radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
