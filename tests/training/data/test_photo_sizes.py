"""Photos of another size than annotated are counted, by `data check` and before a stage trains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk.media.image import read_image
from cfpose_training.cli import main
from cfpose_training.config import FinderConfig, OptimConfig, PhotoSource, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.photo_sizes import other_sizes, size_in_header
from cfpose_training.finder import train as finder_train
from cfpose_training.pose.run import PoseRun
from cfpose_training.pose.train import pose_spec
from cfpose_training.run.loop import RunOptions

SENTENCE = "2 of 12 photos have another size than annotated"


def exif_jpeg(orientation: int, order: str) -> bytes:
    """A JPEG of 30 x 20 with an Exif block, after a block that some cameras write before it."""
    plain = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
    sign, byte = (b"II*\0", "little") if order == "<" else (b"MM\0*", "big")
    entry = (274).to_bytes(2, byte) + (3).to_bytes(2, byte) + (1).to_bytes(4, byte)
    value = orientation.to_bytes(2, byte) + b"\0\0"
    tiff = sign + (8).to_bytes(4, byte) + (1).to_bytes(2, byte) + entry + value + bytes(4)
    blocks = b""
    for marker, body in ((b"\xff\xed", b"x" * 9000), (b"\xff\xe1", b"Exif\0\0" + tiff)):
        blocks += marker + (len(body) + 2).to_bytes(2, "big") + body
    return plain[:2] + blocks + plain[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_header_tells_the_size_that_is_read(tmp_path: Path, orientation: int, order: str) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(exif_jpeg(orientation, order))
    height, width = read_image(photo).shape[:2]
    assert size_in_header(photo) == (width, height)


def test_other_headers(tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    for suffix in (".png", ".jpg", ".bmp"):
        cv2.imwrite(str(photo.with_suffix(suffix)), np.zeros((20, 30, 3), np.uint8))
    assert size_in_header(photo) == size_in_header(photo.with_suffix(".jpg")) == (30, 20)
    assert size_in_header(photo.with_suffix(".bmp")) is None
    assert size_in_header(tmp_path / "absent.jpg") is None
    whole = exif_jpeg(6, "<")
    for end in range(0, len(whole), 97):
        photo.write_bytes(whole[:end])
        assert size_in_header(photo) in (None, (20, 30))


def test_the_sentence_counts() -> None:
    assert other_sizes(["a", "b"], [(2, 1), (2, 1)], [(2, 1), None]) == ""
    text = other_sizes(["d/a", "b"], [(2, 1), (2, 1)], [(1, 2), (2, 1)])
    assert text.startswith("1 of 2 photos have another size than annotated")
    assert "a has 1 x 2, annotated are 2 x 1" in text


def swap_two_sizes(root: Path) -> None:
    record = json.loads((root / "people.json").read_text())
    for image in record["images"][:2]:
        image["width"], image["height"] = 100, 120
    (root / "people.json").write_text(json.dumps(record))


def test_training_and_its_check_say_so(
    tiny_root: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(tiny_root), "--recipe", str(tiny_recipe)]) == 0
    capsys.readouterr()
    swap_two_sizes(tiny_root)
    assert main(["data", "check", str(tiny_root), "--recipe", str(tiny_recipe)]) == 1
    assert f"PROBLEM: {SENTENCE}" in capsys.readouterr().out
    recipe, data = load_recipe(tiny_recipe), DataOptions(tiny_root, tiny_root / "cache")
    options = RunOptions(tiny_root / "run", accelerator="cpu", threads=1)
    run = PoseRun(recipe.stage1, pose_spec(recipe), recipe, data, options, None)
    run.batches(run.people())
    trained_on = SENTENCE.replace("of 12", "of 10")  # two are held out
    assert f"cfpose-train: warning: {trained_on}" in capsys.readouterr().err


def test_training_a_finder_says_so(
    tiny_root: Path,
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(finder_train, "label_photos", stop)
    sources = PhotoSource("people", "images", "people.json"), PhotoSource("plain", "images")
    finder = FinderConfig("f", OptimConfig(1, batch_size=4), sources)
    recipe = dataclasses.replace(load_recipe(tiny_recipe), finder=finder)
    data, options = DataOptions(tiny_root, tiny_root / "cache"), RunOptions(tiny_root / "run")
    sentence = SENTENCE.replace("of 12", "of 24")  # half of them are not annotated
    for said in ([], [f"cfpose-train: warning: {sentence}"]):
        with pytest.raises(InterruptedError):
            finder_train.train_finder(recipe, tiny_root / "no.onnx", data, options)
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(",")[0] for line in lines if "warning" in line] == said
        swap_two_sizes(tiny_root)
