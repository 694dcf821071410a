"""The drift table: what each precision does to a model's keypoints, and to its AP.

`python -m cfpose_export.precision.drift export/results/drift.json docs/precision.md` writes the
committed figures as the table in the document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import onnx

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.data.dataset import KeypointDataset, open_dataset
from cfpose_bench.measurement import environment
from cfpose_bench.run.predictions import predict_dataset
from cfpose_bench.tables import fill
from cfpose_export.graph.half_weights import whole_weights
from cfpose_export.graph.rules import LowPrecision, load_model, read_spec
from cfpose_export.precision.gate import LIMITS, Limits, builder, digest, examine
from cfpose_export.precision.int8 import calibrate_on_people
from cfpose_export.precision.sensitivity import summary
from cfpose_export.proof.crops import read_hard
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import write_file

SCHEMA = 1


@dataclass(frozen=True)
class ApSource:
    """Annotated photos on which AP is measured, with the annotated boxes."""

    annotations: Path
    images: Path
    every: int = 1  # photos whose id is divisible by it


@dataclass(frozen=True)
class DriftOptions:
    """What to measure, and on what."""

    photos: Path | None = None  # folder with people.json; None: the demo photos
    crops: int = 240
    min_confidence: float = 0.3
    precisions: tuple[LowPrecision, ...] = get_args(LowPrecision)
    culprits: bool = True  # look for the modules that drift most where the gate refuses
    ap: tuple[ApSource, ...] = ()


def measure_drift(path: Path, options: DriftOptions) -> dict[str, Any]:
    """One model's rows: the figures of every precision and way of computing it, and its AP.

    Whether the model carries a proof is noted, not asked for: this measures, it writes no model.
    """
    model = whole_weights(load_model(path))
    spec = read_spec(model)
    if spec.precision != "fp32":
        raise InputError(f"{path} is {spec.precision}; drift is measured from the float32 graph")
    proof = read_hard(options.photos, spec, options.crops)
    datasets = [(source, open_photos(source)) for source in options.ap]
    base = [accuracy(model, dataset) for _, dataset in datasets]
    rows: list[dict[str, Any]] = [{"precision": "fp32", "ap": _ap(datasets, base, base)}]
    for precision in options.precisions:
        ranges = calibrate_on_people(model, options.photos) if precision == "int8" else None
        limits = _limits(precision, options.min_confidence)
        candidate, report = examine(
            model, builder(model, precision, ranges), precision, proof, limits,
            blame=options.culprits,
        )  # fmt: skip
        for figures in report.figures:
            graph = candidate.runs[figures.how]
            after = [accuracy(graph, dataset) for _, dataset in datasets]
            rows.append(
                {
                    "precision": precision,
                    "how": figures.how,
                    "figures": _finite(dataclasses.asdict(figures)),
                    "ap": _ap(datasets, base, after),
                    "kept": list(report.kept),
                    "passes": not report.problems,
                    "culprits": _finite(summary(report.culprits[:3])),
                }
            )
    return {
        "model": spec.name,
        "sha256": digest(model),
        "bytes": path.stat().st_size,
        "size_wh": list(spec.size_wh),
        "decode": spec.decode,
        "proven": bool(spec.gate),
        "photos": "demo" if options.photos is None else options.photos.name,
        "min_confidence": options.min_confidence,
        "rows": rows,
    }


def open_photos(source: ApSource) -> KeypointDataset:
    """The photos of a source. Raises DatasetError when they are not there."""
    dataset = open_dataset(source.annotations, images=source.images)
    photos = {i: path for i, path in dataset.photos.items() if i % source.every == 0}
    return dataclasses.replace(dataset, photos=photos)


def accuracy(model: onnx.ModelProto, dataset: KeypointDataset) -> float:
    """COCO AP of a graph with the annotated boxes, in onnxruntime on the CPU."""
    with _saved(model) as path, PoseEstimator(path, device="cpu") as pose:
        predictions = predict_dataset(
            pose,
            dataset,
            pose.spec.skeleton,
            boxes=dataset.ground_truth_boxes(),
            oks_threshold=None,
            warmup=0,
        )
        skeleton = pose.spec.skeleton
    return evaluate(
        dataset.annotations, predictions.results, skeleton=skeleton, image_ids=dataset.image_ids
    ).AP


def update(path: Path, command: str, models: Sequence[Mapping[str, Any]]) -> None:
    """Write the table's file; models of other names that it holds already stay."""
    names = {model["model"] for model in models}
    kept = []
    if path.is_file():
        kept = [m for m in json.loads(path.read_text())["models"] if m["model"] not in names]
    note = {"command": command, "environment": environment()}
    record = {"schema": SCHEMA, "models": [*kept, *({**m, **note} for m in models)]}
    write_file(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def command_line(words: Sequence[str]) -> str:
    """The command for the table: without the file of the result and the folders of one machine."""
    words = list(words)
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    parts = [Path(word).parts[-2:] if Path(word).is_absolute() else (word,) for word in words]
    return shlex.join(["cfpose-export", *("/".join(part) for part in parts)])


@contextlib.contextmanager
def _saved(model: onnx.ModelProto) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, path)
        yield path


def _limits(precision: LowPrecision, floor: float) -> Limits:
    return dataclasses.replace(LIMITS[precision], floor=floor)


def _ap(
    datasets: Sequence[tuple[ApSource, KeypointDataset]],
    before: Sequence[float],
    after: Sequence[float],
) -> list[dict[str, Any]]:
    return [
        {
            "dataset": dataset.name,
            "every": source.every,
            "images": len(dataset.photos),
            "AP": round(new, 5),
            "delta": round(new - old, 5),
        }
        for (source, dataset), old, new in zip(datasets, before, after, strict=True)
    ]


def _finite(value: Any) -> Any:
    """Rounded to 5 digits; null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


HEAD = ("model", "precision", "computed by", "mean px", "p99 px", "max px", "mean OKS", "min OKS",
        "confidence p99", "logit max", "gate")  # fmt: skip


def drift_block(record: Mapping[str, Any]) -> str:
    """Markdown: one row a model, precision and way of computing it; then AP where it was measured.

    Pixels are crop pixels over the joints whose float32 confidence reaches the bound.
    """
    rows = [_row(m, row) for m in record["models"] for row in m["rows"] if "figures" in row]
    lines = _table(HEAD, 3, rows)
    ap = [line for m in record["models"] for row in m["rows"] for line in _ap_rows(m, row)]
    if ap:
        lines += ["", *_table(("model", "precision", "computed by", "photos", "AP", "ΔAP"), 3, ap)]
    for model in record["models"]:
        packages = model["environment"]["packages"]
        compared = next((r["figures"] for r in model["rows"] if "figures" in r), None)
        many = f"{compared['crops']} crops, {compared['joints']} joints of " if compared else ""
        lines += [
            "",
            f"{model['model']} ({model['size_wh'][1]} x {model['size_wh'][0]}): {many}confidence "
            f"≥ {model['min_confidence']:g}; onnxruntime {packages['onnxruntime']}; "
            f"`{model['command']}`.",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the documents named after the figures."""
    figures, *documents = map(Path, sys.argv[1:] if argv is None else argv)
    block = drift_block(json.loads(figures.read_text(encoding="utf-8")))
    for path in documents:
        write_file(path, fill(path.read_text(encoding="utf-8"), block))
    return 0


def _table(head: Sequence[str], words: int, rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|---" * words + "|---:" * (len(head) - words) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _row(model: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    f = row["figures"]
    keys = ("mean_px", "p99_px", "max_px", "oks_mean", "oks_min", "confidence_p99", "logit_max")
    digits = (3, 2, 1, 4, 3, 4, 2)
    cells = ["-" if f[k] is None else f"{f[k]:.{d}f}" for k, d in zip(keys, digits, strict=True)]
    verdict = "passes" if row["passes"] else "refused"
    return [model["model"], row["precision"], _how(row), *cells, verdict]


def _ap_rows(model: Mapping[str, Any], row: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            model["model"],
            row["precision"],
            _how(row),
            f"{entry['images']} of `{entry['dataset']}`",
            f"{entry['AP']:.4f}",
            "" if row["precision"] == "fp32" else f"{entry['delta']:+.4f}",
        ]
        for entry in row["ap"]
    ]


def _how(row: Mapping[str, Any]) -> str:
    return str(row.get("how", "the file, onnxruntime CPU"))


if __name__ == "__main__":
    sys.exit(main())
