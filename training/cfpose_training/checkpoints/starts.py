"""Weights of others that a network began from: of a file, and through checkpoints of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from cfpose_sdk.files import digest
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec, Start
from cfpose_training.checkpoints.files import load_tensors
from cfpose_training.checkpoints.from_graph import load_graph

NOT_STATED = "not stated"


def starts_of(path: Path, known: Iterable[Start]) -> tuple[Start, ...]:
    """What a network whose weights are those of `path` (`--init`), read before, goes back to.

    A checkpoint or graph of ours hands on its own record. Another file is itself the start: as the
    recipe knows it (`known`) by its SHA-256, else by its name, source and licence not stated.
    Raises ArtifactError for a file that cannot be read, SpecError for its spec.
    """
    spec = _own_spec(path)
    if spec is not None:
        return spec.started_from
    sha256 = digest(path)
    entries = {start.sha256: start for start in known}
    return (entries.get(sha256) or Start(path.stem, NOT_STATED, sha256, NOT_STATED),)


def inherited(specs: Iterable[ModelSpec | FinderSpec], known: Iterable[Start]) -> tuple[Start, ...]:
    """The starts of all `specs`, each once; of specs without a record, as versions before 8 are,
    those that the recipe knows.
    """
    records = [start for spec in specs for start in spec.started_from]
    return tuple(dict.fromkeys(records or known))


def _own_spec(path: Path) -> ModelSpec | FinderSpec | None:
    """The spec in a checkpoint or graph of ours; None for a file of others."""
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        metadata = load_tensors(path)[1]
    elif path.suffix == ".onnx":
        metadata = {entry.key: entry.value for entry in load_graph(path).metadata_props}
    if SPEC_KEY in metadata:
        return ModelSpec.from_json(metadata[SPEC_KEY])
    return FinderSpec.from_json(metadata[FINDER_KEY]) if FINDER_KEY in metadata else None
