"""Whatever a tool's file holds: annotations to train on, or an error of cfpose's tree."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.errors import CfposeError
from cfpose_training.layouts.conversion import convert_annotations
from tests.any_values import bent, bent_bytes, draws, seeds
from tests.training.layouts.exports import (
    NAMES,
    coco_annotator,
    cvat,
    draw_photo,
    label_studio,
    roboflow,
    x_anylabeling,
)

EXPORTS: list[Callable[[], Any]] = [
    coco_annotator, cvat, label_studio, roboflow, x_anylabeling,
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw_photo(tmp_path)
    return tmp_path


def convert(source: Path, joints: list[str]) -> bool:
    """Whether it was converted; what was written is whole."""
    target = source.with_name("own.json")
    target.unlink(missing_ok=True)
    try:
        convert_annotations(source, target, source.parent / "photos", joints)
    except CfposeError:
        assert not target.exists()
        return False
    assert read_annotations(target)["annotations"]
    return True


@draws(150)
@given(seeds)
def test_any_export(place: Path, rng: random.Random) -> None:
    record = rng.choice(EXPORTS)()
    joints = NAMES if isinstance(record, list) else []
    data = json.dumps(bent(rng, record)).encode()
    (place / "any.json").write_bytes(bent_bytes(rng, data) if rng.random() < 0.1 else data)
    convert(place / "any.json", joints)


@draws(80)
@given(seeds)
def test_any_yaml_and_labels(place: Path, rng: random.Random) -> None:
    (place / "labels").mkdir(exist_ok=True)
    (place / "images").unlink(missing_ok=True)
    (place / "images").symlink_to("photos")
    yaml = b"path: .\ntrain: images\nkpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\nnames: {0: person}\n"
    label = b"0 0.4 0.4375 0.6 0.625 0.4 0.25 2 0.6 0.625 1 0.2 0.625 2\n"
    first = rng.random() < 0.5
    (place / "any.yaml").write_bytes(bent_bytes(rng, yaml) if first else yaml)
    (place / "labels" / "a.txt").write_bytes(label if first else bent_bytes(rng, label))
    convert(place / "any.yaml", NAMES)


def test_what_is_not_bent_is_converted(place: Path) -> None:
    for export in EXPORTS:
        record = export()
        (place / "any.json").write_text(json.dumps(record))
        assert convert(place / "any.json", NAMES if isinstance(record, list) else [])
