"""The bundled models: their names, their files, and the file that a name stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.files import MODELS, shown

# pose models, the default first; the files of those that an installation holds are there
POSE_MODELS: Mapping[str, Path] = MappingProxyType(
    {name: MODELS / f"{name}.onnx" for name in ("cfpose-s", "cfpose-m")}
)
BUNDLED_MODEL = next(iter(POSE_MODELS.values()))
BUNDLED_FINDER = MODELS / "finder-s.onnx"
DEFAULT = "default"  # another name of the default, as commands and reports have it


def bundled_models() -> dict[str, Path]:
    """The pose models that this installation holds: name → file, the default first."""
    return {name: path for name, path in POSE_MODELS.items() if path.is_file()}


def model_file(model: str | os.PathLike[str]) -> Path:
    """The file that a name or a path stands for.

    What has neither a suffix nor a folder is a bundled model's name, whatever lies in the working
    folder: a model's file has a suffix. Raises ArtifactError, with the names, for another name and
    for one whose file is missing.
    """
    text = os.fsdecode(model)
    path = Path(text)
    if path.suffix or path.name != text or not text:
        return path
    if text == DEFAULT:
        return BUNDLED_MODEL
    there = bundled_models()
    if text not in there:
        what = "is not in this installation" if text in POSE_MODELS else "is no bundled model"
        names = ", ".join([*there, DEFAULT])
        raise ArtifactError(
            f"{shown(text)} {what}; expected one of {names}, or a file with its suffix (.onnx)"
        )
    return there[text]
