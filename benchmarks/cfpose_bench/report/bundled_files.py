"""What the bundled model files say of themselves, as Markdown for their card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.backends.bundled import POSE_MODELS
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec

# figures that a spec's `metrics` may hold, in words
FIGURES = {
    "dev_people": "people that it was measured and calibrated on",
    "dev_AP": "AP with annotated boxes",
    "dev_AP_coarse": "AP before refinement",
    "dev_ECE": "calibration error (ECE) of the confidence, on the photos it was fitted on",
    "dev_within_1_sigma": "joints within 1 sigma of their covariance (39.3 % for a Gaussian)",
    "dev_within_2_sigma": "joints within 2 sigma (86.5 % for a Gaussian)",
    "dev_recall": "people found, IoU 0.5, shipped threshold",
    "dev_false": "boxes without a person, a photo with people",
    "dev_false_empty": "boxes without a person, a photo without people",
}


def files_block(folder: Path) -> str:
    """Markdown of the .onnx files in a folder: what goes in and comes out, figures, origin, terms.

    Raises ArtifactError for a file that is no artifact.
    """
    first = [path.name for path in POSE_MODELS.values()]
    paths = sorted(folder.glob("*.onnx"))
    paths.sort(key=lambda path: first.index(path.name) if path.name in first else len(first))
    specs, shapes = [], []
    for path in paths:
        with open_backend(path, device="cpu") as backend:
            specs.append(_spec(backend))
            shapes.append((backend.inputs, backend.outputs))
    rows = [
        ("", *(path.name for path in paths)),
        ("input", *map(_input, specs, (inputs for inputs, _ in shapes))),
        ("output", *(", ".join(f"`{name}`" for name in outputs) for _, outputs in shapes)),
        ("MB", *(f"{path.stat().st_size / 1e6:.1f}" for path in paths)),
    ]
    return "\n".join(
        [*_table(rows), "", *_table(_figures(paths, specs)), "", *_table(_starts(paths, specs)), ""]
        + [_terms(path, spec) for path, spec in zip(paths, specs, strict=True)]
    )


def _spec(backend: Backend) -> ModelSpec | FinderSpec:
    if FINDER_KEY in backend.metadata:
        return FinderSpec.from_json(backend.metadata[FINDER_KEY])
    return ModelSpec.from_json(backend.metadata[SPEC_KEY])


def _input(spec: ModelSpec | FinderSpec, names: Sequence[str]) -> str:
    width, height = spec.size_wh
    boxed = ", letterboxed" if isinstance(spec, FinderSpec) else ""
    return f"`{', '.join(names)}` uint8 [N, {height}, {width}, 3] BGR{boxed}"


def _figures(
    paths: Sequence[Path], specs: Sequence[ModelSpec | FinderSpec]
) -> list[tuple[str, ...]]:
    """A row a figure; names that are not in FIGURES stand as they are."""
    rows: list[tuple[str, ...]] = [("file", "figure", "value")]
    for path, spec in zip(paths, specs, strict=True):
        known = [name for name in FIGURES if name in spec.metrics]
        for name in (*known, *sorted(spec.metrics.keys() - FIGURES.keys())):
            rows.append((path.name, FIGURES.get(name, name), f"{round(spec.metrics[name], 4):g}"))
    return rows


def _starts(
    paths: Sequence[Path], specs: Sequence[ModelSpec | FinderSpec]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("file", "training began from", "source", "SHA-256 of the file", "licence")
    ]
    for path, spec in zip(paths, specs, strict=True):
        for start in spec.started_from:
            rows.append((path.name, start.name, start.source, f"`{start.sha256}`", start.license))
        if not spec.started_from:
            rows.append((path.name, "not recorded", "", "", ""))
    return rows


def _terms(path: Path, spec: ModelSpec | FinderSpec) -> str:
    return f"- {path.name} learned from: {'; '.join(spec.trained_on)}. Terms: {spec.license}."


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|" + "---|" * (head.count("|") - 1), *others]
