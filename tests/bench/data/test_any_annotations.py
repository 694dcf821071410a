"""Whatever stands in the files and options of a measurement: figures, or an error of our tree."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given

from cfpose_bench.accuracy import evaluate
from cfpose_bench.data.box_files import check_photos, read_box_file
from cfpose_bench.data.dataset import open_dataset
from cfpose_sdk import commands
from cfpose_sdk.errors import CfposeError
from cfpose_sdk.skeleton import COCO_17
from tests.any_values import any_json, any_text, bent, bent_bytes, draws, seeds

JOINTS = [3, 4, 2] * 17
TRUTH = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in (1, 2)],
    "annotations": [
        {
            "id": n, "image_id": 1 + n % 2, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81,
            "iscrowd": 0, "num_keypoints": 17, "keypoints": JOINTS,
        }
        for n in range(3)
    ],
    "categories": [{"id": 1, "name": "person", "keypoints": list(COCO_17.keypoints)}],
}  # fmt: skip
RESULTS = [
    {"image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.9, "keypoints": JOINTS}
    for n in (1, 2)
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the photos of TRUTH."""
    monkeypatch.chdir(tmp_path)
    for name in ("1.png", "2.png"):
        cv2.imwrite(name, np.zeros((20, 30, 3), np.uint8))
    Path("truth.json").write_text(json.dumps(TRUTH))
    return tmp_path


def content(rng: random.Random, record: Any) -> bytes:
    """The bytes of a JSON file: a record with changes, any JSON, or no JSON at all."""
    kind = rng.random()
    if kind < 0.1:
        return bent_bytes(rng, json.dumps(record).encode())
    return json.dumps(any_json(rng) if kind < 0.2 else bent(rng, record)).encode()


@draws(600)
@given(seeds)
def test_any_annotations(place: Path, rng: random.Random) -> None:
    file = Path("any.json")
    file.write_bytes(content(rng, TRUTH))
    try:
        dataset = open_dataset(file)
        boxes = dataset.ground_truth_boxes()
        accuracy = evaluate(dataset.annotations, RESULTS)
    except CfposeError:
        return
    assert boxes.keys() == dataset.photos.keys()
    assert math.isnan(accuracy.AP) or 0 <= accuracy.AP <= 1


@draws(400)
@given(seeds)
def test_any_results(rng: random.Random) -> None:
    results = bent(rng, RESULTS)
    try:
        accuracy = evaluate(TRUTH, results)
    except CfposeError:
        return
    assert accuracy.poses <= len(results)
    assert 0 <= accuracy.AP <= 1


@draws(400)
@given(seeds)
def test_any_file_of_boxes(place: Path, rng: random.Random) -> None:
    file = Path("boxes.json")
    file.write_bytes(content(rng, RESULTS))
    try:
        found = read_box_file(file, rng.choice((1, 1, 7, "person")))
        check_photos(file, found.boxes, {1, 2})
    except CfposeError:
        return
    for boxes in found.boxes.values():
        assert boxes.shape[1] == 5
        assert np.isfinite(boxes).all()


OPTIONS = (
    "--dataset", "--images", "--data-root", "--model", "--boxes", "--preset", "--detector",
    "--joint-threshold", "--device", "--threads", "--rounds", "--repeats", "--limit", "--seed",
    "--work", "--json", "--csv", "--html", "--min-ap", "--max-drift", "--max-p99-ms", "--baseline",
    "--peer-python", "--reference",
)  # fmt: skip


@draws(300)
@given(seeds)
def test_any_words_on_the_command_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: random.Random,
) -> None:
    words = ["cfpose-bench", "--dataset", rng.choice(("truth.json", any_text(rng)))]
    words += ["--in-process", "--model", any_text(rng) or "x", "--rounds", "1", "--repeats", "0"]
    for _ in range(rng.randrange(1, 4)):
        words += [rng.choice(OPTIONS), rng.choice((any_text(rng), "0", "-1", "nan", "1e999", "x"))]
    monkeypatch.setattr(sys, "argv", words)
    try:
        code: object = commands.bench()
    except SystemExit as end:  # argparse
        code = end.code
    assert code == 2, words
    assert "Traceback" not in capsys.readouterr().err
