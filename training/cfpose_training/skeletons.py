"""Which joints a run learns: sets with a name, a file of one's own, or those of the annotations.

Joints of different files are the same where their names are, but for capitals, spaces, hyphens and
how the side is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cfpose_sdk.errors import InputError, TrainingError
from cfpose_sdk.skeleton import (
    COCO_17,
    COCO_WHOLEBODY_133,
    CROWDPOSE_14,
    DEFAULT_OKS_SIGMA,
    HALPE_26,
    Pair,
    Skeleton,
)

MAX_JOINTS = 200
NAMED: Mapping[str, Skeleton] = {
    "coco-17": COCO_17,
    "crowdpose-14": CROWDPOSE_14,
    "halpe-26": HALPE_26,
    "coco-wholebody-133": COCO_WHOLEBODY_133,
    "coco": COCO_17,
    "crowdpose": CROWDPOSE_14,
}


_SIDES = {"l": "left", "left": "left", "r": "right", "right": "right"}
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # in leftWrist, LWrist


def joint_key(name: str) -> str:
    """What the spellings of one joint share: `Left Wrist`, `LWrist`, `wrist.L` are `left_wrist`."""
    words = re.split(r"[\s_.\-]+", _HUMP.sub("_", name.strip()).lower())
    sides = [_SIDES[word] for word in words if word in _SIDES]
    return "_".join([*sides, *(word for word in words if word not in _SIDES)])


def columns(wanted: Sequence[str], given: Sequence[str]) -> tuple[int | None, ...]:
    """For each wanted joint its place among the given ones; None: it is not there."""
    places = {joint_key(name): index for index, name in reversed(list(enumerate(given)))}
    return tuple(places.get(joint_key(name)) for name in wanted)


def named_skeleton(name: str, folder: Path) -> Skeleton:
    """A set of `NAMED`, or the one of a JSON file, whose path starts at `folder`.

    The file has `keypoints` and, as far as they are known, `limbs` and `flip_pairs` (pairs from 0)
    and `oks_sigmas`; a category of a COCO file will do too. Raises TrainingError.
    """
    if name in NAMED:
        return NAMED[name]
    if not name.endswith(".json"):
        known = ", ".join(list(NAMED)[:-2])
        raise TrainingError(f"skeleton is {name!r}, expected {known}, or a .json file of your own")
    path = folder / name
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise TrainingError(f"cannot read the skeleton {path}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"the skeleton {path} is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise TrainingError(f"the skeleton {path} is a {type(table).__name__}, expected an object")
    if "limbs" in table:
        table = {**table, "skeleton": [[a + 1, b + 1] for a, b in _pairs(table["limbs"])]}
    return skeleton_of(table, str(path))


def skeleton_of(category: Mapping[str, Any], label: str) -> Skeleton:
    """The skeleton of a category of annotations, as complete as the category and the names allow.

    The names of a set of `NAMED` mean that set. Else limbs are the category's (counted from 1, or
    from 0 where a 0 occurs) or, without any, those of a named set between its joints; pairs follow
    the names `left_x` and `right_x`; a sigma is that of a joint of this name in a named set, else
    0.067, the mean of COCO's. Raises TrainingError, with what to do, when the joints are no
    skeleton, or more than 200.
    """
    names = category.get("keypoints")
    if not isinstance(names, list | tuple) or not names:
        raise TrainingError(
            f"{label} names no joints: its category has no 'keypoints'; add them there, or give "
            f"the recipe a skeleton"
        )
    if len(names) > MAX_JOINTS:
        raise TrainingError(f"{label} has {len(names)} joints, expected 1 to {MAX_JOINTS}")
    names = tuple(str(name) for name in names)
    own = {key: category[key] for key in ("oks_sigmas", "flip_pairs") if category.get(key)}
    for known in dict.fromkeys(NAMED.values()):
        if not own and names == known.keypoints:
            return known
    limbs = _pairs(category.get("skeleton") or ())
    first = 0 if any(0 in limb for limb in limbs) else 1
    table = {
        "keypoints": names,
        "skeleton": [(a - first + 1, b - first + 1) for a, b in limbs or _known_limbs(names)],
    }
    try:
        return Skeleton.from_coco_category(
            table,
            oks_sigmas=own.get("oks_sigmas", known_sigmas(names)),
            flip_pairs=own.get("flip_pairs"),
        )
    except InputError as error:
        raise TrainingError(
            f"the joints of {label} are no skeleton: {error}; write them as [joints] into the "
            f"recipe (keypoints, limbs, flip_pairs, oks_sigmas)"
        ) from error


def known_sigmas(names: Iterable[str]) -> list[float]:
    """The OKS sigma of each joint: that of its name in a named set, else 0.067."""
    table = {
        joint_key(name): sigma
        for skeleton in reversed(dict.fromkeys(NAMED.values()))
        for name, sigma in zip(skeleton.keypoints, skeleton.oks_sigmas, strict=True)
    }
    return [table.get(joint_key(name), DEFAULT_OKS_SIGMA) for name in names]


def _known_limbs(names: Sequence[str]) -> list[Pair]:
    """Limbs of the named set that shares most joints, as pairs from 1."""
    places = {joint_key(name): index + 1 for index, name in enumerate(names)}

    def limbs(known: Skeleton) -> list[Pair]:
        ends = [tuple(joint_key(known.keypoints[i]) for i in limb) for limb in known.limbs]
        return [(places[a], places[b]) for a, b in ends if a in places and b in places]

    return max((limbs(known) for known in NAMED.values()), key=len)


def _pairs(rows: Any) -> list[Pair]:
    try:
        return [(int(a), int(b)) for a, b in rows]
    except (TypeError, ValueError) as error:
        raise TrainingError(f"limbs are {str(rows)[:80]}, expected pairs of joints") from error


def union(skeletons: Sequence[tuple[str, Skeleton]]) -> Skeleton:
    """One skeleton of the joints of all, those of the first before those that the others add.

    `skeletons`: the source that each comes from, and it. A joint that stands in several has the
    sigma of the first. Raises TrainingError when they pair joints differently, or hold more than
    200 together.
    """
    first = skeletons[0][1]
    names, sigmas = list(first.keypoints), list(first.oks_sigmas)
    limbs, pairs = list(first.limbs), {frozenset(pair): pair for pair in first.flip_pairs}
    for _, other in skeletons[1:]:
        for name, sigma in zip(other.keypoints, other.oks_sigmas, strict=True):
            if columns([name], names)[0] is None:
                names.append(name)
                sigmas.append(sigma)
        place = [names.index(name) for name in _as_spelt(other.keypoints, names)]
        known = {frozenset(limb) for limb in limbs}
        ends = [(place[a], place[b]) for a, b in other.limbs]
        limbs += [limb for limb in ends if frozenset(limb) not in known]
        for a, b in other.flip_pairs:
            pairs.setdefault(frozenset((place[a], place[b])), (place[a], place[b]))
    label = ", ".join(name for name, _ in skeletons)
    if len(names) > MAX_JOINTS:
        raise TrainingError(f"{label} have {len(names)} joints together, expected {MAX_JOINTS}")
    try:
        return Skeleton(tuple(names), tuple(limbs), tuple(pairs.values()), tuple(sigmas))
    except InputError as error:
        raise TrainingError(f"the joints of {label} do not fit together: {error}") from error


def _as_spelt(names: Iterable[str], among: Sequence[str]) -> list[str]:
    """The names as `among`, which has all of them, spells them."""
    spelt = {joint_key(name): name for name in reversed(among)}
    return [spelt[joint_key(name)] for name in names]
