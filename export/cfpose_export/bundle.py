"""Proven artifacts → the models that the SDK ships."""

from __future__ import annotations

from pathlib import Path

from cfpose_export.graph import load_model, read_spec
from cfpose_sdk.detector import BUNDLED_FINDER
from cfpose_sdk.errors import ArtifactError, ExportError
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.files import write_file
from cfpose_sdk.spec import FINDER_KEY, FinderSpec

MAX_BYTES = 20_000_000  # of all bundled weights together


def bundle(pose: Path | None, finder: Path | None, folder: Path | None = None) -> list[Path]:
    """Put a pose model, a finder or both where `PoseEstimator()` looks for its defaults.

    Returns the files written. Raises ExportError when a pose model carries no proof or the bundle
    grows too large, ArtifactError when a file is not what it is said to be.
    """
    folder = BUNDLED_MODEL.parent if folder is None else folder
    targets: dict[Path, bytes] = {}
    if pose is not None:
        if not read_spec(load_model(pose)).gate:
            raise ExportError(f"{pose} carries no proof; write it with: cfpose-export onnx")
        targets[folder / BUNDLED_MODEL.name] = pose.read_bytes()
    if finder is not None:
        metadata = {entry.key: entry.value for entry in load_model(finder).metadata_props}
        if FINDER_KEY not in metadata:
            raise ArtifactError(f"{finder} carries no {FINDER_KEY}, so it is not a person finder")
        FinderSpec.from_json(metadata[FINDER_KEY])
        targets[folder / BUNDLED_FINDER.name] = finder.read_bytes()
    stay = [p for p in folder.glob("*.onnx") if p not in targets]
    total = sum(map(len, targets.values())) + sum(p.stat().st_size for p in stay)
    if total > MAX_BYTES:
        raise ExportError(f"the bundle would hold {total} bytes, allowed are {MAX_BYTES}")
    for target, data in targets.items():
        write_file(target, data)
    return list(targets)
