"""The gate of finders: fp16 or bf16 only when the boxes stay where float32 puts them, on photos."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import onnx

from cfpose_export.graph.rules import (
    FINDER_OUTPUTS,
    TypedPrecision,
    check_graph,
    read_finder_spec,
    report_path,
    write_spec,
)
from cfpose_export.precision.gate import AS_FILE, ROUNDED, digest
from cfpose_export.precision.typed import emulate, lower
from cfpose_export.proof.runtimes import (
    LOW_FINDERS,
    FinderAgreement,
    FinderBound,
    compare_finders,
    judge_finders,
)
from cfpose_sdk.backends import open_backend
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import sha256, write_file


@dataclass(frozen=True)
class FinderReport:
    """What a lowered finder was found to be."""

    precision: str
    reference_sha256: str
    bound: FinderBound
    kept: tuple[str, ...]
    figures: Mapping[str, FinderAgreement]  # what computed it → figures
    artifact_sha256: str = ""

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    def summary(self) -> dict[str, Any]:
        """For the artifact's metadata. Rounded, so that another machine writes the same."""
        figures = self.figures
        return {
            "reference_sha256": self.reference_sha256,
            "runtime": "onnxruntime CPU",
            "photos": max(f.photos for f in figures.values()),
            "max_px": {how: math.ceil(f.max_px * 100) / 100 for how, f in figures.items()},
            "kept": list(self.kept),
        }


def lowered_finder(
    reference: onnx.ModelProto,
    precision: str,
    photos: Path | None,
    keep: Collection[str] = (),
    bound: FinderBound | None = None,
) -> tuple[onnx.ModelProto, FinderReport]:
    """The typed graph with its proof in the spec. Raises ExportError where a bound is broken."""
    spec = read_finder_spec(reference)
    if precision not in get_args(TypedPrecision):
        raise InputError(
            f"finders are lowered to one of {get_args(TypedPrecision)}, got {precision!r}"
        )
    if spec.precision != "fp32" or [v.name for v in reference.graph.input] != ["images"]:
        raise ExportError(f"the reference must be a float32 graph on letterboxes, not {spec.name}")
    kind: TypedPrecision = "fp16" if precision == "fp16" else "bf16"
    bound = LOW_FINDERS[kind] if bound is None else bound
    model = lower(reference, kind, keep)
    check_graph(model, "images", FINDER_OUTPUTS)
    runs = {AS_FILE: model} if kind == "fp16" else {}  # onnxruntime has no bf16 Conv
    runs |= {ROUNDED: emulate(reference, kind, keep)}
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "reference.onnx"
        onnx.save_model(reference, whole)
        for number, (how, graph) in enumerate(runs.items()):
            path = Path(folder) / f"{number}.onnx"
            onnx.save_model(graph, path)
            with (
                open_backend(whole, device="cpu") as ours,
                open_backend(path, device="cpu") as theirs,
            ):
                figures[how] = compare_finders(ours, theirs, spec, photos)
    for how, agreement in figures.items():
        try:
            judge_finders(agreement, bound)
        except ExportError as error:
            raise ExportError(f"the {precision} graph is not the model ({how}): {error}") from error
    report = FinderReport(precision, digest(reference), bound, tuple(keep), figures)
    write_spec(model, dataclasses.replace(read_finder_spec(model), gate=report.summary()))
    return model, report


def write_gated_finder(
    path: Path,
    reference: onnx.ModelProto,
    precision: str,
    photos: Path | None,
    keep: Collection[str] = (),
) -> FinderReport:
    """Lower, compare, and write the graph with its proof, and `NAME.gate.json` beside it."""
    model, report = lowered_finder(reference, precision, photos, keep)
    data = model.SerializeToString(deterministic=True)
    report = dataclasses.replace(report, artifact_sha256=sha256(data))
    write_file(path, data)
    write_file(report_path(path), report.to_json())
    return report
