"""`cfpose-train data check` says what is there, what is missing, what is broken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfpose_bench.data import dataset
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from cfpose_training.cli import main
from cfpose_training.config import Recipe, Source, load_recipe
from cfpose_training.data.check import KNOWN, check_known, check_recipe
from cfpose_training.data.people import load_people

Edit = Callable[[dict[str, Any]], None]


def edit(root: Path, change: Edit) -> None:
    record = json.loads((root / "people.json").read_text())
    change(record)
    (root / "people.json").write_text(json.dumps(record))


def command(root: Path, recipe: Path | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    arguments = [] if recipe is None else ["--recipe", str(recipe)]
    code = main(["data", "check", str(root), *arguments])
    return code, capsys.readouterr().out


def test_a_whole_data_set_is_described(
    tiny_root: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(record: dict[str, Any]) -> None:
        people = record["annotations"]
        people[0]["iscrowd"] = 1
        people[1].update(keypoints=[0] * 51, num_keypoints=0)
        people[2]["keypoints"][2::3] = [0] * 4 + [1] * 5 + [2] * 8

    edit(tiny_root, change)
    code, text = command(tiny_root, tiny_recipe, capsys)
    assert code == 0
    assert "people: people.json, photos in images" in text
    assert "12 photos listed, 12 there" in text
    assert "10 people with labelled joints, 1 without, 1 crowd regions" in text
    assert "17 joints: nose, left_eye" in text
    assert f"{9 * 17 + 8} visible (v = 2), 5 hidden (v = 1), 4 not labelled (v = 0)" in text
    assert "finder: people" in text
    assert "2 of 2 sources can be used" in text
    assert "PROBLEM" not in text


def test_missing_photos_and_files_are_named_with_their_origin(
    tiny_root: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_root / "images/000000000003.png").unlink()
    (tiny_root / "images/000000000007.png").unlink()
    code, text = command(tiny_root, tiny_recipe, capsys)
    assert code == 1
    assert "PROBLEM: 2 of 12 photos are missing" in text
    assert "the first is 000000000003.png; from your own collection" in text
    shutil.rmtree(tiny_root / "images")
    (tiny_root / "people.json").unlink()
    code, text = command(tiny_root, tiny_recipe, capsys)
    assert code == 1
    assert "people.json is missing" in text
    assert "images is missing" in text
    assert "0 of 2 sources can be used" in text
    recipe = tiny_recipe.read_text().replace('"people.json"', '"coco/people.json"')
    tiny_recipe.write_text(recipe)
    assert "Download page of the COCO site" in command(tiny_root, tiny_recipe, capsys)[1]


def test_broken_boxes_other_joints_and_nobody_are_problems(
    tiny_root: Path, tiny_recipe: Path
) -> None:
    recipe = load_recipe(tiny_recipe)

    def change(record: dict[str, Any]) -> None:
        record["annotations"][3]["bbox"] = [5, 5, 0, 10]
        record["annotations"][4]["bbox"] = [500, 5, 10, 10]

    edit(tiny_root, change)
    found = check_recipe(recipe, tiny_root)
    assert not found.is_usable
    assert "2 boxes are empty or outside their photo" in found.text
    assert "[5, 5, 0, 10] of annotation 4" in found.text
    others = Skeleton(("tail", "snout"), (), (), (0.1, 0.1))
    text = check_recipe(dataclasses.replace(recipe, joints=others), tiny_root).text
    assert "PROBLEM: it labels none of the recipe's joints tail, snout" in text
    text = check_recipe(dataclasses.replace(recipe, joints=CROWDPOSE_14), tiny_root).text
    assert "not labelled here, so unknown: top_head, neck" in text
    assert "not of the recipe, so left out: nose, left_eye, right_eye, left_ear, right_ear" in text

    def nobody(record: dict[str, Any]) -> None:
        record["annotations"] = []
        del record["images"][0]["width"]

    edit(tiny_root, nobody)
    text = check_recipe(recipe, tiny_root).text
    assert "nobody has a labelled joint" in text
    assert "1 photos lack width or height, the first is 1" in text


def with_source(recipe: Recipe, **fields: object) -> Recipe:
    changed = dataclasses.replace(recipe.sources[0], **fields)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, sources=(changed,), finder=None)


def test_a_source_is_checked_as_a_run_reads_it(tiny_root: Path, tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    (tiny_root / "images/000000000003.png").unlink()  # asked for by no source
    some = check_recipe(with_source(recipe, files="*1?.png", holdout_every=2), tiny_root)
    assert "3 of 12 photos fit files = '*1?.png', 3 there" in some.text
    assert "3 people with labelled joints" in some.text
    assert "2 of these people held out (holdout_every = 2)" in some.text
    assert some.is_usable
    for fields, problem in (
        ({"files": "*.jpg"}, "nobody has a labelled joint"),
        ({"files": "*1?.png", "holdout_every": 1}, "nobody is left to train on: holdout_every = 1"),
        ({"files": "*1?.png", "holdout_every": 50}, "nobody is left to measure on"),
    ):
        found = check_recipe(with_source(recipe, **fields), tiny_root)
        assert problem in found.text
        assert not found.is_usable


def test_known_data_sets_are_found_below_the_root(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "all"
    root.mkdir()
    code, text = command(root, None, capsys)
    assert code == 1
    assert "COCO train2017: not here; from the Download page of the COCO site" in text
    assert "CrowdPose trainval: not here; from the repository CrowdPose" in text
    assert "  looked for json/crowdpose_trainval.json" in text
    (root / "coco/annotations").mkdir(parents=True)
    shutil.copy(tiny_root / "people.json", root / "coco/annotations/person_keypoints_val2017.json")
    code, text = command(root, None, capsys)
    assert code == 1
    assert "12 of 12 photos are missing" in text
    shutil.copytree(tiny_root / "images", root / "coco/images/val2017")
    code, text = command(root, None, capsys)
    assert code == 0
    assert "COCO val2017: coco/annotations/person_keypoints_val2017.json" in text
    assert "1 of 5 known data sets are here, 0 of them broken" in text


def drop(place: str, key: str) -> Edit:
    return lambda record: record[place][0].pop(key)


def put(place: str, key: str, value: object) -> Edit:
    return lambda record: record[place][0].update({key: value})


BROKEN: dict[str, tuple[Edit, str]] = {
    "no images": (lambda r: r.pop("images"), "lists images, annotations and categories"),
    "no category": (lambda r: r["categories"].clear(), "exactly one category"),
    "image id twice": (put("images", "id", 2), "1 image ids are repeated"),
    "annotation id twice": (put("annotations", "id", 2), "1 annotation ids are repeated"),
    "unknown photo": (put("annotations", "image_id", 99), "in photo 99, which is not listed"),
    "short keypoints": (put("annotations", "keypoints", [1, 2, 2]), "needs 51 numbers"),
    "not a number": (put("annotations", "keypoints", [float("nan")] * 51), "not a finite number"),
    "wild visibility": (put("annotations", "keypoints", [7] * 51), "visibility 7"),
    "no box": (drop("annotations", "bbox"), "lacks 'bbox'"),
    "text in a box": (put("annotations", "bbox", [1, 2, 3, "4"]), "not a finite number"),
    "no joint labelled": (put("annotations", "keypoints", [0] * 51), "0 of its joints"),
    "no file name": (drop("images", "file_name"), "needs 'file_name'"),
    "no size": (drop("images", "width"), "image 1 lacks its width or height|lack width or height"),
    "other joints": (put("categories", "keypoints", ["a"] * 17), "list of different names"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_annotations_are_refused_by_name_and_reported(
    damage: str, tiny_root: Path, tiny_recipe: Path
) -> None:
    change, message = BROKEN[damage]
    edit(tiny_root, change)
    with pytest.raises(DatasetError, match=message):
        load_people([Source("people", "people.json", "images")], tiny_root, COCO_17)
    found = check_recipe(load_recipe(tiny_recipe), tiny_root)
    assert not found.is_usable
    assert "PROBLEM" in found.text


def test_people_without_an_area_are_used_and_counted(tiny_root: Path, tiny_recipe: Path) -> None:
    edit(tiny_root, drop("annotations", "area"))
    people = load_people([Source("people", "people.json", "images")], tiny_root, COCO_17)
    assert (people.areas > 0).all()
    found = check_recipe(load_recipe(tiny_recipe), tiny_root)
    assert found.is_usable
    assert "1 people have no area (or 0); that of their box is taken" in found.text


def test_cut_off_json_is_refused_and_reported(tiny_root: Path, tiny_recipe: Path) -> None:
    path = tiny_root / "people.json"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match="not valid JSON"):
        load_people([Source("people", "people.json", "images")], tiny_root, COCO_17)
    found = check_recipe(load_recipe(tiny_recipe), tiny_root)
    assert not found.is_usable
    assert "not valid JSON" in found.text
    assert not check_known(tiny_root).is_usable
    with pytest.raises(DatasetError, match=r"nothere is no folder; expected the one that"):
        main(["data", "check", str(tiny_root / "nothere")])


@pytest.mark.parametrize(
    ("data_set", "name"), [("COCO val2017", "coco-val"), ("CrowdPose test", "crowdpose")]
)
def test_what_the_check_knows_the_bench_opens_by_name(data_set: str, name: str) -> None:
    (known,) = (known for known in KNOWN if known.name == data_set)
    assert {annotations for annotations, _ in known.places} <= set(dataset.KNOWN[name])
