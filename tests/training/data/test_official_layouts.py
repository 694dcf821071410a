"""`data check` with the paper's recipes, on the official layouts of COCO and CrowdPose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14
from cfpose_training.cli import main

RECIPES = {
    "coco": ("paper-coco", "improved-coco"),
    "crowdpose": ("paper-crowdpose",),
}


@pytest.fixture
def layout(tmp_path: Path, write_data: Callable[..., None]) -> Callable[[str], Path]:
    """Writes a whole layout, whose photos are empty files."""

    def write(name: str) -> Path:
        root = tmp_path / name
        if name == "coco":
            for split, count in (("train2017", 9), ("val2017", 4)):
                people = f"annotations/person_keypoints_{split}.json"
                write_data(root, count, people_file=people, folder=split, skeleton=COCO_17)
        else:
            for split, count in (("test", 4), ("trainval", 9)):
                people = f"json/crowdpose_{split}.json"
                write_data(root, count, people_file=people, folder="images", skeleton=CROWDPOSE_14)
        for photo in root.rglob("*.png"):
            photo.write_bytes(b"")
        return root

    return write


def check(
    root: Path, recipe: str, top: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    file = top / "training" / "recipes" / f"{recipe}.toml"
    code = main(["data", "check", str(root), "--recipe", str(file)])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_a_whole_layout_is_usable(
    name: str, layout: Callable[[str], Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe in RECIPES[name]:
        code, text = check(layout(name), recipe, root, capsys)
        assert code == 0, text
        assert "9 people with labelled joints" in text
        assert "all 4 people are measured on, and none is trained on" in text
        assert "2 of 2 sources can be used" in text


def test_what_is_missing_is_named(
    layout: Callable[[str], Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, crowd = layout("coco"), layout("crowdpose")
    (coco / "train2017" / "000000000003.png").unlink()
    (coco / "annotations" / "person_keypoints_val2017.json").unlink()
    code, text = check(coco, "paper-coco", root, capsys)
    assert code == 1
    assert "1 of 9 photos are missing" in text
    assert "the first is 000000000003.png" in text
    assert "person_keypoints_val2017.json is missing" in text
    assert "cfpose-train data fetch coco" in text
    (crowd / "annotations").mkdir()
    (crowd / "json" / "crowdpose_test.json").rename(
        crowd / "annotations" / "mmpose_crowdpose_test.json"
    )
    code, text = check(crowd, "paper-crowdpose", root, capsys)
    assert code == 1
    assert "crowdpose_test.json is missing" in text
    assert "annotations/mmpose_crowdpose_test.json is there (photos: images)" in text
    record = json.loads((crowd / "json" / "crowdpose_trainval.json").read_text())
    record["categories"][0]["keypoints"][0] = "snout"
    (crowd / "json" / "crowdpose_trainval.json").write_text(json.dumps(record))
    assert "so left out: snout" in check(crowd, "paper-crowdpose", root, capsys)[1]
