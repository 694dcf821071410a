"""Annotations as tools really write them: filled in, counted and said, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.accuracy import evaluate
from cfpose_bench.cli import main
from cfpose_bench.data.annotations import read_annotations
from cfpose_bench.data.box_files import read_box_file, read_boxes
from cfpose_bench.data.dataset import open_dataset
from cfpose_bench.data.gaps import notes
from cfpose_sdk.errors import CfposeError, DatasetError
from tests.bench.known_answer import KnowsTheAnswer

Record = dict[str, Any]
Build = Callable[..., Record]
FAST = ["--in-process", "--rounds", "1", "--repeats", "0"]


@pytest.mark.parametrize("area", [0, 0.0, None, "absent"])
def test_the_area_of_the_box_stands_in_and_is_counted(
    area: object, person: Build, annotate: Build, pose: Build
) -> None:
    people = [person(1), person(2, labelled=0)]
    truth = annotate(people)
    for entry in truth["annotations"]:
        entry["area"] = area
        if area == "absent":
            del entry["area"]
    read = read_annotations(truth)
    assert read["annotations"][0]["area"] == 100 * 100
    assert notes(read) == {"people_with_area_of_box": 1}  # the other does not count
    assert notes(read_annotations(read)) == notes(read)
    near = pose(people[0], shift_x=3)
    assert evaluate(truth, [near]).AP == evaluate(annotate(people), [near]).AP > 0.5


def test_broken_areas_and_people_without_any_are_refused(person: Build, annotate: Build) -> None:
    truth = annotate([person(1)])
    truth["annotations"][0]["area"] = -1
    with pytest.raises(DatasetError, match="annotation 0 has the area -1"):
        read_annotations(truth)
    truth["annotations"][0] |= {"area": 0, "bbox": [0, 0, 0, 0]}
    with pytest.raises(DatasetError, match="OKS needs an area above 0"):
        evaluate(truth, [])


@pytest.mark.parametrize(
    "change",
    [
        {"keypoints": [], "bbox": [0, 0, 0, 0], "area": 0},
        {"keypoints": None, "num_keypoints": None},
        {"keypoints": None, "bbox": None, "area": None},
        {"bbox": []},
        {"iscrowd": None},
        {"num_keypoints": 0.0, "id": 7.0, "image_id": 1.0, "category_id": 1.0},
    ],
)
def test_people_without_joints_as_tools_write_them(
    change: Record, person: Build, annotate: Build, pose: Build
) -> None:
    truth = annotate([person(1)])
    truth["annotations"].append({**person(1, labelled=0), "id": 7, **change})
    truth["images"][0] |= {"id": 1.0, "width": 320.0, "height": None}
    assert evaluate(truth, [pose(person(1))]).AP > 0.99
    for key in (k for k, v in change.items() if v is None):
        del truth["annotations"][-1][key]
    assert evaluate(truth, [pose(person(1))]).AP > 0.99


def test_the_category_is_chosen_by_name(person: Build, annotate: Build) -> None:
    truth = annotate([{**person(1), "category_id": 7}])
    names = truth["categories"][0]["keypoints"]
    truth["categories"] = [
        {"id": 1, "name": "dog", "keypoints": names[:3]},
        {"id": 7, "name": "Person", "keypoints": names},
    ]
    assert len(read_annotations(truth)["annotations"]) == 1
    truth["annotations"][0]["category_id"] = 3
    with pytest.raises(DatasetError, match=r"none of its 1 annotations.*7.*'Person'.*has 3"):
        read_annotations(truth)


def write_boxes(path: Path, *entries: Record) -> Path:
    plain = {"image_id": 1, "category_id": 1, "bbox": [10, 20, 100, 100], "score": 0.9}
    path.write_text(json.dumps([{**plain, **entry} for entry in entries]))
    return path


def test_boxes_are_used_by_the_id_or_the_name_of_a_person(tmp_path: Path) -> None:
    path = write_boxes(tmp_path / "b.json", {"category_id": 7}, {"category_id": 1})
    assert len(read_box_file(path, 7).boxes[1]) == read_box_file(path, 7).other_category == 1
    path = write_boxes(tmp_path / "b.json", {"category_id": "Person"}, {"category_id": "dog"})
    assert len(read_box_file(path).boxes[1]) == read_box_file(path).other_category == 1
    path = write_boxes(tmp_path / "b.json", {"category_id": 1})
    assert len(read_boxes(path, 7)[1]) == 1  # as COCO's detectors write it
    path = write_boxes(tmp_path / "b.json", {"category_id": 0})
    assert len(read_boxes(path, 0)[1]) == 1


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"category_id": 0}], r"category_ids are 0 \(1 boxes\).*begin at 0"),
        ([{"category_id": 0}, {"category_id": 1}], "begin at 0"),
        ([{"category_id": 3}], r"are 3 \(1 boxes\); a person is 1"),
        ([{"category_id": [1]}], "entry 0"),
        ([{}, {"score": float("nan")}], "entry 1 has the score nan"),
    ],
)
def test_boxes_of_nobody_are_refused(tmp_path: Path, entries: list[Record], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_boxes(write_boxes(tmp_path / "b.json", *entries))


def run(folder: Path, *options: str) -> Record:
    report = folder / "report.json"
    assert main(["--dataset", str(folder), *FAST, *options, "--json", str(report)]) == 0
    return dict(json.loads(report.read_text()))


def test_the_command_refuses_boxes_of_unknown_photos_and_counts_some(
    dataset_folder: Path, tmp_path: Path, stand_in: type[KnowsTheAnswer],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    boxes = write_boxes(tmp_path / "b.json", {"image_id": 77})
    arguments = ["--dataset", str(dataset_folder), *FAST, "--boxes", str(boxes)]
    with pytest.raises(DatasetError, match=r"none of its boxes.*\[77\].*\[1, 2, 3\]"):
        main(arguments)
    boxes.write_text("[]")
    with pytest.raises(DatasetError, match="no box of a person"):
        main(arguments)
    write_boxes(boxes, {}, {"image_id": 77}, {"category_id": 3})
    unused = run(dataset_folder, "--boxes", str(boxes))["protocol"]["boxes_not_used"]
    assert list(unused["b.json"].values()) == [1, 1]
    said = capsys.readouterr().err
    assert "b.json: 1 boxes of another category are not used" in said
    assert "b.json: 1 boxes of photos not in the data set are not used" in said


def test_the_command_says_filled_areas_and_photos_of_another_size(
    dataset_folder: Path, stand_in: type[KnowsTheAnswer], capsys: pytest.CaptureFixture[str]
) -> None:
    file = dataset_folder / "annotations.json"
    truth = json.loads(file.read_text())
    truth["annotations"][0]["area"] = 0
    truth["images"][1] |= {"width": 240, "height": 320}
    file.write_text(json.dumps(truth))
    protocol = run(dataset_folder)["protocol"]
    assert protocol["people_with_area_of_box"] == protocol["photos_of_another_size"] == 1
    said = capsys.readouterr().err
    assert "1 people have no area" in said
    assert "1 photos have another size than annotated" in said


def test_absolute_file_names(dataset_folder: Path, tmp_path: Path) -> None:
    file = dataset_folder / "annotations.json"
    truth = json.loads(file.read_text())
    for image in truth["images"]:
        image["file_name"] = str(dataset_folder / "images" / image["file_name"])
    moved = tmp_path / "elsewhere" / "annotations.json"
    moved.parent.mkdir()
    moved.write_text(json.dumps(truth))
    opened = open_dataset(moved)
    assert (len(opened.photos), opened.missing) == (3, ())
    with pytest.raises(DatasetError, match=r"--images .*nowhere is no folder"):
        open_dataset(moved, images=tmp_path / "nowhere")


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "loop"])
def test_places_that_cannot_be_looked_at(source: str, tmp_path: Path, stand_in: object) -> None:
    if source == "loop":
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        source = str(tmp_path / "loop")
    for options in (
        ["--dataset", source],
        ["--dataset", "coco-val", "--data-root", source],
        ["--dataset", "demo", "--images", source, "--boxes", source],
        ["--dataset", "demo", "--baseline", source],
    ):
        with pytest.raises(CfposeError):
            main([*options, *FAST])


def test_results_that_are_not_finite_are_named(person: Build, annotate: Build, pose: Build) -> None:
    bad = {**pose(person(1)), "score": float("nan")}
    with pytest.raises(DatasetError, match=r"result 1 \(photo 1\).*the score"):
        evaluate(annotate([person(1)]), [pose(person(1)), bad])
    assert np.isfinite(bad["keypoints"]).all()
