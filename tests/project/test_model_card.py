"""The model card tells what the files say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

MODELS = {"cfpose-s": "cfpose.spec", "finder-s": "cfpose.finder"}


@pytest.mark.parametrize("name", MODELS)
def test_the_card_shows_the_figures_and_terms_of_the_file(root: Path, name: str) -> None:
    folder = root / "cfpose_sdk" / "models"
    card = (folder / "README.md").read_text(encoding="utf-8")
    metadata = {e.key: e.value for e in onnx.load(folder / f"{name}.onnx").metadata_props}
    spec = json.loads(metadata[MODELS[name]])
    assert spec["name"] == name
    figures = [v for key, v in spec["metrics"].items() if key != "dev_people"]
    assert figures
    for value in figures:
        assert f"| {round(value, 4):g} |" in card, value
    width, height = spec["size_wh"]
    assert f"[N, {height}, {width}, 3]" in card
    assert spec["trained_on"]
    assert spec["license"]
    learned_from = " ".join(spec["trained_on"])
    if "LSP" in learned_from or "ADE20K" in learned_from:
        assert "research" in spec["license"]
        assert "research" in card
