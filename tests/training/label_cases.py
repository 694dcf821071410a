"""Options, edits and adopted stand-ins for the tests of labelling runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.adopt.adoption import AdoptOptions, plan_adoption
from cfpose_export.adopt.surgery import fuse
from cfpose_training.labels.labeller import LabellerFile
from cfpose_training.labels.run import LabelOptions


def edit(root: Path, change: Any) -> None:
    """Let `change` alter the record of people.json."""
    record = json.loads((root / "people.json").read_text())
    change(record)
    (root / "people.json").write_text(json.dumps(record))


def adopted(foreign: Path, target: Path, preset: str, **fields: Any) -> Path:
    """Adopt a stand-in, without the proof on photos; `fields` are those of the preset."""
    plan = plan_adoption(foreign, AdoptOptions("MIT", preset, name=target.stem, fields=fields))
    onnx.save_model(fuse(plan), target)
    return target


def options(root: Path, models: Path, **changes: Any) -> LabelOptions:
    """A run of two views over `root`, into its labels.json."""
    plain = LabelOptions(
        out=root / "labels.json",
        images=root / "images",
        labellers=(LabellerFile(models / "tiny_thunder.onnx"),),
        annotations=root / "people.json",
        views=2,
        threads=1,
    )
    return dataclasses.replace(plain, **changes)
