"""Sources of a recipe as its joints have them: files with other joints meet by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.errors import DatasetError, TrainingError
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.config import Recipe, Source
from cfpose_training.skeletons import columns, skeleton_of, union

Record = dict[str, Any]


def with_joints(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with its joints: those that it names, else all that its sources label, by name.

    Raises DatasetError for annotations that cannot be read, TrainingError when they name no joints,
    or pair them differently.
    """
    if recipe.joints is not None:
        return recipe
    found: list[tuple[str, Skeleton]] = []
    for source in recipe.sources:
        category = read_annotations(root / source.annotations)["categories"][0]
        found.append((source.annotations, skeleton_of(category, source.annotations)))
    if not found:
        raise TrainingError("the recipe has no sources and names no skeleton; give one of the two")
    return dataclasses.replace(recipe, joints=union(found))


def read_source(source: Source, root: Path, skeleton: Skeleton) -> Record:
    """A source's annotations with the joints of `skeleton`, in its order, joined by name.

    A joint that the source does not label has v = 0 in all its people, and weight 0 in the loss.
    Its joints that are not of the skeleton are left out. Raises DatasetError when the two share no
    joint, as `read_annotations` does, and where a file without names has another number of joints.
    """
    record = read_annotations(root / source.annotations)
    names = tuple(record["categories"][0].get("keypoints") or ())
    if names == skeleton.keypoints:
        return record
    if not names:
        _check_count(source, record["annotations"], skeleton)
        return record
    places = columns(skeleton.keypoints, names)
    if all(place is None for place in places):
        raise DatasetError(
            f"{source.annotations} labels {len(names)} keypoints {names}, and none of "
            f"the recipe's {len(skeleton)}: {skeleton.keypoints}"
        )
    category = {"keypoints": list(skeleton.keypoints)}
    record["categories"] = [{**record["categories"][0], **category}]
    record["annotations"] = [_as_joints(person, places) for person in record["annotations"]]
    return record


def unlabelled(names: Sequence[str], skeleton: Skeleton) -> tuple[str, ...]:
    """The skeleton's joints that are not among the names."""
    places = columns(skeleton.keypoints, names)
    return tuple(
        name for name, place in zip(skeleton.keypoints, places, strict=True) if place is None
    )


def _as_joints(person: Mapping[str, Any], places: Sequence[int | None]) -> Record:
    flat = person["keypoints"]
    joints: list[float] = []
    for place in places:
        joints += [0, 0, 0] if place is None else flat[3 * place : 3 * place + 3]
    labelled = sum(v > 0 for v in joints[2::3])
    # a person may state 0 though joints are labelled: then it is not counted here either
    changed = {"keypoints": joints, "num_keypoints": min(labelled, person["num_keypoints"])}
    weights = person.get("joint_weights")
    if isinstance(weights, list):
        if len(weights) != len(flat) // 3:
            raise DatasetError(
                f"annotation {person['id']} needs {len(flat) // 3} 'joint_weights', got "
                f"{len(weights)}"
            )
        changed["joint_weights"] = [0.0 if place is None else weights[place] for place in places]
    return {**person, **changed}


def _check_count(source: Source, people: Sequence[Mapping[str, Any]], skeleton: Skeleton) -> None:
    """A file that does not name its joints has them in the skeleton's order, or is refused."""
    if people and len(people[0]["keypoints"]) != 3 * len(skeleton):
        raise DatasetError(
            f"{source.annotations} does not name its {len(people[0]['keypoints']) // 3} joints, "
            f"expected {len(skeleton)}: {skeleton.keypoints}; name them in its category"
        )
