"""Check the training data: what is there, what is missing and where to get it, what is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cfpose_bench.data.annotations import is_counted, read_annotations
from cfpose_bench.data.gaps import AREA_OF_BOX, notes
from cfpose_sdk.errors import DatasetError, TrainingError
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.config import PhotoSource, Recipe, Source
from cfpose_training.data.people import clipped_box, is_held_out
from cfpose_training.data.photo_sizes import other_sizes, size_in_header
from cfpose_training.skeletons import columns
from cfpose_training.sources import unlabelled, with_joints

COCO_PAGE = (
    "the Download page of the COCO site (cocodataset): the 2017 {} and annotations; or: "
    "cfpose-train data fetch coco"
)
CROWDPOSE_PAGE = (
    "the repository CrowdPose of Jeff-sjtu on GitHub, whose README links the images and json "
    "folders; more on it: cfpose-train data fetch crowdpose"
)
LSP_PAGE = (
    "the page Leeds Sports Pose Extended Training Dataset of Sam Johnson; its joints have to be "
    "written as a COCO keypoint file"
)
PAGES = (  # by a word in a source's name or path
    ("crowdpose", CROWDPOSE_PAGE),
    ("lsp", LSP_PAGE),
    ("coco", COCO_PAGE.format("images")),
    ("person_keypoints_train2017", COCO_PAGE.format("Train images")),
    ("person_keypoints_val2017", COCO_PAGE.format("Val images")),
)


@dataclass(frozen=True)
class Known:
    """A public data set: its usual places below the data root, and where to get it."""

    name: str
    places: tuple[tuple[str, str], ...]  # (annotation file, photo folder), the first that is there
    origin: str


# `cfpose_bench.data.dataset.KNOWN` lists annotation files alone, and more of them; it looks for the
# photos beside the file. Here each place names both, and a report lists them. A test compares the
# two tables.
KNOWN = (
    Known(
        "COCO train2017",
        (
            ("annotations/person_keypoints_train2017.json", "train2017"),
            ("coco/annotations/person_keypoints_train2017.json", "coco/train2017"),
            ("coco/annotations/person_keypoints_train2017.json", "coco/images/train2017"),
            ("coco/person_keypoints_train.json", "coco/images/train"),
        ),
        COCO_PAGE.format("Train images"),
    ),
    Known(
        "COCO val2017",
        (
            ("annotations/person_keypoints_val2017.json", "val2017"),
            ("coco/annotations/person_keypoints_val2017.json", "coco/val2017"),
            ("coco/annotations/person_keypoints_val2017.json", "coco/images/val2017"),
            ("coco/person_keypoints_val.json", "coco/images/val"),
        ),
        COCO_PAGE.format("Val images"),
    ),
    *(
        Known(
            f"CrowdPose {split}",
            tuple(
                (f"{root}{folder}/crowdpose_{split}.json", f"{root}images")
                for root in ("", "crowdpose/")
                for folder in ("json", "annotations")
            )
            + tuple(
                (f"{root}annotations/mmpose_crowdpose_{split}.json", f"{root}images")
                for root in ("", "crowdpose/")
            ),
            CROWDPOSE_PAGE,
        )
        for split in ("trainval", "test")
    ),
    Known(
        "LSP Extended",
        (("lspet/person_keypoints_train.json", "lspet/images"),),
        LSP_PAGE,
    ),
)


@dataclass(frozen=True)
class Check:
    """A report to print, and whether training can start with the data that is there."""

    text: str
    is_usable: bool


def check_known(root: Path) -> Check:
    """Check the public data sets below `root`; usable: at least one is there and none is broken.

    Raises DatasetError when there is no such folder.
    """
    if not os.path.isdir(root):
        raise DatasetError(f"{root} is no folder; expected the one that the data sets lie in")
    lines: list[str] = []
    here = broken = 0
    for known in KNOWN:
        there = [place for place in known.places if os.path.isfile(root / place[0])]
        if not there:
            lines += [f"{known.name}: not here; from {known.origin}"]
            lines += [
                f"  looked for {place}" for place in dict.fromkeys(p[0] for p in known.places)
            ]
            continue
        with_photos = [place for place in there if os.path.isdir(root / place[1])]
        annotations, images = (with_photos or there)[0]
        facts, problems = _check_file(root / annotations, root / images, None, known.origin)
        lines += _section(known.name, f"{annotations}, photos in {images}", facts, problems)
        here, broken = here + 1, broken + bool(problems)
    lines.append(f"{here} of {len(KNOWN)} known data sets are here, {broken} of them broken")
    return Check("\n".join(lines), is_usable=here > 0 and not broken)


def check_recipe(recipe: Recipe, root: Path) -> Check:
    """Check what a recipe reads; usable: all files are there, and label some of its joints.

    Photos are not decoded: a run does so before it begins.
    """
    lines: list[str] = []
    broken, skeleton = 0, recipe.joints
    if skeleton is None and recipe.sources:
        try:
            skeleton = with_joints(recipe, root).joints
        except DatasetError:  # its own section says what is wrong
            pass
        except TrainingError as error:
            lines, broken = [f"PROBLEM: {error}"], 1
    for source in recipe.sources:
        facts, problems = _check_file(
            root / source.annotations,
            root / source.images,
            skeleton,
            _origin(source.name, source.annotations) + _elsewhere(source.annotations, root),
            source,
        )
        title = f"{source.annotations}, photos in {source.images}"
        lines += _section(source.name, title, facts, problems)
        broken += bool(problems)
    for photos in () if recipe.finder is None else recipe.finder.sources:
        facts, problems = _check_photos(photos, root)
        lines += _section(f"finder: {photos.name}", f"photos in {photos.images}", facts, problems)
        broken += bool(problems)
    trained = [source for source in recipe.sources if source.holdout_every != 1]
    if recipe.sources and not trained:
        lines.append(
            "PROBLEM: nobody is left to train on: holdout_every = 1 in every source; set it to 0 "
            "in one that is to be trained on"
        )
    total = len(recipe.sources) + (0 if recipe.finder is None else len(recipe.finder.sources))
    lines.append(f"{total - broken} of {total} sources can be used")
    return Check("\n".join(lines), is_usable=broken == 0 and bool(trained or not recipe.sources))


def _section(name: str, title: str, facts: Sequence[str], problems: Sequence[str]) -> list[str]:
    return [
        f"{name}: {title}",
        *(f"  {fact}" for fact in facts),
        *(f"  PROBLEM: {problem}" for problem in problems),
    ]


def _origin(name: str, annotations: str) -> str:
    """Where to get a source, by its name or path."""
    label = f"{name} {annotations}".lower()
    for word, page in PAGES:
        if word in label:
            return page
    return "your own collection: any COCO-format keypoint file and its photos"


def _elsewhere(annotations: str, root: Path) -> str:
    """Another usual place of the same data set's annotations, where a file is."""
    for known in KNOWN:
        if any(annotations == place for place, _ in known.places):
            for place, images in known.places:
                if place != annotations and os.path.isfile(root / place):
                    return f"; {place} is there (photos: {images}): name the two in the recipe"
    return ""


def _check_file(
    annotations: Path,
    images: Path,
    skeleton: Skeleton | None,
    origin: str,
    source: Source | None = None,
) -> tuple[list[str], list[str]]:
    """Facts and problems of one annotation file and its photos; with `source`, of its part."""
    if not os.path.isfile(annotations):
        return [], [f"{annotations} is missing; from {origin}"]
    try:
        record = read_annotations(annotations)
    except DatasetError as error:
        return [], [str(error)]
    names = tuple(record["categories"][0].get("keypoints") or ())
    part = record if source is None else _part(record, source)
    facts, problems = _people(part, names)
    if filled := notes(record).get(AREA_OF_BOX, 0):
        facts.append(f"{filled} people have no area (or 0); that of their box is taken")
    if source is not None:
        shared, unshared = _shares(part, source)
        facts, problems = facts + shared, problems + unshared
    if skeleton is not None and names:
        more, worse = _joints(names, skeleton)
        facts, problems = facts + more, problems + worse
    files = [image["file_name"] for image in part["images"]]
    missing = [name for name in files if not os.path.isfile(images / name)]
    listed = f"{len(files)} photos listed"
    if len(record["images"]) != len(files) and source is not None:
        listed = f"{len(files)} of {len(record['images'])} photos fit files = {source.files!r}"
    facts.insert(0, f"{listed}, {len(files) - len(missing)} there")
    problems += _other_sizes(part, images)
    if missing:
        problems.append(
            f"{len(missing)} of {len(files)} photos are missing in {images}, the first is "
            f"{missing[0]}; from {origin}"
        )
    return facts, problems


def _joints(names: Sequence[str], skeleton: Skeleton) -> tuple[list[str], list[str]]:
    """Which of the recipe's joints a file does not label, and which of its own are left out."""
    absent, others = unlabelled(names, skeleton), columns(names, skeleton.keypoints)
    if len(absent) == len(skeleton):
        return [], [f"it labels none of the recipe's joints {', '.join(skeleton.keypoints)}"]
    facts = [f"not labelled here, so unknown: {', '.join(absent)}"] if absent else []
    left = [name for name, place in zip(names, others, strict=True) if place is None]
    if left:
        facts.append(f"not of the recipe, so left out: {', '.join(left)}")
    return facts, []


def _other_sizes(record: dict[str, Any], folder: Path) -> list[str]:
    sized = [image for image in record["images"] if {"width", "height"} <= image.keys()]
    names = [image["file_name"] for image in sized]
    annotated = [(image["width"], image["height"]) for image in sized]
    found = (size_in_header(folder / name) for name in names)
    return list(filter(None, [other_sizes(names, annotated, found)]))


def _part(record: dict[str, Any], source: Source) -> dict[str, Any]:
    """The photos of a source, chosen by file name, and the people in them."""
    images = [image for image in record["images"] if fnmatchcase(image["file_name"], source.files)]
    ids = {image["id"] for image in images}
    people = [person for person in record["annotations"] if person["image_id"] in ids]
    return {**record, "images": images, "annotations": people}


def _shares(record: dict[str, Any], source: Source) -> tuple[list[str], list[str]]:
    """How many people are held out, and a problem when none are.

    `holdout_every = 1` is a source that is measured on and never trained on, as the paper's
    recipes have their evaluation photos.
    """
    if not source.holdout_every:
        return [], []
    counted = [person for person in record["annotations"] if is_counted(person)]
    held_out = sum(is_held_out(person["image_id"], source) for person in counted)
    every = f"holdout_every = {source.holdout_every}"
    if source.holdout_every == 1:
        return [f"all {held_out} people are measured on, and none is trained on ({every})"], []
    problems = []
    if counted and held_out == len(counted):
        problems.append(f"nobody is left to train on: {every} holds everybody out")
    if counted and not held_out:
        problems.append(f"nobody is left to measure on: {every} holds nobody out")
    return [f"{held_out} of these people held out ({every})"], problems


def _people(record: dict[str, Any], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    people = record["annotations"]
    counted = [person for person in people if is_counted(person)]
    crowds = sum(bool(person["iscrowd"]) for person in people)
    flags = Counter(int(v) for person in counted for v in person["keypoints"][2::3])
    joints = len(names) or (len(people[0]["keypoints"]) // 3 if people else 0)
    facts = [
        f"{len(counted)} people with labelled joints, {len(people) - len(counted) - crowds} "
        f"without, {crowds} crowd regions",
        f"{joints} joints: {', '.join(names) or 'not named'}",
        f"their visibility: {flags[2]} visible (v = 2), {flags[1]} hidden (v = 1), "
        f"{flags[0]} not labelled (v = 0)",
    ]
    problems = []
    if not counted:
        problems.append("nobody has a labelled joint")
    sizes = {image["id"]: image for image in record["images"]}
    if unsized := [i for i, image in sizes.items() if not {"width", "height"} <= image.keys()]:
        problems.append(f"{len(unsized)} photos lack width or height, the first is {unsized[0]}")
    outside = [
        person
        for person in counted
        if (image := sizes[person["image_id"]])["id"] not in unsized
        and clipped_box(person["bbox"], image["width"], image["height"]) is None
    ]
    if outside:
        problems.append(
            f"{len(outside)} boxes are empty or outside their photo, the first is "
            f"{outside[0]['bbox']} of annotation {outside[0]['id']}"
        )
    return facts, problems


def _check_photos(source: PhotoSource, root: Path) -> tuple[list[str], list[str]]:
    """Facts and problems of one of the finder's sources."""
    folder = root / source.images
    if not os.path.isdir(folder):
        return [], [f"{folder} is missing; from {_origin(source.name, source.annotations)}"]
    count = sum(os.path.isfile(path) for path in folder.iterdir())
    facts, problems = [f"{count} files"], [] if count else [f"{folder} is empty"]
    if source.annotations:
        more, worse = _check_file(
            root / source.annotations, folder, None, _origin(source.name, source.annotations)
        )
        facts, problems = facts + more, problems + worse
    return facts, problems
