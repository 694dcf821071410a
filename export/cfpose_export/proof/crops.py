"""Crops of people for a proof: as framed, and moved, dark, tiny or cut off."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.boxes import check_boxes
from cfpose_sdk.crops import crop_transforms, extract_crops
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import demo_photos
from cfpose_sdk.media.image import read_image
from cfpose_sdk.spec import ModelSpec

PEOPLE_FILE = "people.json"  # in a folder of photos: file name → list of xyxy boxes
PLAIN_COUNT = 42  # crops of a float32 proof
CALIBRATION_COUNT = 96  # crops for the ranges of int8
CALIBRATION_SEED = 1  # other crops than those of the proof
HARD_COUNT = 240  # crops of a lower precision's proof
DARK = 0.12  # of the brightness
TINY = 6  # a tiny person has this many times fewer pixels along each side
CUT = 0.45  # a person is moved out of the crop by up to this share of its box
Crops = NDArray[np.uint8]
Boxes = NDArray[np.float64]
Kind = Literal["framed", "moved", "dark", "tiny", "cut"]


class ProofSet(NamedTuple):
    """N crops, what was done to each, and the area of its person's box in crop pixels."""

    crops: Crops  # (N, H, W, 3) BGR
    areas: NDArray[np.float64]  # (N,)
    kinds: tuple[Kind, ...]


def read_people(folder: Path | None, spec: ModelSpec, count: int = PLAIN_COUNT) -> Crops:
    """(count, H, W, 3) BGR crops of the people in a folder of photos.

    Boxes come from its people.json; when they are fewer than `count`, shifted and scaled ones
    follow. None: the demo photos. Raises InputError when there is nothing to use.
    """
    return _gather(folder, spec, count, ("moved",), seed=0).crops


def read_hard(
    folder: Path | None, spec: ModelSpec, count: int = HARD_COUNT, *, seed: int = 0
) -> ProofSet:
    """`count` crops as of `read_people`; after the boxes as given, in turn moved, dark, tiny, cut.

    Equal arguments give equal crops. Lower precisions fail on such people first.
    """
    return _gather(folder, spec, count, ("moved", "dark", "tiny", "cut"), seed)


def _gather(
    folder: Path | None, spec: ModelSpec, count: int, kinds: tuple[Kind, ...], seed: int
) -> ProofSet:
    folder = demo_photos() if folder is None else folder
    people = _read_listing(folder / PEOPLE_FILE)
    total = sum(len(boxes) for boxes in people.values())
    draw = np.random.Generator(np.random.PCG64(seed))
    photos = {name: read_image(folder / name) for name in people} if total < count else {}
    parts, areas, done = [], [], []
    for round_ in range(math.ceil(count / total)):
        kind: Kind = "framed" if round_ == 0 else kinds[(round_ - 1) % len(kinds)]
        for name, boxes in people.items():
            moved = boxes if kind == "framed" else _move(boxes, draw)
            if kind == "cut":
                moved = _push_out(moved, draw)
            transforms = crop_transforms(moved, spec.size_wh, spec.box_scale)
            photo = photos[name] if name in photos else read_image(folder / name)
            parts.append(_spoil(extract_crops(photo, transforms, spec.size_wh), kind))
            sides = moved[:, 2:] - moved[:, :2]
            areas.append(sides.prod(axis=1) * np.abs(np.linalg.det(transforms[:, :, :2])))
            done += [kind] * len(boxes)
    return ProofSet(
        np.concatenate(parts)[:count], np.concatenate(areas)[:count], tuple(done[:count])
    )


def _read_listing(listing: Path) -> Mapping[str, Boxes]:
    if not listing.is_file():
        raise InputError(
            f"{listing} does not exist; give a folder of photos with a {PEOPLE_FILE} that maps "
            f"file names to lists of [x1, y1, x2, y2] person boxes"
        )
    try:
        people = {str(name): check_boxes(b) for name, b in json.loads(listing.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{listing} is not a map of file names to boxes: {error}") from error
    if not sum(len(boxes) for boxes in people.values()):
        raise InputError(f"{listing} names no people; the proof needs at least one")
    return people


def _move(boxes: Boxes, draw: np.random.Generator) -> Boxes:
    """The same people, framed otherwise."""
    centre, span = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centre = centre + span * draw.uniform(-0.1, 0.1, span.shape)
    span = span * draw.uniform(0.8, 1.3, (len(boxes), 1))
    return np.concatenate([centre - span / 2, centre + span / 2], axis=1)


def _push_out(boxes: Boxes, draw: np.random.Generator) -> Boxes:
    """The same boxes, moved so far that a part of the person lies outside."""
    span = boxes[:, 2:] - boxes[:, :2]
    side = draw.choice([-1.0, 1.0], span.shape)
    shift = span * side * draw.uniform(0.2, CUT, span.shape)
    moved: Boxes = boxes + np.tile(shift, 2)
    return moved


def _spoil(crops: Crops, kind: Kind) -> Crops:
    assert kind in get_args(Kind)
    if kind == "dark":
        return np.round(crops * DARK).astype(np.uint8)
    if kind == "tiny":
        height, width = crops.shape[1:3]
        small = (max(1, width // TINY), max(1, height // TINY))
        shrunk = [cv2.resize(crop, small, interpolation=cv2.INTER_AREA) for crop in crops]
        return np.array(
            [cv2.resize(c, (width, height), interpolation=cv2.INTER_LINEAR) for c in shrunk],
            dtype=np.uint8,
        ).reshape(crops.shape)
    return crops
