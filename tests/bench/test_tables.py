"""The tables in the documents are those of the committed reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from cfpose_bench.report.bundled_files import files_block
from cfpose_bench.tables import BEGIN, END, fill, frame_block, main, results_block
from cfpose_sdk.errors import InputError
from cfpose_sdk.spec import SPEC_KEY, ModelSpec, Start

REPORT = "benchmarks/results/coco-val-340-cpu.json"
EARLIER = Path(__file__).parents[1] / "sdk" / "earlier_artifacts"


@pytest.mark.parametrize("document", ["README.md", "cfpose_sdk/models/README.md"])
def test_documents_show_the_committed_report(root: Path, document: str) -> None:
    block = results_block(json.loads((root / REPORT).read_text(encoding="utf-8")))
    assert block in (root / document).read_text(encoding="utf-8"), "run: make tables"


def test_the_export_guide_shows_the_committed_frame_report(root: Path) -> None:
    record = json.loads((root / "studies/results/frame-input-dev.json").read_text("utf-8"))
    block = frame_block(record)
    assert block in (root / "docs/export.md").read_text(encoding="utf-8"), "run: make tables"
    for name, row in record["accuracy"].items():
        taps = name.removeprefix("frame, ")
        said = {"cv2": "bilinear", "area": "INTER_AREA"}.get(name, f"--{taps}`")
        (line,) = [x for x in block.splitlines() if said in x and f"{row['oks_shrunk']:.4f}" in x]
        assert line.count("|") == 5
    peak = record["peak_rss_mib_3840x2160"]["frame, antialias 1, 20 people"]
    assert f"| the graph, `--antialias 1` | 20 | {peak} |" in block


def test_a_table_is_filled_between_its_marks(tmp_path: Path) -> None:
    report = {
        "environment": {"cpu": "a CPU", "cpu_count": 2, "packages": {"onnxruntime": "1.0"}},
        "protocol": {"dataset": "coco-val", "images": 3, "instances": 7, "boxes": "gt"},
        "models": [
            {
                "model": "m", "boxes": "gt", "bytes": 2_500_000,
                "accuracy": {"AP": 0.12345, "AP50": 0.2, "AP75": 0.3, "AR": 0.4,
                             "AP_ci95": [0.1, 0.15]},
                "latency_ms": {"total": {"p50": 12.6}},
            }
        ],
    }  # fmt: skip
    document, source = tmp_path / "doc.md", tmp_path / "report.json"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    source.write_text(json.dumps(report))
    assert main([str(source), str(document)]) == 0
    text = document.read_text()
    row = "| m | gt | **0.123** | 0.100 to 0.150 | 0.200 | 0.300 | 0.400 | 13 | 2.5 |"
    assert row in text
    assert "3 photos of `coco-val` (7 people)" in text
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "stale" not in text


def test_the_new_reports_facts_are_told() -> None:
    report = {
        "environment": {"cpu": "a CPU", "cpu_count": 8, "packages": {"onnxruntime": "1.0"}},
        "protocol": {
            "dataset": "coco-val", "images": 3, "instances": 7, "threads": 2,
            "boxes": "gt+detector+yolox.json",
            "box_accuracy": {"yolox.json": {"AP50": 0.71, "recall50": 0.75}, "detector": {}},
        },
        "models": [
            {
                "model": "m", "boxes": boxes, "bytes": 1, "params": 2_900_000, "macs": 385_000_000,
                "accuracy": {"AP": 0.1, "AP50": 0.2, "AP75": 0.3, "AR": 0.4, "AP_ci95": [0, 1]},
                "latency_ms": {"total": {"p50": 12.6}},
            }
            for boxes in ("gt", "yolox.json")
        ],
    }  # fmt: skip
    block = results_block(report)
    assert "with 2 threads" in block
    assert "`yolox.json` those of that file" in block
    assert "Boxes of `yolox.json`: AP50 0.710, recall 0.750 at IoU .5." in block
    assert block.count("2.9 M parameters, 0.39 GMACs a person") == 1


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(InputError, match="results:begin"):
        fill("nothing here", "block")


def test_a_folder_of_model_files_gives_their_own_words(tmp_path: Path) -> None:
    for name in ("pose-7.onnx", "finder-1.onnx"):
        (tmp_path / name).write_bytes((EARLIER / name).read_bytes())
    document = tmp_path / "card.md"
    document.write_text("before\n<!-- files:begin -->\nstale\n<!-- files:end -->\nafter\n")
    assert main([str(tmp_path), str(document)]) == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert "stale" not in text
    assert "|  | finder-1.onnx | pose-7.onnx |" in text
    assert "`crops` uint8 [N, 64, 48, 3] BGR |" in text
    assert "| pose-7.onnx | AP with annotated boxes | 0.25 |" in text
    assert "| finder-1.onnx | not recorded |" in text
    assert "- pose-7.onnx learned from: photos. Terms: Apache-2.0." in text


def test_the_start_of_a_model_file_is_told(tmp_path: Path) -> None:
    model = onnx.load(EARLIER / "pose-7.onnx")
    spec = ModelSpec.from_json(model.metadata_props[0].value)
    start = Start("trunk", "https://trunks.example", "0a" * 32, "MIT")
    spec = dataclasses.replace(spec, started_from=(start,), metrics={"other": 0.5})
    onnx.helper.set_model_props(model, {SPEC_KEY: spec.to_json()})
    onnx.save(model, tmp_path / "x.onnx")
    block = files_block(tmp_path)
    assert f"| x.onnx | trunk | https://trunks.example | `{start.sha256}` | MIT |" in block
    assert "| x.onnx | other | 0.5 |" in block
