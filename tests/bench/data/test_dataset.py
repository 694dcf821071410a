"""Annotation files and photo folders: found where they are, refused when they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.data.annotations import read_annotations
from cfpose_bench.data.box_files import read_boxes
from cfpose_bench.data.dataset import open_dataset, open_demo
from cfpose_sdk import files
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import demo_photos

Build = Callable[..., dict[str, Any]]


def test_a_folder_is_read(dataset_folder: Path) -> None:
    dataset = open_dataset(dataset_folder)
    assert dataset.image_ids == (1, 2, 3)
    assert all(path.is_file() for path in dataset.photos.values())
    assert (dataset.name, dataset.missing) == ("annotations", ())
    boxes = dataset.ground_truth_boxes()
    np.testing.assert_allclose(boxes[1], [[10, 20, 110, 120], [150, 30, 230, 110]])
    np.testing.assert_allclose(boxes[2], [[40, 40, 190, 190]])
    assert boxes[3].shape == (0, 4)  # a crowd region gets no box
    assert dataset.limited(2).image_ids == (1, 2)
    assert list(dataset.limited(2).ground_truth_boxes()) == [1, 2]
    with pytest.raises(DatasetError, match="at least 1"):
        dataset.limited(0)


def test_boxes_are_of_the_people_who_count(
    dataset_folder: Path, person: Build, annotate: Build
) -> None:
    people = [person(1), person(1, iscrowd=1), person(1, labelled=0), person(1, labelled=1)]
    people[0]["bbox"], people[3]["bbox"] = [1, 2, 30, 40], [-5, 6.5, 7, 8]
    (dataset_folder / "annotations.json").write_text(json.dumps(annotate(people, photos=[1, 2])))
    boxes = open_dataset(dataset_folder).ground_truth_boxes()
    np.testing.assert_allclose(boxes[1], [[1, 2, 31, 42], [-5, 6.5, 2, 14.5]])
    assert boxes[2].shape == (0, 4)


def test_missing_photos_are_listed_and_take_no_part(dataset_folder: Path) -> None:
    (dataset_folder / "images/000000000002.png").unlink()
    dataset = open_dataset(dataset_folder / "annotations.json")
    assert dataset.image_ids == (1, 3)
    assert dataset.missing == ("000000000002.png",)
    assert 2 not in dataset.ground_truth_boxes()
    shutil.rmtree(dataset_folder / "images")
    with pytest.raises(DatasetError, match=r"none of its 3 photos.*--images"):
        open_dataset(dataset_folder)


@pytest.mark.parametrize(
    ("annotations", "photos"),
    [
        ("annotations/person_keypoints_val2017.json", "val2017"),
        ("coco/person_keypoints_val.json", "coco/images/val"),
    ],
)
def test_coco_val_is_found_in_both_layouts(
    dataset_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    annotations: str,
    photos: str,
) -> None:
    root = tmp_path / "root"
    (root / annotations).parent.mkdir(parents=True)
    shutil.copy(dataset_folder / "annotations.json", root / annotations)
    shutil.copytree(dataset_folder / "images", root / photos)
    dataset = open_dataset("coco-val", data_root=root)
    assert dataset.name == "coco-val"
    assert dataset.photos[1].samefile(root / photos / "000000000001.png")
    monkeypatch.setenv("CFPOSE_DATA", str(root))
    assert open_dataset("coco-val").image_ids == (1, 2, 3)
    moved = tmp_path / "elsewhere"
    shutil.move(root / photos, moved)
    assert open_dataset("coco-val", images=moved).photos[3] == moved / "000000000003.png"


def test_coco_val_without_a_root_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CFPOSE_DATA", raising=False)
    with pytest.raises(DatasetError, match="--data-root or set CFPOSE_DATA"):
        open_dataset("coco-val")
    with pytest.raises(DatasetError, match="person_keypoints_val2017"):
        open_dataset("coco-val", data_root=tmp_path)


def test_files_that_are_no_annotations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        open_dataset(tmp_path / "none.json")
    with pytest.raises(DatasetError, match="exactly one annotation file, found 0"):
        open_dataset(tmp_path)
    broken = tmp_path / "a.json"
    for content, message in (
        (b'{"images": [', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "expected a COCO object"),
        (b'{"images": [], "annotations": []}', "expected a COCO object"),
        (b'{"images": [], "annotations": [], "categories": []}', "exactly one category"),
    ):
        broken.write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            open_dataset(broken)
    (tmp_path / "b.json").write_bytes(b"{}")
    with pytest.raises(DatasetError, match="found 2"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": [0] * 48}, "51 numbers"),
        ({"keypoints": [float("nan")] * 51}, "finite"),
        ({"keypoints": None}, "51 numbers"),
        ({"bbox": [1, 2, 3]}, "4 numbers"),
        ({"image_id": 9}, "not listed"),
        ({"image_id": [1]}, "expected an integer"),
        ({"id": "x"}, "expected an integer"),
        ({"keypoints": [1, 2, 3] * 17}, "visibility 3, expected 0, 1 or 2"),
    ],
)
def test_annotations_that_would_spoil_the_figures_are_refused(
    person: Build, annotate: Build, change: dict[str, Any], message: str
) -> None:
    truth = annotate([person(1), person(1)], photos=[1])
    truth["annotations"][1].update(change)
    with pytest.raises(DatasetError, match=f"annotation (1|x).*{message}"):
        read_annotations(truth)
    key = next(iter(change))
    del truth["annotations"][1][key]
    with pytest.raises(DatasetError, match=rf"annotation (1|\?) lacks '{key}'"):
        read_annotations(truth)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (
            "annotations",
            {"num_keypoints": 3, "keypoints": [0] * 51},
            "0 of its joints are labelled",
        ),
        ("annotations", {"num_keypoints": "all"}, "num_keypoints 'all'"),
        ("annotations", {"iscrowd": "no"}, "iscrowd 'no'"),
        ("annotations", {"id": 1}, "1 annotation ids are repeated"),
        ("images", {"file_name": None}, "file name None"),
        ("images", {"width": "320"}, "width '320'"),
        ("images", {"height": 0}, "height 0"),
        ("images", {"id": "1"}, "image ids must be integers"),
        ("categories", {"keypoints": "nose"}, "list of different names"),
        ("categories", {"keypoints": ["nose", "nose"]}, "list of different names"),
        ("categories", {"keypoints": [1, 2]}, "list of different names"),
    ],
)
def test_other_damage_is_named(
    person: Build, annotate: Build, place: str, change: dict[str, Any], message: str
) -> None:
    truth = annotate([person(1), person(1)], photos=[1])
    truth[place][0].update(change)
    with pytest.raises(DatasetError, match=message):
        read_annotations(truth)


@pytest.mark.parametrize("place", ["images", "annotations", "categories"])
def test_entries_that_are_no_objects_are_named(person: Build, annotate: Build, place: str) -> None:
    truth = annotate([person(1)])
    truth[place] = ["x"]
    with pytest.raises(DatasetError, match=r"every entry needs|exactly one category"):
        read_annotations(truth)


def test_repeated_photos_and_boxless_people_are_refused(
    dataset_folder: Path, person: Build, annotate: Build
) -> None:
    with pytest.raises(DatasetError, match="1 image ids are repeated"):
        read_annotations(annotate([person(1)], photos=[1, 2, 2]))
    truth = json.loads((dataset_folder / "annotations.json").read_text())
    truth["annotations"][2]["bbox"][2] = 0
    (dataset_folder / "annotations.json").write_text(json.dumps(truth))
    with pytest.raises(DatasetError, match=r"annotation 2.*positive"):
        open_dataset(dataset_folder).ground_truth_boxes()


def test_other_categories_and_absent_fields(person: Build, annotate: Build) -> None:
    truth = annotate([person(1, labelled=4), person(1)])
    truth["categories"].insert(0, {"id": 3, "name": "dog"})
    truth["annotations"].append({"category_id": 3})
    for key in ("iscrowd", "num_keypoints"):
        del truth["annotations"][0][key]
    read = read_annotations(truth)
    assert len(read["annotations"]) == 2
    assert (read["annotations"][0]["iscrowd"], read["annotations"][0]["num_keypoints"]) == (0, 4)
    assert "iscrowd" not in truth["annotations"][0]  # the caller's copy stays as it was


def test_box_files(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    rows = [
        {"image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 2, "bbox": [0, 0, 10, 10], "score": 0.25},
        {"image_id": 2, "category_id": 18, "bbox": [0, 0, 5, 5], "score": 0.9},
    ]
    path.write_text(json.dumps(rows))
    boxes = read_boxes(path)
    assert list(boxes) == [2]
    np.testing.assert_allclose(boxes[2], [[1, 2, 4, 6, 0.5], [0, 0, 10, 10, 0.25]])
    for change in ({"bbox": [1, 2, 0, 4]}, {"bbox": [1, 2]}, {"score": None}, {"score": "x"}):
        path.write_text(json.dumps([rows[0], {**rows[1], **change}]))
        with pytest.raises(DatasetError, match="entry 1"):
            read_boxes(path)
    path.write_text("{}")
    with pytest.raises(DatasetError, match="expected a list"):
        read_boxes(path)


def test_the_340_photos(shared_dir: Path) -> None:
    dataset = open_dataset("coco-val", data_root=shared_dir / "data")
    assert len(dataset.photos) == 340
    assert dataset.missing == ()
    assert sum(map(len, dataset.ground_truth_boxes().values())) == 788


def test_the_demo_photos_of_a_checkout_and_of_the_wheel(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo_photos() == root / "examples" / "photos"
    package = tmp_path / "site-packages" / "cfpose_sdk"
    shutil.copytree(root / "examples" / "photos", package / "photos")  # as in the wheel
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    assert demo_photos() == package / "photos"
    boxes = open_demo().ground_truth_boxes()
    assert sorted(map(len, boxes.values())) == [2, 7]
