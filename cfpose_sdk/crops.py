"""Person box → affine → crop, and back: the one geometry of cfpose.

Convention: pixel centres sit at integer coordinates, pixel (0, 0) covers [-0.5, 0.5); order is
(x, y). A box is COCO's (x, y, x + w, y + h) verbatim. It grows to the crop's aspect ratio, then by
`box_scale`, and its centre maps to (W / 2, H / 2) of the W x H crop, as HRNet and SimCC do.
Networks that were trained with UDP (Huang et al., CVPR 2020) take the region's edges for the
centres of the outermost pixels: its centre maps to ((W - 1) / 2, (H - 1) / 2), its width to W - 1.
All arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import ImageError

Geometry = Literal["classic", "udp"]
_SIDE_LIMIT = 32767  # px; warpAffine of OpenCV 4 takes no longer side
_OPENCV = int(cv2.__version__.split(".")[0])
_WORTH = 12  # pixels that may get a fourth channel for one of a crop: at 25 nothing is gained


def crop_transforms(
    boxes: ArrayLike,
    size_wh: tuple[int, int],
    box_scale: float,
    *,
    zoom: ArrayLike = 1.0,
    rotation_deg: ArrayLike = 0.0,
    geometry: Geometry = "classic",
) -> Float64:
    """(N, 2, 3) affine maps from frame pixels to crop pixels, for (N, 4) xyxy boxes.

    `zoom` > 1 shows the person larger, `rotation_deg` turns the picture clockwise on the screen;
    both are scalars or (N,) and serve augmentation. Boxes must have positive width and height.
    """
    xyxy = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    width, height = size_wh
    centre = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    span = xyxy[:, 2:] - xyxy[:, :2]
    region_width = np.maximum(span[:, 0], span[:, 1] * width / height) * box_scale
    scale = width / region_width * np.asarray(zoom, dtype=np.float64)
    angle = np.broadcast_to(np.deg2rad(np.asarray(rotation_deg, dtype=np.float64)), scale.shape)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    transforms = np.empty((len(xyxy), 2, 3))
    transforms[:, 0, 0], transforms[:, 0, 1] = cos, -sin
    transforms[:, 1, 0], transforms[:, 1, 1] = sin, cos
    middle = np.array([width / 2, height / 2])
    if geometry == "udp":  # the region is W − 1 pixels wide and H − 1 high
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        transforms[:, :, :2] *= (2 * middle / size_wh)[:, None]
    transforms[:, :, 2] = middle - np.einsum("nij,nj->ni", transforms[:, :, :2], centre)
    return transforms


def invert_transforms(transforms: Float64) -> Float64:
    """(N, 2, 3) exact inverses of (N, 2, 3) affine maps, in closed form."""
    a, b = transforms[:, 0, 0], transforms[:, 0, 1]
    c, d = transforms[:, 1, 0], transforms[:, 1, 1]
    determinant = a * d - b * c
    inverse = np.empty_like(transforms)
    inverse[:, 0, 0], inverse[:, 0, 1] = d / determinant, -b / determinant
    inverse[:, 1, 0], inverse[:, 1, 1] = -c / determinant, a / determinant
    inverse[:, :, 2] = -np.einsum("nij,nj->ni", inverse[:, :, :2], transforms[:, :, 2])
    return inverse


def transform_points(transforms: Float64, points_xy: ArrayLike) -> Float64:
    """Apply (N, 2, 3) affine maps to (N, K, 2) points; returns (N, K, 2) float64."""
    points = np.asarray(points_xy, dtype=np.float64)
    linear, offset = transforms[:, :, :2], transforms[:, :, 2]
    moved: Float64 = np.einsum("nij,nkj->nki", linear, points) + offset[:, None, :]
    return moved


def extract_crops(
    image: NDArray[np.uint8],
    transforms: Float64,
    size_wh: tuple[int, int],
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8 crops of one (h, w, 3) image: bilinear, black outside the image.

    `out`: an array of that shape to fill and return. Raises ImageError where OpenCV (before 5)
    cannot crop because the crop's part of the image has a side of 32767 pixels or more.
    """
    width, height = size_wh
    if out is None:
        out = np.empty((len(transforms), height, width, 3), dtype=np.uint8)
    if max(image.shape[:2]) >= _SIDE_LIMIT:
        for crop, transform in zip(out, transforms, strict=True):
            part, onto = _part_of(image, transform, size_wh)
            _warp(part, onto, size_wh, crop)
        return out
    four = _with_fourth_channel(image, transforms, size_wh)
    if four is None:
        for crop, transform in zip(out, transforms, strict=True):
            _warp(image, transform, size_wh, crop)
        return out
    warped = np.empty((height, width, 4), dtype=np.uint8)
    for crop, transform in zip(out, transforms, strict=True):
        _warp(four, transform, size_wh, warped)
        cv2.cvtColor(warped, cv2.COLOR_BGRA2BGR, dst=crop)
    return out


def _warp(
    image: NDArray[np.uint8], transform: Float64, size_wh: tuple[int, int], crop: NDArray[np.uint8]
) -> None:
    """Fill one crop, of as many channels as the image."""
    linear, black = cv2.INTER_LINEAR, cv2.BORDER_CONSTANT
    try:
        cv2.warpAffine(image, transform, size_wh, dst=crop, flags=linear, borderMode=black)
    except cv2.error as error:
        if max(image.shape[:2]) < _SIDE_LIMIT:
            raise
        raise ImageError(
            f"a person's crop takes {image.shape[1]} x {image.shape[0]} pixels of the image; "
            f"OpenCV {cv2.__version__} crops sides below {_SIDE_LIMIT}; shrink the image"
        ) from error


def _with_fourth_channel(
    image: NDArray[np.uint8], transforms: Float64, size_wh: tuple[int, int]
) -> NDArray[np.uint8] | None:
    """The image with a fourth channel, filled where the crops sample it; None where not worth it.

    OpenCV 5 warps four channels more than twice as fast as three, to the same values.
    """
    if _OPENCV < 5:
        return None
    height, width = image.shape[:2]
    crop_px, rectangles = size_wh[0] * size_wh[1], np.array([[0, 0, width, height]])
    budget = _WORTH * len(transforms) * crop_px
    if width * height > budget:
        if (crop_px / np.abs(np.linalg.det(transforms[:, :, :2]))).sum() > budget:
            return None
        rectangles = _sampled(transforms, size_wh, (width, height))
    four = np.empty((height, width, 4), dtype=np.uint8)
    for x1, y1, x2, y2 in rectangles.tolist():
        cv2.cvtColor(image[y1:y2, x1:x2], cv2.COLOR_BGR2BGRA, dst=four[y1:y2, x1:x2])
    return four


def _sampled(
    transforms: Float64, size_wh: tuple[int, int], image_wh: tuple[int, int]
) -> NDArray[np.intp]:
    """(N, 4) x1, y1, x2, y2 of the pixels that each crop samples."""
    width, height = size_wh
    corners = np.array([[[0, 0], [width, 0], [0, height], [width, height]]])
    seen = transform_points(invert_transforms(transforms), corners.repeat(len(transforms), axis=0))
    # two pixels of margin for the bilinear neighbours; one pixel stays where all is outside
    low = np.clip(np.floor(seen.min(axis=1)) - 2, 0, np.subtract(image_wh, 1))
    high = np.clip(np.ceil(seen.max(axis=1)) + 3, low + 1, image_wh)
    return np.concatenate([low, high], axis=1).astype(np.intp)


def _part_of(
    image: NDArray[np.uint8], transform: Float64, size_wh: tuple[int, int]
) -> tuple[NDArray[np.uint8], Float64]:
    """The rectangle of the image that a crop samples, and the (2, 3) map from there."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = _sampled(transform[None], size_wh, (width, height))[0]
    onto = transform.copy()
    onto[:, 2] += transform[:, :2] @ (x1, y1)
    return image[y1:y2, x1:x2], onto


def mirror_points(
    points_xy: Float64, width: int, flip_order: Sequence[int] | NDArray[np.intp]
) -> Float64:
    """(N, K, 2) keypoints of the mirrored W-wide crop: x → W − 1 − x, left and right swapped."""
    mirrored = np.array(points_xy, dtype=np.float64)[:, flip_order]
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored
