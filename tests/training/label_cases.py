"""Options and edits for the tests of labelling runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from cfpose_training.labels.run import LabelOptions


def edit(root: Path, change: Any) -> None:
    """Let `change` alter the record of people.json."""
    record = json.loads((root / "people.json").read_text())
    change(record)
    (root / "people.json").write_text(json.dumps(record))


def options(root: Path, models: Path, **changes: Any) -> LabelOptions:
    """A run of two views over `root`, into its labels.json."""
    plain = LabelOptions(
        out=root / "labels.json",
        images=root / "images",
        labeller=models / "tiny_thunder.onnx",
        annotations=root / "people.json",
        views=2,
        threads=1,
    )
    return dataclasses.replace(plain, **changes)
