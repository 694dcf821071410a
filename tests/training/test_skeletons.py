"""Joints of a run: from a name, a file, a table of the recipe, or the annotations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cfpose_sdk.errors import DatasetError, TrainingError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, HALPE_26, Skeleton
from cfpose_training.config import Source, load_recipe
from cfpose_training.data.people import load_people
from cfpose_training.pose.train import pose_spec
from cfpose_training.skeletons import NAMED, columns, joint_key, skeleton_of, union
from cfpose_training.sources import read_source, with_joints

FIVE = ("nose", "left_wrist", "right_wrist", "left_ankle", "right_ankle")


def edit_recipe(path: Path, line: str) -> Path:
    path.write_text(path.read_text().replace('skeleton = "coco-17"\n', line, 1))
    return path


@pytest.mark.parametrize(("name", "skeleton"), list(NAMED.items()))
def test_a_name_stands_for_its_set(tiny_recipe: Path, name: str, skeleton: Skeleton) -> None:
    recipe = load_recipe(edit_recipe(tiny_recipe, f'skeleton = "{name}"\n'))
    assert recipe.joints == skeleton


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('skeleton = "coco-18"\n', "skeleton is 'coco-18', expected coco-17, crowdpose-14, "),
        ('skeleton = "mine.json"\n', "cannot read the skeleton .*mine.json"),
        ("skeleton = 17\n", 'wrong value type for field "skeleton"'),
        ('joints = { keypoints = ["a"], limbs = [[0, 1]], flip_pairs = [], oks_sigmas = [0.1] }\n',
         r"limbs must join two different joints in 0\.\.0"),
        ('joints = { keypoints = ["a"], limbs = [[0, 999]], flip_pairs = [], oks_sigmas = [1] }\n',
         r"not usable"),
        ('joints = { keypoints = ["a"], limbs = [], flip_pairs = [], oks_sigmas = [nan] }\n',
         "oks_sigmas must hold 1 positive numbers"),
        ('joints = { keypoints = ["a"], limbs = [], flip_pairs = [], oks_sigmas = [3.0] }\n',
         r"joints.oks_sigmas is \(3.0,\), expected more than 0 to 1"),
        ('joints = { keypoints = ["a"], limbs = [], flip_pairs = [] }\n', "oks_sigmas"),
        ('skeleton = "coco-17"\njoints = { keypoints = ["a"], limbs = [], flip_pairs = [], '
         "oks_sigmas = [0.1] }\n", r"both skeleton and \[joints\] say which"),
    ],
)  # fmt: skip
def test_joints_that_are_none_are_named(tiny_recipe: Path, line: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_recipe(edit_recipe(tiny_recipe, line))


def test_a_recipe_without_a_skeleton_has_that_of_its_annotations(
    tiny_recipe: Path, tmp_path: Path, write_data: Callable[..., None]
) -> None:
    five = Skeleton(FIVE, (), ((1, 2), (3, 4)), (0.026, 0.062, 0.062, 0.089, 0.089))
    write_data(tmp_path / "data", skeleton=five)
    recipe = load_recipe(edit_recipe(tiny_recipe, ""))
    with pytest.raises(TrainingError, match='skeleton = "coco-17"'):
        pose_spec(recipe)
    joints = with_joints(recipe, tmp_path / "data").joints
    assert joints == five
    write_data(tmp_path / "data", skeleton=CROWDPOSE_14)
    assert with_joints(recipe, tmp_path / "data").joints == CROWDPOSE_14


def test_a_file_of_ones_own_stands_beside_the_recipe(tiny_recipe: Path) -> None:
    own = {"keypoints": ["a", "b", "c"], "limbs": [[0, 1]], "oks_sigmas": [0.1, 0.2, 0.3]}
    (tiny_recipe.parent / "own.json").write_text(json.dumps(own))
    recipe = load_recipe(edit_recipe(tiny_recipe, 'skeleton = "own.json"\n'))
    assert recipe.joints == Skeleton(("a", "b", "c"), ((0, 1),), (), (0.1, 0.2, 0.3))
    (tiny_recipe.parent / "own.json").write_text("[1]")
    with pytest.raises(TrainingError, match="is a list, expected an object"):
        load_recipe(tiny_recipe)


def test_limbs_pairs_and_sigmas_come_from_names_where_the_category_is_silent() -> None:
    found = skeleton_of({"keypoints": [*FIVE, "sword tip"]}, "x")
    assert found.flip_pairs == ((1, 2), (3, 4))
    assert found.oks_sigmas == (0.026, 0.062, 0.062, 0.089, 0.089, 0.067)
    arm = skeleton_of({"keypoints": ["Left Elbow", "Left Wrist", "Right Elbow", "Right Wrist"]}, "")
    assert arm.limbs == ((0, 1), (2, 3))
    assert arm.flip_pairs == ((0, 2), (1, 3))
    from_zero = {"keypoints": ["a", "b", "c"], "skeleton": [[0, 1], [1, 2]]}
    from_one = {"keypoints": ["a", "b", "c"], "skeleton": [[1, 2], [2, 3]]}
    assert skeleton_of(from_zero, "").limbs == skeleton_of(from_one, "").limbs == ((0, 1), (1, 2))
    assert skeleton_of({"keypoints": list(HALPE_26.keypoints)}, "") == HALPE_26


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({}, "names no joints"),
        ({"keypoints": []}, "names no joints"),
        ({"keypoints": [f"j{n}" for n in range(201)]}, "has 201 joints, expected 1 to 200"),
        ({"keypoints": ["left_hand", "nose"]}, r"left_hand has no counterpart.*\[joints\]"),
        ({"keypoints": ["a", "b"], "skeleton": [[1, 5]]}, "limbs must join two different"),
        ({"keypoints": ["a", "b"], "skeleton": [[1]]}, "expected pairs of joints"),
    ],
)
def test_a_category_that_is_no_skeleton_is_named(category: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        skeleton_of(category, "mine.json")


def test_two_hundred_joints_are_a_skeleton() -> None:
    assert len(skeleton_of({"keypoints": [f"j{n}" for n in range(200)]}, "")) == 200
    assert len(skeleton_of({"keypoints": ["tip"]}, "")) == 1


def test_joints_meet_by_name_and_are_unknown_where_a_source_lacks_them(
    tmp_path: Path, write_data: Callable[..., None]
) -> None:
    for name, skeleton in (("coco", COCO_17), ("crowd", CROWDPOSE_14)):
        write_data(tmp_path, people_file=f"{name}.json", folder=name, skeleton=skeleton)
    sources = [Source(name, f"{name}.json", name) for name in ("coco", "crowd")]
    both = union([("coco.json", COCO_17), ("crowd.json", CROWDPOSE_14)])
    assert both.keypoints == (*COCO_17.keypoints, "top_head", "neck")
    assert both.flip_pairs == COCO_17.flip_pairs
    assert both.oks_sigmas[:17] == COCO_17.oks_sigmas
    people = load_people(sources, tmp_path, both)
    first, second = people.joints[:12], people.joints[12:]
    assert (first[:, :17, 2] == 2).all()
    assert (first[:, 17:] == 0).all()
    assert (second[:, :5] == 0).all()  # the face
    record = json.loads((tmp_path / "crowd.json").read_text())
    raw = np.array([p["keypoints"] for p in record["annotations"]]).reshape(12, 14, 3)
    place = columns(both.keypoints, CROWDPOSE_14.keypoints)
    for joint, own in enumerate(place):
        if own is not None:
            np.testing.assert_array_equal(second[:, joint], raw[:, own])


def test_people_without_a_joint_of_the_recipe_are_left_out(
    tmp_path: Path, write_data: Callable[..., None]
) -> None:
    write_data(tmp_path, people_file="p.json", folder="p", photos=3)
    record = json.loads((tmp_path / "p.json").read_text())
    record["annotations"][0]["keypoints"][:3] = [0, 0, 0]
    record["annotations"][0]["joint_weights"] = [0.5] * 17
    (tmp_path / "p.json").write_text(json.dumps(record))
    source = Source("p", "p.json", "p")
    nose = Skeleton(("nose",), (), (), (0.026,))
    assert len(load_people([source], tmp_path, nose)) == 2
    letters = dataclasses.replace(COCO_17, keypoints=(*"abcdefghijklmnop", "nose"))
    read = read_source(source, tmp_path, letters)
    assert read["annotations"][0]["joint_weights"] == [0.0] * 16 + [0.5]
    assert read["annotations"][1]["num_keypoints"] == 1
    with pytest.raises(DatasetError, match="none of the recipe's 1"):
        read_source(source, tmp_path, Skeleton(("tail",), (), (), (0.1,)))


def test_pairs_that_contradict_each_other_are_refused() -> None:
    one = Skeleton(("a", "b", "c"), (), ((0, 1),), (0.1,) * 3)
    other = Skeleton(("a", "b", "c"), (), ((0, 2),), (0.1,) * 3)
    with pytest.raises(TrainingError, match=r"one\.json, two\.json do not fit together.*one flip"):
        union([("one.json", one), ("two.json", other)])


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("left_wrist", "Left Wrist", "left-wrist", "LWrist", "L_Wrist", "wrist.L", "wristLeft",
          "Wrist Left", " l wrist "), "left_wrist"),
        (("right_big_toe", "RBigToe", "rightBigToe", "big_toe_r"), "right_big_toe"),
        (("lip", "Lip"), "lip"),
        (("rib",), "rib"),
        (("joint_r1",), "joint_r1"),
    ],
)  # fmt: skip
def test_spellings_of_one_joint(names: tuple[str, ...], key: str) -> None:
    assert {joint_key(name) for name in names} == {key}


def test_no_two_joints_of_a_known_set_are_one() -> None:
    for known in NAMED.values():
        assert len(set(map(joint_key, known.keypoints))) == len(known)
