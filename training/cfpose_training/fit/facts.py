"""A look at annotations and photos before training: who is labelled, how large, and what is odd."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cfpose_bench.data.annotations import is_counted, read_annotations
from cfpose_bench.data.gaps import AREA_OF_BOX, notes
from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import what_is_at
from cfpose_sdk.media.image import read_image
from cfpose_training.checkpoints.convert import load_network
from cfpose_training.checkpoints.initial import Initial
from cfpose_training.config import Source
from cfpose_training.data.near_photos import NEAR_BITS, photo_bits
from cfpose_training.data.people import clipped_box, ends_at_joints, load_people
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.pose.evaluation import predict_people
from cfpose_training.pose.speed import some_people

MOST_PHOTOS = 2000  # that are decoded; of more as many, evenly spread
EVERY = (5, 6, 4, 7, 8, 9, 10, 3, 11, 2)  # photos with an id that this divides are held out
HELD_OUT = (0.08, 0.35)  # share of the people on the development photos
SWAP_PEOPLE = 64  # that are compared with the start
FEW = 10  # development people: fewer say little


@dataclass(frozen=True)
class Facts:
    """What annotations hold."""

    photos: int
    people: int  # with labelled joints
    names: tuple[str, ...]
    labelled: tuple[int, ...]  # of each joint
    box_px: tuple[float, float, float]  # the longer side: 10th, 50th and 90th percentile
    holdout_every: int
    held_out: int  # people
    notes: tuple[str, ...]  # what is odd, and what follows from it

    @property
    def text(self) -> str:
        """A line a fact."""
        low, middle, high = self.box_px
        joints = ", ".join(
            f"{name} {count}" for name, count in zip(self.names, self.labelled, strict=True)
        )
        lines = [
            f"{self.people} people with labelled joints on {self.photos} photos",
            f"{len(self.names)} joints, and how often each is labelled: {joints}",
            f"longer side of a box: {middle:.0f} pixels in the middle, {low:.0f} to {high:.0f} in "
            f"four of five people",
            f"held out for development: {self.held_out} people, on the photos whose id "
            f"{self.holdout_every} divides",
        ]
        return "\n".join([*lines, *(f"NOTE: {note}" for note in self.notes)])


def look_at(annotations: Path, images: Path) -> Facts:
    """Facts of a COCO keypoint file and its photos.

    Raises DatasetError when nobody is labelled, people have no box, photos are missing, or a photo
    is of another size than annotated, with what to do.
    """
    record = read_annotations(annotations)
    people = [person for person in record["annotations"] if is_counted(person)]
    if not people:
        raise DatasetError(f"{annotations}: nobody has a labelled joint")
    names = tuple(record["categories"][0].get("keypoints") or ())
    flags = np.array([person["keypoints"][2::3] for person in people])
    counted = Counter(person["image_id"] for person in people)
    photos = [image for image in record["images"] if image["id"] in counted]
    _check_boxes(people, photos)
    chosen, hashes = _decoded(photos, images)
    every, held_out = split(counted)
    odd = _odd(record, people, names, flags)
    repeats = _repeats([photo["id"] for photo in chosen], hashes, every)
    odd += [
        f"photo {chosen[a]['file_name']} of the development photos shows what "
        f"{chosen[b]['file_name']} shows; the figures will look too good ({len(repeats)} such)"
        for a, b in repeats[:1]
    ]
    if held_out < FEW:
        odd.append(f"{held_out} development people say little; label more photos when you can")
    sides = np.array([max(person["bbox"][2:]) for person in people])
    low, middle, high = np.percentile(sides, [10, 50, 90])
    labelled = tuple(int(count) for count in (flags > 0).sum(axis=0))
    return Facts(
        len(photos), len(people), names, labelled, (float(low), float(middle), float(high)), every,
        held_out, tuple(odd),
    )  # fmt: skip


def swapped_note(start: Initial, annotations: Path, images: Path) -> str:
    """A sentence when most people's left and right are swapped, as the start sees them; else "".

    Pairs of joints that the start knows by name are compared with its poses, as labelled and the
    other way round. Where the two have no pair in common nothing is said.
    """
    if start.spec is None:
        return ""
    network, spec = load_network(start.path)
    try:
        people = load_people([Source("own", str(annotations.resolve()), str(images.resolve()))],
                             Path(), spec.skeleton)  # fmt: skip
    except DatasetError:
        return ""
    chosen = some_people(people, SWAP_PEOPLE, 1)
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_photos(chosen.photos, Path(folder))
        found = predict_people(network, chosen, cache, spec).xy
    given, order = chosen.joints, spec.skeleton.flip_order
    paired = (given[..., 2] > 0) & (given[:, order, 2] > 0) & (order != np.arange(len(order)))
    as_labelled, swapped = (
        np.where(paired, np.linalg.norm(found - xy, axis=-1), 0).sum(axis=1)
        for xy in (given[..., :2], given[:, order, :2])
    )
    compared = paired.any(axis=1)
    turned = int((swapped < 0.7 * as_labelled)[compared].sum())
    if compared.sum() < FEW or turned < 0.5 * compared.sum():
        return ""
    return (
        f"left and right look swapped in {turned} of {int(compared.sum())} people: left is the "
        f"person's own left; look at them with: cfpose-train data show"
    )


def split(people: Mapping[int, int]) -> tuple[int, int]:
    """`holdout_every`, and how many people it holds out; photo id → its people.

    The first of `EVERY` whose share of the people is right, else the one that is nearest to a
    fifth. Raises DatasetError where none leaves people on both sides.
    """
    total = sum(people.values())
    shares = {}
    for every in EVERY:
        held = sum(count for photo, count in people.items() if photo % every == 0)
        if HELD_OUT[0] <= held / total <= HELD_OUT[1]:
            return every, held
        if 0 < held < total:
            shares[every] = held
    if not shares:
        raise DatasetError(
            f"{len(people)} photos with labelled people cannot be split into training and "
            f"development by their ids; label more photos, or number them 1, 2, 3, …"
        )
    return min(shares.items(), key=lambda item: abs(item[1] / total - 0.2))


def _odd(
    record: Mapping[str, Any],
    people: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    flags: np.ndarray[Any, Any],
) -> list[str]:
    odd = []
    if filled := notes(record).get(AREA_OF_BOX, 0):
        odd.append(f"{filled} people have no area (or 0); that of their box is taken")
    never = [name for name, count in zip(names, (flags > 0).sum(axis=0), strict=True) if not count]
    if never:
        odd.append(f"never labelled, so the network cannot learn them: {', '.join(never)}")
    boxes = np.array([person["bbox"] for person in people], dtype=float)
    joints = np.array([person["keypoints"] for person in people], float).reshape(len(people), -1, 3)
    inside = (joints[..., :2] >= boxes[:, None, :2] - 0.1 * boxes[:, None, 2:]) & (
        joints[..., :2] <= boxes[:, None, :2] + 1.1 * boxes[:, None, 2:]
    )
    outside = (~inside.all(axis=-1) & (flags > 0)).any(axis=1)
    if outside.mean() > 0.2:
        odd.append(
            f"{int(outside.sum())} of {len(people)} people have a joint well outside their box; "
            f"the crops are cut by the boxes"
        )
    tight = sum(map(ends_at_joints, boxes, (p[p[:, 2] > 0, :2] for p in joints)))
    if tight > 0.2 * len(people):
        odd.append(
            f"{tight} of {len(people)} boxes end at the outermost joints, as those of CVAT's "
            f"skeletons do; a detector's are wider. cfpose-train data convert grows them"
        )
    return odd


def _check_boxes(people: Sequence[Mapping[str, Any]], photos: Sequence[Mapping[str, Any]]) -> None:
    sizes = {p["id"]: (p["width"], p["height"]) for p in photos if {"width", "height"} <= p.keys()}
    without = [
        person
        for person in people
        if (size := sizes.get(person["image_id"])) and clipped_box(person["bbox"], *size) is None
    ]
    if without:
        raise DatasetError(
            f"{len(without)} people with labelled joints have a box without area on their photo, "
            f"the first is {without[0]['bbox']} of annotation {without[0]['id']}; people without a "
            f"box get one with: cfpose-train data convert"
        )


def _decoded(
    photos: Sequence[Mapping[str, Any]], images: Path
) -> tuple[Sequence[Mapping[str, Any]], np.ndarray[Any, Any]]:
    """The photos that were decoded, and the hash of each; their sizes are as annotated."""
    chosen = photos[:: max(1, -(-len(photos) // MOST_PHOTOS))]
    names = [photo["file_name"] for photo in photos]
    if missing := [name for name in names if what_is_at(images / name) != "file"]:
        raise DatasetError(
            f"{len(missing)} of {len(photos)} photos are missing in {images}, the first is "
            f"{missing[0]}; give the folder that the file names start from as --images"
        )
    hashes, wrong = [], []
    for photo in tqdm(chosen, desc="looking at photos", unit="photo", disable=not watched()):
        image = read_image(images / photo["file_name"])
        hashes.append(photo_bits(image))
        size = photo.get("width"), photo.get("height")
        if size != (image.shape[1], image.shape[0]):
            wrong.append((photo["file_name"], size, (image.shape[1], image.shape[0])))
    if wrong:
        name, noted, real = wrong[0]
        raise DatasetError(
            f"{len(wrong)} photos are of another size than annotated: {name} is {real}, annotated "
            f"{noted}; write annotations that fit them with: cfpose-train data convert"
        )
    return chosen, np.array(hashes)


def _repeats(ids: Sequence[int], hashes: np.ndarray[Any, Any], every: int) -> list[tuple[int, int]]:
    """Development photos that look like a training photo: (development, training) indices."""
    held = np.array([photo % every == 0 for photo in ids])
    found = []
    for index in np.flatnonzero(held):
        bits = (hashes[~held] != hashes[index]).sum(axis=1)
        if len(bits) and bits.min() <= NEAR_BITS:
            found.append((int(index), int(np.flatnonzero(~held)[bits.argmin()])))
    return found
