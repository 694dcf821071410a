"""The model card tells what the files say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from cfpose_bench.report.bundled_files import files_block
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, bundled_models
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY

FILES = dict.fromkeys(bundled_models().values(), SPEC_KEY) | {BUNDLED_FINDER: FINDER_KEY}


@pytest.fixture
def card(root: Path) -> str:
    return (root / "cfpose_sdk" / "models" / "README.md").read_text(encoding="utf-8")


def test_the_card_holds_the_figures_origin_and_terms_of_the_files(root: Path, card: str) -> None:
    assert files_block(root / "cfpose_sdk" / "models") in card, "run: make tables"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_it_is(path: Path, card: str) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    spec = json.loads(metadata[FILES[path]])
    assert spec["name"] == path.stem
    assert spec["metrics"]
    for name, value in spec["metrics"].items():
        assert f"| {round(value, 4):g} |" in card, name
    width, height = spec["size_wh"]
    assert f"[N, {height}, {width}, 3]" in card
    assert spec["trained_on"]
    assert spec["license"]
    learned_from = " ".join(spec["trained_on"])
    if "LSP" in learned_from or "ADE20K" in learned_from:
        assert "research" in spec["license"]
        assert "research" in card
    for name in ("MoveNet", "TinyPose", "RTMDet", "YOLOX"):
        if name in learned_from:
            assert name in card, name


def test_what_the_weights_began_from_is_in_the_notice(root: Path) -> None:
    notice = (root / "NOTICE").read_text(encoding="utf-8")
    for path, key in FILES.items():
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        for start in json.loads(metadata[key]).get("started_from", []):
            assert start["name"].split()[0].rstrip(",") in notice, start
            assert start["license"] != "not stated"
