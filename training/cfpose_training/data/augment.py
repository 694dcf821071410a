"""Random crops of one person: box, zoom, rotation, half body, mirror; colours, a hole.

Source: HRNet's JointsDataset, as SimCC uses it. One affine map does the first five, so a crop is
resampled once. `box` moves the edges, as a detector's boxes are not exact. The hole is RTMPose's
coarse dropout (DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
Cutout").
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.crops import crop_transforms
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.config import Arithmetic, AugmentConfig

HALF_BODY_SCALE = 1.5  # of the tight box around the chosen half; there is no other margin


def random_transform(
    box: Float64,
    joints: Float64,
    skeleton: Skeleton,
    size_wh: tuple[int, int],
    box_scale: float,
    config: AugmentConfig,
    rng: np.random.Generator,
    arithmetic: Arithmetic = "cfpose",
) -> tuple[Float64, bool]:
    """Draw the (2, 3) map from photo to crop for an xyxy `box` with `joints` (K, 3) x, y, v.

    Returns it and whether it mirrors (then left and right joints must be swapped). `hrnet`: as
    HRNet does, the photo is mirrored before it is cut, x → w − 1 − x. The box's centre stays at
    W / 2 of the crop, so a crop's pixel goes to W − x there, and not to W − 1 − x as in the flip
    test.
    """
    labelled = joints[:, 2] > 0
    if labelled.sum() > config.half_body_min_joints and rng.random() < config.half_body_p:
        half = _half_body_box(joints, labelled, skeleton, rng)
        if half is not None:
            box, box_scale = half, HALF_BODY_SCALE
    if config.box_sigma:
        box = _missed_box(box, config.box_sigma, rng)
    sigma, turn = config.zoom_sigma, config.rotation_sigma_deg
    enlarge = np.clip(1 + sigma * rng.standard_normal(), 1 - sigma, 1 + sigma)
    rotation = np.clip(turn * rng.standard_normal(), -2 * turn, 2 * turn)
    if rng.random() >= config.rotation_p:
        rotation = 0.0
    if config.turn_p and rng.random() < config.turn_p:
        rotation = rng.uniform(-180, 180)
        enlarge *= _turned_share(box, rotation, size_wh)
    transform = crop_transforms(
        box[None], size_wh, box_scale, zoom=1 / enlarge, rotation_deg=rotation
    )[0]
    mirrored = bool(rng.random() < config.flip_p)
    if mirrored:
        transform[0] *= -1
        transform[0, 2] += size_wh[0] - (arithmetic == "cfpose")
    return transform, mirrored


def colour_jitter(
    crop: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change contrast and brightness of a crop (H, W, 3): half for all channels, half for each one.

    Draws nothing when both options are 0.
    """
    if not config.contrast and not config.brightness:
        return crop
    gain = 1 + config.contrast * (rng.uniform(-0.5, 0.5) + rng.uniform(-0.5, 0.5, (3, 1)))
    shift = config.brightness * (rng.uniform(-0.5, 0.5) + rng.uniform(-0.5, 0.5, (3, 1)))
    levels = np.clip(np.rint(gain * (np.arange(256) - 127.5) + 127.5 + shift), 0, 255)
    table = np.ascontiguousarray(levels.T[None], dtype=np.uint8)  # (1, 256, 3), as cv2.LUT reads it
    return np.asarray(cv2.LUT(crop, table), dtype=np.uint8)


def coarse_dropout(
    crop: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The crop (H, W, 3), or with probability `dropout_p` a copy with one black rectangle.

    Its sides are uniform in `dropout_side`, as shares of the crop's, and its place is uniform
    among those wholly inside. Labels stay: the network has to predict a hidden joint, too.
    """
    if rng.random() >= config.dropout_p:
        return crop
    low, high = config.dropout_side
    sides = np.array(crop.shape[:2])
    size = np.maximum(1, np.round(rng.uniform(low, high, 2) * sides).astype(int))
    top, left = rng.integers(0, sides - size, endpoint=True)
    holed = crop.copy()
    holed[top : top + size[0], left : left + size[1]] = 0
    return holed


def rotation_deg(transform: Float64) -> float:
    """How far a (2, 3) map turns the picture, mirrored or not: -180 to 180 degrees."""
    return float(np.rad2deg(np.arctan2(transform[1, 0], transform[1, 1])))


def _turned_share(box: Float64, turned_deg: float, size_wh: tuple[int, int]) -> float:
    """The crop's side about an ellipse in the box that is turned, over that about the box itself.

    People fill the middle of their boxes: the extent of the turned ellipse is nearer to a finder's
    box of them than that of the turned corners.
    """
    span = box[2:] - box[:2]
    angle = np.deg2rad(turned_deg)
    width = np.hypot(span[0] * np.cos(angle), span[1] * np.sin(angle))
    height = np.hypot(span[0] * np.sin(angle), span[1] * np.cos(angle))
    aspect = size_wh[0] / size_wh[1]
    return float(max(width, height * aspect) / max(span[0], span[1] * aspect))


def _missed_box(box: Float64, sigma: float, rng: np.random.Generator) -> Float64:
    """The xyxy box, each edge moved by clip(sigma * N, -2 sigma, 2 sigma) of the box's side."""
    off = np.clip(sigma * rng.standard_normal(4), -2 * sigma, 2 * sigma)
    sides = np.tile(box[2:] - box[:2], 2)
    moved: Float64 = box + off * sides
    return moved


def _half_body_box(
    joints: Float64, labelled: NDArray[np.bool_], skeleton: Skeleton, rng: np.random.Generator
) -> Float64 | None:
    """Tight xyxy box around the labelled upper or lower joints, centred on their mean."""
    is_lower = np.array(
        [any(part in name for part in ("hip", "knee", "ankle")) for name in skeleton.keypoints]
    )
    upper, lower = joints[labelled & ~is_lower, :2], joints[labelled & is_lower, :2]
    prefer_upper = rng.standard_normal() < 0.5
    chosen = upper if (prefer_upper and len(upper) > 2) or len(lower) <= 2 else lower
    if len(chosen) < 2:
        return None
    centre = chosen.mean(axis=0)
    # a line of joints has no height; one pixel keeps the crop defined
    span = np.maximum(chosen.max(axis=0) - chosen.min(axis=0), 1.0)
    return np.concatenate([centre - span / 2, centre + span / 2])
