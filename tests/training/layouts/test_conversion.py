"""Annotations as tools export them, field by field, and photos that they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import DatasetError, InputError
from cfpose_sdk.media.image import read_image
from cfpose_training.cli import main
from cfpose_training.fit.facts import look_at
from cfpose_training.layouts.conversion import convert_annotations
from cfpose_training.layouts.repair import turn_of
from cfpose_training.layouts.yolo import read_yaml
from tests.training.layouts.exports import (
    NAMES,
    SEEN,
    XY,
    coco_annotator,
    cvat,
    draw_photo,
    label_studio,
    people_of,
    roboflow,
    x_anylabeling,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photo(tmp_path)


EXPORTS = {
    "CVAT": (cvat(), SEEN), "Roboflow": (roboflow(), SEEN),
    "X-AnyLabeling": (x_anylabeling(), [2, 2, 2]), "Label Studio": (label_studio(), [2, 2, 2]),
}  # fmt: skip


@pytest.mark.parametrize("tool", EXPORTS)
def test_an_export_becomes_people(tool: str, photos: Path, tmp_path: Path) -> None:
    content, seen = EXPORTS[tool]
    (tmp_path / "export.json").write_text(json.dumps(content))
    joints = NAMES if tool == "Label Studio" else []
    convert_annotations(tmp_path / "export.json", tmp_path / "own.json", photos, joints)
    people = people_of(tmp_path / "own.json", photos)
    np.testing.assert_allclose(people.joints[0], np.column_stack([XY, seen]))
    np.testing.assert_allclose(people.boxes[0], [10, 10, 70, 60])
    assert people.areas[0] == 3000
    assert people.photos[0].name == "a.png"
    if tool == "X-AnyLabeling":
        assert people.joints[1, :, 2].tolist() == [2, 2, 0]


@pytest.mark.parametrize("tool", ["CVAT", "Roboflow"])
def test_these_exports_need_no_conversion(tool: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps(EXPORTS[tool][0]))
    people = people_of(tmp_path / "export.json", photos)
    np.testing.assert_allclose(people.joints[0], np.column_stack([XY, SEEN]))
    assert people.areas[0] == 3000


@pytest.mark.parametrize("content", [coco_annotator(), label_studio(boxed=False)])
def test_people_without_a_box_get_one_about_their_joints(
    content: Any, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export.json").write_text(json.dumps(content))
    arguments = ["-o", str(tmp_path / "own.json"), "--images", str(photos)]
    joints = [] if isinstance(content, dict) else ["--joints", ",".join(NAMES)]
    assert main(["data", "convert", str(tmp_path / "export.json"), *arguments, *joints]) == 0
    said = capsys.readouterr().out
    assert "1 people with labelled joints on 1 photos" in said
    assert ("mended: 1 people without a box" in said) == isinstance(content, dict)
    people = people_of(tmp_path / "own.json", photos)
    np.testing.assert_allclose(people.boxes[0], [16, 17, 64, 53])


def test_ultralytics_files_become_people(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("train", "val"):
        (root / "images" / part).mkdir(parents=True)
        (root / "labels" / part).mkdir(parents=True)
        cv2.imwrite(str(root / f"images/{part}/{part}.png"), read_image(photos / "a.png"))
    points = " ".join(f"{x / 100} {y / 80} {v}" for (x, y), v in zip(XY, SEEN, strict=True))
    (root / "labels/train/train.txt").write_text(f"0 0.4 0.4375 0.6 0.625 {points}\n\n")
    (root / "set.yaml").write_text(
        "# dancers\npath: ../somewhere/else # root\ntrain: images/train\nval: images/val\n"
        "kpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\nnames:\n  0: person\n"
        "kpt_names:\n  0:\n    - nose\n    - left_hand\n    - right_hand\n"
    )
    convert_annotations(root / "set.yaml", tmp_path / "own.json")
    people = people_of(tmp_path / "own.json", root)
    np.testing.assert_allclose(people.joints[0], np.column_stack([XY, SEEN]), atol=1e-9)
    np.testing.assert_allclose(people.boxes[0], [10, 10, 70, 60])
    assert len(json.loads((tmp_path / "own.json").read_text())["images"]) == 2
    (root / "labels/train/train.txt").write_text("0 0.4 0.4375 0.6 0.625 0.5 0.5\n")
    with pytest.raises(DatasetError, match="a line has 7 numbers, expected 14"):
        convert_annotations(root / "set.yaml", tmp_path / "own.json")
    (root / "set.yaml").write_text("kpt_shape: [5, 3]\ntrain: images/train\n")
    with pytest.raises(DatasetError, match="does not name its 5 joints; give --joints"):
        convert_annotations(root / "set.yaml", tmp_path / "own.json")


def test_the_yaml_of_such_files_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        'path: "my data"\ntrain:\n- a\n- b/c\nnames: {0: person, 1: dog}\nnc: 2\ntest:\n'
        "flip_idx: [0, 2, 1]\nempty: ''\n"
    )
    assert read_yaml(tmp_path / "a.yaml") == {
        "path": "my data", "train": ["a", "b/c"], "names": {0: "person", 1: "dog"}, "nc": 2,
        "test": None, "flip_idx": [0, 2, 1], "empty": "",
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text("what is this\n")
    with pytest.raises(DatasetError, match="line 1: 'what is this' is not understood"):
        read_yaml(tmp_path / "a.yaml")


def exif_jpeg(path: Path, picture: np.ndarray, orientation: int) -> None:
    """A JPEG with this EXIF orientation."""
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00"
    tiff += bytes([orientation, 0, 0, 0]) + b"\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_turned_after_labelling_are_put_right(orientation: int, tmp_path: Path) -> None:
    """A white blob at the joint: where the converted joint says it is, in the upright photo."""
    picture = np.zeros((80, 100, 3), np.uint8)
    picture[44:57, 14:27] = 255
    exif_jpeg(tmp_path / "a.jpg", picture, orientation)
    record = cvat()
    record["images"][0]["file_name"] = "a.jpg"
    record["annotations"][0]["keypoints"] = [20, 50, 2, 20, 50, 2, 0, 0, 0]
    (tmp_path / "in.json").write_text(json.dumps(record))
    upright = read_image(tmp_path / "a.jpg")
    transposed = orientation >= 5
    assert upright.shape[:2] == ((100, 80) if transposed else (80, 100))
    if transposed:
        with pytest.raises(DatasetError, match=r"annotated: a.jpg is \(80, 100\)"):
            look_at(tmp_path / "in.json", tmp_path)
        convert_annotations(tmp_path / "in.json", tmp_path / "out.json", tmp_path)
        person = json.loads((tmp_path / "out.json").read_text())["annotations"][0]
        x, y = person["keypoints"][:2]
        assert person["keypoints"][6:] == [0, 0, 0]
    else:  # the size does not tell; the map is right all the same
        found = turn_of(tmp_path / "a.jpg", upright)
        assert found is not None
        x, y = found[1](np.array([20.0, 50.0]))
    assert upright[int(y), int(x)].min() > 200
    rows, columns = np.nonzero(upright[..., 0] > 128)
    assert abs(rows.mean() - y) <= 0.6
    assert abs(columns.mean() - x) <= 0.6


def test_photos_of_another_scale_are_refused_or_put_right(photos: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(photos / "a.png"), np.zeros((160, 200, 3), np.uint8))
    (tmp_path / "in.json").write_text(json.dumps(cvat()))
    with pytest.raises(DatasetError, match=r"a.png is \(200, 160\), annotated \(100, 80\)"):
        look_at(tmp_path / "in.json", photos)
    said = convert_annotations(tmp_path / "in.json", tmp_path / "out.json", photos)
    assert "mended: 1 photos of another scale than annotated" in said
    people = people_of(tmp_path / "out.json", photos)
    np.testing.assert_allclose(people.joints[0, :, :2], 2 * np.array(XY))
    assert people.areas[0] == 4 * 3000
    cv2.imwrite(str(photos / "a.png"), np.zeros((160, 160, 3), np.uint8))
    with pytest.raises(DatasetError, match="neither scaled nor turned"):
        convert_annotations(tmp_path / "in.json", tmp_path / "out.json", photos)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "neither Ultralytics' YAML, nor Label Studio's JSON, nor a COCO file"),
        ([{"id": 1, "data": {}}], "hold no key points"),
        ([3], "expected Label Studio's tasks"),
        ({**cvat(), "annotations": []}, "nobody has a labelled joint"),
    ],
)
def test_what_is_no_annotation_is_named(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message):
        convert_annotations(tmp_path / "in.json", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_annotations_are_drawn(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(cvat()))
    arguments = ["--annotations", str(tmp_path / "in.json"), "--images", str(photos)]
    for _ in range(2):  # again, after a correction
        assert main(["data", "show", *arguments, "-o", str(tmp_path / "show.png")]) == 0
    with pytest.raises(InputError, match=r"a.png is one of the photos"):
        main(["data", "show", *arguments, "-o", str(photos / "a.png")])
    shown = read_image(tmp_path / "show.png")
    assert shown.shape == (384, 480, 3)
    scale = 480 / 100
    # the left hand is orange, the right one blue
    left, right = (shown[round(y * scale), round(x * scale)].astype(int) for x, y in XY[1:])
    assert left[2] > left[0] + 50
    assert right[0] > right[2] + 50
