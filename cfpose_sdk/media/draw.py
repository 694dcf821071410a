"""Draw poses on an image: joints, limbs, boxes, ids, ellipses of the covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.errors import InputError
from cfpose_sdk.media.image import Image
from cfpose_sdk.skeleton import Skeleton

Colour = tuple[int, int, int]  # BGR
Colouring = Literal["auto", "sides", "people"]  # auto: people where they have ids

_LEFT: Colour = (60, 170, 255)  # orange
_RIGHT: Colour = (255, 160, 60)  # blue
_CENTRE: Colour = (110, 220, 110)  # green
_EDGE: Colour = (30, 30, 30)  # dark rim, so that colours stand out on any ground
_BOX: Colour = (225, 225, 225)
_SHIFT = 4  # OpenCV draws at 1 / 2**_SHIFT px
_FINE = 0.35  # of a body's width: the points of faces and hands, which lie close together
_WIDEST = 100.0  # px of a line
_ROUND_FROM = 8.0  # px of radius; OpenCV's circles below are diamonds, of four or eight corners
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
    labels: Sequence[str] | None = None,
    line_width: float | None = None,
    colours: Colouring = "auto",
) -> Image:
    """Draw (N, K, 2) keypoints with (N, K) confidence over a BGR image; returns a new image.

    Joints below `threshold` and their limbs are left out. Lines grow with the (N, 4) xyxy boxes;
    left is orange, right is blue, the middle is green; with (N,) `ids` each person has a colour of
    its own, and its number. (N, K, 2, 2) `covariance` adds ellipses of two standard deviations.
    `labels` are written beside the people, in the place of their numbers. `line_width` in pixels
    holds for all; `colours` "sides" or "people" holds whether there are ids or not. Small people
    are drawn last, on top. Raises InputError for a width or colours that there are not.
    """
    check_style(line_width, colours)
    if labels is None and ids is not None:
        labels = [str(int(number)) for number in ids]
    numbers = np.arange(len(xy)) if ids is None else ids
    by_side = colours == "sides" or (colours == "auto" and ids is None)
    canvas = image.copy()
    sides = _joint_colours(skeleton)
    heights = [float(max(box[2] - box[0], box[3] - box[1])) for box in boxes]
    for person in sorted(range(len(xy)), key=lambda n: -heights[n]):
        width = line_width or _line_width(heights[person], canvas)
        if show_boxes:
            corners = np.round(boxes[person].clip(-_FAR, _FAR)).astype(int).tolist()
            cv2.rectangle(
                canvas, corners[:2], corners[2:], _BOX, max(1, round(width / 3)), cv2.LINE_AA
            )
        shown = (confidence[person] >= threshold) & (np.abs(xy[person]) < _FAR).all(axis=-1)
        own = _id_colour(int(numbers[person]))
        paints = sides if by_side else [own] * len(skeleton)
        _draw_person(canvas, xy[person], shown, skeleton, paints, width)
        if covariance is not None:
            _draw_spread(canvas, xy[person], covariance[person], shown, paints)
        if labels is not None:
            _draw_label(canvas, labels[person], boxes[person], _BOX if by_side else own, width)
    return canvas


def check_style(line_width: float | None, colours: Colouring) -> None:
    """Raise InputError for a width or colours that there are not."""
    if line_width is not None and not 0 < line_width <= _WIDEST:
        raise InputError(f"line_width must be more than 0 and at most {_WIDEST}, got {line_width}")
    if colours not in get_args(Colouring):
        raise InputError(f"colours must be one of {get_args(Colouring)}, got {colours!r}")


def _draw_person(
    canvas: Image,
    xy: NDArray[np.floating],
    shown: NDArray[np.bool_],
    skeleton: Skeleton,
    colours: list[Colour],
    width: float,
) -> None:
    fine = _fine_joints(skeleton)
    limbs = [(a, b) for a, b in skeleton.limbs if shown[a] and shown[b]]
    thick, rim = max(1, round(width)), max(1, round(width * 0.35))
    if width >= 2:
        for a, b in limbs:
            if not fine[b]:
                _line(canvas, xy[a], xy[b], _EDGE, thick + 2 * rim)
    for a, b in limbs:
        colour = colours[a] if colours[a] == colours[b] else _limb_colour(colours[a], colours[b])
        _line(canvas, xy[a], xy[b], colour, max(1, round(width * _FINE)) if fine[b] else thick)
    radius = max(1.25, width * 1.05)
    around = min(rim * 0.8, width * 0.4)  # of a dot: as dark a ring around small ones as large ones
    for joint in np.flatnonzero(shown):
        if fine[joint]:
            _dot(canvas, xy[joint], colours[joint], max(0.75, radius * _FINE))
            continue
        _dot(canvas, xy[joint], _EDGE, radius + around)
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


def _draw_label(
    canvas: Image, text: str, box: NDArray[np.floating], colour: Colour, width: float
) -> None:
    scale = max(0.4, width * 0.2)
    x, y = (round(float(value)) for value in box[:2].clip(-_FAR, _FAR))
    place = (x, max(y, round(22 * scale)))
    for paint, thickness in ((_EDGE, 3), (colour, 1)):
        thick = max(thickness, round(thickness * scale))
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, paint, thick, cv2.LINE_AA)


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


def _fine_joints(skeleton: Skeleton) -> list[bool]:
    """Joints of a face's outline or of a hand's bones, by their names: face_12, left_hand_thumb1.

    A skeleton that has one joint for a hand draws it as any other.
    """
    parts = [name.startswith("face_") or "_hand_" in name for name in skeleton.keypoints]
    return parts if sum(parts) > 2 else [False] * len(parts)


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
    if radius < _ROUND_FROM:
        _small_dot(canvas, centre, colour, radius)
        return
    fixed_radius = round(radius * (1 << _SHIFT))
    cv2.circle(canvas, _fixed(centre), fixed_radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _small_dot(canvas: Image, centre: NDArray[np.floating], colour: Colour, radius: float) -> None:
    """A disc in which each pixel is painted by the share of it that is covered."""
    low = np.floor(centre - radius - 1).astype(int)
    high = np.ceil(centre + radius + 2).astype(int)
    (x1, y1), (x2, y2) = np.maximum(low, 0), np.maximum(high, 0)
    part = canvas[y1:y2, x1:x2]
    y, x = np.mgrid[y1 : y1 + part.shape[0], x1 : x1 + part.shape[1]]
    covered = np.clip(radius + 0.5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)[..., None]
    part[:] = np.round(part * (1 - covered) + np.array(colour) * covered)
