"""Ultralytics' pose data sets: a YAML file, and a text file of people beside each photo.

A line is `class x y w h`, then `px py` or `px py v` of each joint; all but class and v are shares
of the photo's sides. Source: the documentation of Ultralytics' pose data sets.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import what_is_at
from cfpose_sdk.media.image import read_image
from cfpose_training.skeletons import NAMED

Record = dict[str, Any]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
COCO = "coco-17"  # what 17 joints without names are


def read_yolo(path: Path, names: Sequence[str] = ()) -> tuple[Record, Path]:
    """The data set of a YAML file as a COCO object, and the folder that its file names start from.

    The photos of `train` and `val` (and `test`) are taken together; joints are named by `names`,
    else by the file's `kpt_names`, else 17 are COCO's. Raises DatasetError with what is missing.
    """
    options = read_yaml(path)
    shape = options.get("kpt_shape")
    if not (isinstance(shape, list) and len(shape) == 2 and shape[1] in (2, 3)):
        raise DatasetError(f"{path} has kpt_shape {shape!r}, expected [joints, 2 or 3]")
    joints, numbers = int(shape[0]), int(shape[1])
    names = tuple(names) or _joint_names(options, joints, path)
    if len(names) != joints:
        raise DatasetError(f"{path} has {joints} joints, {len(names)} names are given for them")
    root = _root(path, str(options.get("path") or ""))
    parts = [options.get(part) for part in ("train", "val", "test")]
    photos = [photo for part in parts if part for photo in _photos(root, part)]
    if not photos:
        raise DatasetError(f"{path} names no photos: neither of its train, val and test has any")
    images: list[Record] = []
    people: list[Record] = []
    for number, photo in enumerate(tqdm(photos, unit="photo", disable=not watched()), start=1):
        height, width = read_image(photo).shape[:2]
        name = photo.relative_to(root).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for line in _lines(photo):
            person = _person(line, (width, height), joints, numbers, _label_of(photo))
            people.append({"id": len(people) + 1, "image_id": number, **person})
    category: Record = {"id": 1, "name": "person", "keypoints": list(names)}
    if pairs := _pairs(options.get("flip_idx"), joints):
        category["flip_pairs"] = pairs
    return {"images": images, "annotations": people, "categories": [category]}, root


def _root(path: Path, name: str) -> Path:
    """`path` of the file: beside it, or where it says; the file's folder where it says nothing."""
    places = [path.parent / name, Path(name)] if name else []
    return next((p for p in places if what_is_at(p / "images") != "nothing"), path.parent)


def _joint_names(options: Record, joints: int, path: Path) -> tuple[str, ...]:
    names = options.get("kpt_names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    if isinstance(names, list):
        return tuple(str(name) for name in names)
    if joints == len(NAMED[COCO]):
        return NAMED[COCO].keypoints
    raise DatasetError(
        f"{path} does not name its {joints} joints; give --joints with {joints} names, in the "
        f"order of the labels: left_x and right_x pair by their names"
    )


def _pairs(flip_idx: Any, joints: int) -> list[list[int]]:
    if not isinstance(flip_idx, list) or sorted(flip_idx) != list(range(joints)):
        return []
    return [[a, b] for a, b in enumerate(flip_idx) if a < b and flip_idx[b] == a]


def _photos(root: Path, part: Any) -> list[Path]:
    """Photos of a folder, of a list file, or of several of them."""
    if isinstance(part, list):
        return [photo for each in part for photo in _photos(root, each)]
    place = _place(root, str(part), "..")
    kind = what_is_at(place)
    if kind == "file":
        lines = [line.strip() for line in place.read_text().splitlines()]
        return [_place(root, line, "data") for line in lines if line]
    if kind != "folder":
        raise DatasetError(f"{place} is neither a folder of photos nor a list of them")
    return sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)


def _place(root: Path, name: str, first: str) -> Path:
    """A path of the data set; where it is not there, without a first folder that tools put before.

    Roboflow's YAML says ../train/images of a folder beside it, CVAT's lists data/images/train.
    """
    parts = Path(name).parts
    if parts[:1] == (first,) and what_is_at(root / name) == "nothing":
        return root.joinpath(*parts[1:])
    return root / name


def _label_of(photo: Path) -> Path:
    """The text file: in `labels`, where the photo is in `images`, else beside it."""
    parts = list(photo.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _lines(photo: Path) -> list[str]:
    label = _label_of(photo)
    if what_is_at(label) != "file":
        return []
    return [line for line in label.read_text().splitlines() if line.strip()]


def _person(line: str, size_wh: tuple[int, int], joints: int, numbers: int, label: Path) -> Record:
    try:
        values = np.array([float(value) for value in line.split()])
    except ValueError as error:
        raise DatasetError(f"{label}: {line[:60]!r} holds what is no number") from error
    wanted = 5 + joints * numbers
    if len(values) != wanted:
        raise DatasetError(f"{label}: a line has {len(values)} numbers, expected {wanted}")
    side = np.array(size_wh)
    centre, span = values[1:3] * side, values[3:5] * side
    points = values[5:].reshape(joints, numbers)
    xy = points[:, :2] * side
    seen = points[:, 2] if numbers == 3 else np.where((xy == 0).all(axis=1), 0, 2)
    xy[seen == 0] = 0
    flat = np.column_stack([xy, np.clip(np.rint(seen), 0, 2)])
    return {
        "category_id": 1, "bbox": [*(centre - span / 2).tolist(), *span.tolist()],
        "area": float(span.prod()), "iscrowd": 0, "keypoints": flat.ravel().tolist(),
        "num_keypoints": int((seen > 0).sum()),
    }  # fmt: skip


def read_yaml(path: Path) -> Record:
    """The part of YAML that such files use: keys, numbers, words, lists, and one map in another.

    Raises DatasetError for a file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    options: Record = {}
    stack: list[tuple[int, Any]] = [(0, options)]
    for number, raw in enumerate(lines):
        text = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        if not text.strip():
            continue
        indent, text = len(text) - len(text.lstrip()), text.strip()
        while len(stack) > 1 and (
            indent < stack[-1][0] or (isinstance(stack[-1][1], list) and not text.startswith("- "))
        ):
            stack.pop()
        holder = stack[-1][1]
        if text.startswith("- ") and isinstance(holder, list):
            holder.append(_value(text[2:]))
            continue
        key, colon, rest = text.partition(":")
        if not colon or not isinstance(holder, dict):
            raise DatasetError(f"{path}, line {number + 1}: {text[:60]!r} is not understood")
        name = _value(key)
        if rest.strip():
            holder[name] = _value(rest)
            continue
        below = next((line for line in lines[number + 1 :] if line.split("#")[0].strip()), "")
        inner: Any = [] if below.strip().startswith("- ") else {}
        deeper = len(below) - len(below.lstrip())
        if deeper > indent or (isinstance(inner, list) and deeper == indent):
            holder[name] = inner
            stack.append((deeper, inner))
        else:
            holder[name] = None
    return options


def _value(text: str) -> Any:
    text = text.strip()
    if text.startswith(("[", "{")):
        words = re.sub(r"(?<=[\[,{:])\s*([A-Za-z_][\w .\-/]*?)\s*(?=[\],}:])", r'"\1"', text)
        text = words
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text.strip("'\"")
