"""What single annotation tools do in their own way, as their files and exporters show it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.errors import DatasetError, InputError
from cfpose_sdk.media.image import read_image
from cfpose_training.cli import main
from cfpose_training.fit.facts import look_at
from cfpose_training.labels.people import annotated_targets
from cfpose_training.layouts.conversion import convert_annotations
from cfpose_training.skeletons import skeleton_of
from tests.training.layouts.exports import (
    NAMES,
    SEEN,
    XY,
    coco_annotator,
    cvat,
    draw_photo,
    label_studio,
    people_of,
    x_anylabeling,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photo(tmp_path)


def converted(record: Any, photos: Path, tmp_path: Path) -> tuple[str, list[dict[str, Any]]]:
    """What `data convert` says, and the people that it writes."""
    (tmp_path / "in.json").write_text(json.dumps(record))
    joints = NAMES if isinstance(record, list) else []
    lines = convert_annotations(tmp_path / "in.json", tmp_path / "out.json", photos, joints)
    return "\n".join(lines), json.loads((tmp_path / "out.json").read_text())["annotations"]


def skeleton_alone() -> dict[str, Any]:
    """CVAT without a rectangle: the box ends at the joints; an outside joint keeps its place."""
    record = cvat()
    (person,) = record["annotations"]
    person |= {"bbox": [20.0, 20.0, 40.0, 30.0], "area": 1200.0}
    photo = record["images"][0]
    record["images"] = [{**photo, "id": number} for number in range(1, 11)]
    record["annotations"] = [{**person, "id": n, "image_id": n} for n in range(1, 11)]
    absent = [*person["keypoints"][:6], 90.0, 70.0, 0]
    record["annotations"][0] |= {
        "keypoints": absent, "num_keypoints": 2, "bbox": [40.0, 20.0, 20.0, 30.0], "area": 600.0,
    }  # fmt: skip
    return record


def test_boxes_of_skeletons_alone_are_said_and_grown(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(skeleton_alone()))
    (note,) = (n for n in look_at(tmp_path / "in.json", photos).notes if "outermost" in n)
    assert note.startswith("10 of 10 boxes end at the outermost joints")
    said, people = converted(skeleton_alone(), photos, tmp_path)
    assert "mended: 10 boxes that ended at the outermost joints" in said
    np.testing.assert_allclose(people[1]["bbox"], [16, 17, 48, 36])
    assert people[1]["area"] == 48 * 36
    np.testing.assert_allclose(people[0]["bbox"], [38, 17, 24, 36])  # without the outside joint
    assert people[0]["num_keypoints"] == 2
    wide = cvat()
    wide["annotations"][0]["area"] = 700.0  # of an outline: it stays
    assert converted(wide, photos, tmp_path)[1][0]["bbox"] == [10, 10, 60, 50]
    wide["annotations"][0]["bbox"] = [20.0, 20.0, 40.0, 30.0]
    (person,) = converted(wide, photos, tmp_path)[1]
    assert (person["bbox"], person["area"]) == (pytest.approx([16, 17, 48, 36]), 700.0)


def test_a_skeleton_in_a_line_has_a_box_without_area(photos: Path, tmp_path: Path) -> None:
    record = skeleton_alone()
    line = {"keypoints": [40.0, 20.0, 2, 40.0, 50.0, 2, 0.0, 0.0, 0], "num_keypoints": 2}
    record["annotations"][3] |= {**line, "bbox": [40.0, 20.0, 0.0, 30.0], "area": 0.0}
    (tmp_path / "in.json").write_text(json.dumps(record))
    with pytest.raises(DatasetError, match=r"1 people .*\[40.0, 20.0, 0.0, 30.0\] of annotation 4"):
        look_at(tmp_path / "in.json", photos)
    said, people = converted(record, photos, tmp_path)
    assert "mended: 1 people without a box" in said
    np.testing.assert_allclose(people[3]["bbox"], [39.9, 17, 1.2, 36])


def test_a_person_of_two_annotations_is_one(photos: Path, tmp_path: Path) -> None:
    """COCO Annotator makes a second annotation of a box that is drawn after the joints."""
    record = coco_annotator()
    joints = record["annotations"][0]
    plain = {k: v for k, v in joints.items() if k not in ("keypoints", "num_keypoints")}
    boxes = [[0, 0, 100, 80], [10, 10, 60, 50], [30, 10, 40, 50]]
    record["annotations"] += [
        {**plain, "id": 20 + n, "bbox": box, "area": box[2] * box[3], "isbbox": True}
        for n, box in enumerate(boxes)
    ]
    # of another category
    record["categories"].append({"id": 4, "name": "cloak", "supercategory": ""})
    cloak = {**plain, "id": 30, "category_id": 4, "bbox": [15, 15, 50, 40], "area": 2000}
    record["annotations"].append(cloak)
    said, people = converted(record, photos, tmp_path)
    assert "mended: 1 people whose joints and box were two annotations" in said
    # the smallest that holds them went
    assert [person["id"] for person in people] == [12, 20, 22, 30]
    assert people[0]["bbox"] == [10, 10, 60, 50]
    assert people[0]["area"] == 3000


def test_categories_of_the_same_joints_are_one(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(x_anylabeling()))
    with pytest.raises(DatasetError, match="found 2; cfpose-train data convert joins"):
        look_at(tmp_path / "in.json", photos)
    said, people = converted(x_anylabeling(), photos, tmp_path)
    assert "mended: 1 people of other categories with the same joints" in said
    assert [person["category_id"] for person in people] == [1, 1]
    other = x_anylabeling()
    other["categories"][1]["keypoints"] = ["beak", "tail", "comb"]
    with pytest.raises(DatasetError, match="exactly one category with keypoints"):
        converted(other, photos, tmp_path)


def test_joints_without_a_parent_follow_relations(photos: Path, tmp_path: Path) -> None:
    """Two rectangles of one place: only the relation tells whose the joints are."""
    (task,) = tasks = label_studio()
    results = task["annotations"][1]["result"]
    box = next(part for part in results if part["id"] == "box1")
    small = {**box, "id": "box0", "value": {**box["value"], "x": 15, "width": 50}}
    for part in results:
        part.pop("parentID", None)
    results.append(small)
    _, people = converted(tasks, photos, tmp_path)
    assert [person["num_keypoints"] for person in people] == [0, 3]  # the smaller that holds them
    results += [
        {"type": "relation", "from_id": a, "to_id": b, "direction": "right"}
        for a, b in (("box1", "box1"), ("box1", "p0"), ("p1", "box1"), ("p2", "box1"))
    ]
    _, people = converted(tasks, photos, tmp_path)
    assert [person["num_keypoints"] for person in people] == [3, 0]


def test_a_turned_rectangle_becomes_its_hull(photos: Path, tmp_path: Path) -> None:
    """A quarter turn about the first corner: (70, 10) → 60 to the left of it is 50 px of height."""
    (task,) = tasks = label_studio()
    box = next(p for p in task["annotations"][1]["result"] if p["id"] == "box1")
    box["value"] |= {"x": 70, "y": 12.5, "width": 50, "height": 75, "rotation": 90}
    (person,) = converted(tasks, photos, tmp_path)[1]
    np.testing.assert_allclose(person["bbox"], [10, 10, 60, 50], atol=1e-9)
    box["value"]["rotation"] = 30
    (person,) = converted(tasks, photos, tmp_path)[1]
    across, down = 50 * math.cos(math.pi / 6) + 60 / 2, 50 / 2 + 60 * math.cos(math.pi / 6)
    np.testing.assert_allclose(person["bbox"], [70 - 30, 10, across, down])


def test_the_photo_of_a_task_with_other_data(photos: Path, tmp_path: Path) -> None:
    tasks = label_studio()
    tasks[0]["data"] = {"title": "Tuesday", "image": tasks[0]["data"]["image"]}
    converted(tasks, photos, tmp_path)
    assert people_of(tmp_path / "out.json", photos).photos[0].name == "a.png"


def test_a_coco_export_that_merges_people_is_refused(tmp_path: Path) -> None:
    """Label Studio's: boxes of a category each, one entry for all key points of the photo."""
    box = {"image_id": 0, "category_id": 0, "segmentation": [], "bbox": [10.0, 10.0, 60.0, 50.0],
           "ignore": 0, "iscrowd": 0, "area": 3000.0}  # fmt: skip
    joints = {"image_id": 0, "category_id": 1, "num_keypoints": 3, "bbox": [20, 20, 40, 30],
              "keypoints": [40, 20, 2, 60, 50, 2, 20, 50, 2], "iscrowd": 0}  # fmt: skip
    record = {
        "images": [{"id": 0, "width": 100, "height": 80, "file_name": "a.png"}],
        "categories": [
            {"id": 0, "name": "person"},
            {"id": 1, "name": "default", "supercategory": "default", "keypoints": NAMES,
             "skeleton": []},
        ],
        "info": {"year": 2025, "version": "1.0", "contributor": "Label Studio"},
        "annotations": [{**box, "id": 0}, {**joints, "id": 1}],
    }  # fmt: skip
    assert len(read_annotations(record)["annotations"]) == 1
    record["annotations"].insert(1, {**box, "id": 2})
    with pytest.raises(DatasetError, match="1 photos here have several boxes; export JSON"):
        read_annotations(record)
    record["info"]["contributor"] = "someone"
    assert len(read_annotations(record)["annotations"]) == 1


@pytest.mark.parametrize("tool", ["Roboflow", "CVAT"])
def test_yaml_files_that_point_beside_their_photos(
    tool: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    folder = root / ("train/images" if tool == "Roboflow" else "images/train")
    labels = Path(str(folder).replace("images", "labels"))
    for place in (folder, labels):
        place.mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), read_image(photos / "a.png"))
    points = " ".join(f"{x / 100} {y / 80} {v}" for (x, y), v in zip(XY, SEEN, strict=True))
    (labels / "a.txt").write_text(f"0 0.4 0.4375 0.6 0.625 {points}\n")
    if tool == "Roboflow":
        text = (
            "train: ../train/images\n\nkpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\n\nnc: 1\n"
            "names: ['dancer']\n\nroboflow:\n  workspace: w\n  version: 1\n"
            "  url: https://universe.roboflow.com/w/p/dataset/1"
        )
    else:
        text = "kpt_shape:\n- 3\n- 3\nnames:\n  0: dancer\npath: .\ntrain: train.txt\n"
        (root / "train.txt").write_text("data/images/train/a.png\n")
    (root / "data.yaml").write_text(text)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "images").mkdir(parents=True)  # of the folder that one works in
    monkeypatch.chdir(elsewhere)
    convert_annotations(root / "data.yaml", tmp_path / "own.json", joints=NAMES)
    people = people_of(tmp_path / "own.json", root)
    np.testing.assert_allclose(people.joints[0], np.column_stack([XY, SEEN]), atol=1e-9)


def test_names_that_are_too_long_are_named(photos: Path, tmp_path: Path) -> None:
    long = "n" * 300
    record = skeleton_alone()
    record["images"][0]["file_name"] = f"{long}.png"
    (tmp_path / "in.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"nnn.* cannot be looked at"):
        look_at(tmp_path / "in.json", photos)
    with pytest.raises(InputError, match=r"nnn.* cannot be looked at"):
        annotated_targets(read_annotations(tmp_path / "in.json"), photos, "fill")
    (tmp_path / "data.yaml").write_text(f"kpt_shape: [3, 3]\ntrain: {long}\n")
    with pytest.raises(InputError, match=r"nnn.* cannot be looked at"):
        convert_annotations(tmp_path / "data.yaml", tmp_path / "out.json", joints=NAMES)
    tasks = label_studio()
    tasks[0]["data"]["image"] = f"/data/upload/3/0a1b2c3d-{long}.png"
    with pytest.raises(InputError, match=r"nnn.* cannot be looked at"):
        converted(tasks, photos, tmp_path)
    with pytest.raises(InputError, match=r"nnn.* cannot be looked at"):
        main(["init", "--annotations", "a.json", "--images", ".", "-o", str(tmp_path / long)])


def test_two_annotators_tell_the_sigmas(photos: Path, tmp_path: Path) -> None:
    """The nose is off by (3, 4) px, a hand by (0, 3), the other stands in too few tasks."""
    tasks = []
    for number in range(10):
        (task,) = label_studio()
        done = task["annotations"][1]
        other = json.loads(json.dumps(done))
        done["completed_by"], other["completed_by"] = 1, {"id": 2, "email": ""}
        for part in other["result"]:
            if part["id"] == "p0":
                part["value"]["x"] += 3
                part["value"]["y"] += 4 / 0.8
            elif part["id"] == "p1":
                part["value"]["y"] += 3 / 0.8
        if number == 0:
            other["result"] = [part for part in other["result"] if part["id"] != "p2"]
        again = {**done, "completed_by": 2, "result": []}  # put right afterwards, in `other`
        tasks.append({**task, "id": number, "annotations": [done, again, other]})
    said, _ = converted(tasks, photos, tmp_path)
    category = json.loads((tmp_path / "out.json").read_text())["categories"][0]
    # areas are 3000; of the right hand there are nine, too few
    expected = [math.sqrt(25 / 3000), math.sqrt(9 / 3000), 0.067]
    assert category["oks_sigmas"] == pytest.approx(expected, abs=1e-4)
    assert "sigmas, from people whom two annotators labelled: [0.0913, 0.0548, 0.067]" in said
    assert skeleton_of(category, "own").oks_sigmas == tuple(category["oks_sigmas"])
    converted(tasks[1:], photos, tmp_path)  # nine: none is fitted
    assert "oks_sigmas" not in json.loads((tmp_path / "out.json").read_text())["categories"][0]
    for task in tasks:
        task["annotations"][2]["completed_by"] = 1  # the same person, twice
    converted(tasks, photos, tmp_path)
    assert "oks_sigmas" not in json.loads((tmp_path / "out.json").read_text())["categories"][0]


def test_the_address_of_a_photo_may_be_any_text(photos: Path, tmp_path: Path) -> None:
    record = label_studio()
    record[0]["data"]["image"] = "http://[no host/0a1b2c3d-a.png"
    _, people = converted(record, photos, tmp_path)
    assert len(people) == 1
