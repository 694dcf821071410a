"""Tables of engines: those that were built, and what gpu.sh measured, if anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cfpose_bench.report import engines
from cfpose_bench.report.engines import builds_block, gpu_block
from cfpose_bench.tables import BUILDS, GPU, main
from cfpose_sdk.backends.bundled import BUNDLED_MODEL
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import sha256


@pytest.mark.parametrize("document", ["docs/engine-options.md", "benchmarks/README.md"])
def test_documents_show_what_was_recorded(root: Path, document: str) -> None:
    text = (root / document).read_text(encoding="utf-8")
    if document.startswith("docs"):
        record = json.loads((root / "export/results/engine-builds.json").read_text("utf-8"))
        assert builds_block(record) in text, "run: make tables"
        return
    paths = sorted((root / "benchmarks" / "results").glob("gpu-*.json"))
    assert gpu_block([json.loads(path.read_text("utf-8")) for path in paths]) in text


def _timed(provider: str, precision: str, boxes: str, ms: float) -> dict[str, Any]:
    """A model's row of a report of cfpose-bench, as far as it is read."""
    return {
        "model": "cfpose-s", "precision": precision, "provider": provider, "boxes": boxes,
        "latency_ms": {"total": {"p50": ms, "p90": ms + 1}},
        "people_curve": [{"people": 1, "p50": ms / 2}, {"people": 20, "p50": ms * 2}],
    }  # fmt: skip


def _built(px: float | None) -> dict[str, Any]:
    proof = {"run": False, "why": "no driver"} if px is None else {"run": True, "max_px": px}
    facts = {"precision": "fp16", "engine_bytes": 12_340_000, "proof": proof}
    return {**facts, "finder": {**facts, "engine_bytes": 5_000_000}}


def _record() -> dict[str, Any]:
    """A small result of gpu.sh."""
    times = {"1": {"p50": 4.04}, "8": {"p50": 9.0}}
    return {
        "schema": 2,
        "model": "default",
        "environment": {
            "gpu": {"name": "Some GPU 9000", "driver_version": "580.1"},
            "packages": {"tensorrt": "11.4", "numpy": "2.0"},
        },
        "steps": {
            "doctor": {"status": "done", "figures": {}},
            "torch": {"status": "done", "figures": {"modes": {
                "eager fp32": {"ms": times}, "compiled fp16": {"failed": "no compiler"}}}},
            "engine-fp16": {"status": "done", "figures": _built(0.0123)},
            "bench-engines": {"status": "done", "figures": {"models": [
                _timed("TensorRT 11.4 fp16", "fp16", "gt", 2.04)]}},
            "bench-rtmlib": {"status": "skipped", "why": "first\nrtmlib | is not there"},
            "check-finder": {"status": "failed", "why": ""},
        },
    }  # fmt: skip


def test_what_gpu_sh_measured_becomes_tables(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{GPU[0]}\nstale\n{GPU[1]}\nafter\n")
    pattern = str(tmp_path / "gpu-*.json")
    assert main([pattern, str(document)]) == 0
    text = document.read_text()
    assert "Not measured: `gpu.sh` has not run on a GPU" in text
    assert "stale" not in text
    (tmp_path / "gpu-default-some-gpu-9000.json").write_text(json.dumps(_record()))
    assert main([pattern, str(document)]) == 0
    text = document.read_text()
    assert "has not run" not in text
    assert "`default` on Some GPU 9000 (driver 580.1, tensorrt 11.4)." in text
    row = "| TensorRT 11.4 fp16 | cfpose-s fp16 | gt | 2.0 | 3.0 | 1: 1.0, 20: 4.1 |"
    assert row in text.splitlines()
    assert "| pose | fp16 | 12.3 | 0.012 |" in text
    assert "| finder | fp16 | 5.0 | 0.012 |" in text
    assert "| eager fp32 | 1: 4.0, 8: 9.0 |" in text
    assert "| compiled fp16 | failed: no compiler |" in text
    assert (
        "Not measured: `bench-rtmlib` (skipped: rtmlib / is not there); "
        "`check-finder` (failed: it does not say why)." in text
    )


def test_a_machine_where_nothing_ran() -> None:
    record = _record()
    record["steps"] = {"torch": {"status": "skipped", "why": "no torch"}}
    record["environment"] = {"gpu": {"name": "Some GPU"}}
    block = gpu_block([record, record])
    assert block.count("`default` on Some GPU (no versions).") == 2
    assert "|" not in block
    record["steps"] = {"engine-fp16": {"status": "done", "figures": _built(None)}}
    assert "| finder | fp16 | 5.0 | not run |" in gpu_block([record])


@pytest.mark.parametrize("change", [{"schema": 1}, {"steps": None}])
def test_other_files_are_refused(change: dict[str, Any]) -> None:
    record = {name: value for name, value in {**_record(), **change}.items() if value is not None}
    with pytest.raises(InputError, match=r"no result of gpu\.sh with schema 2"):
        gpu_block([record])


def _builds() -> dict[str, Any]:
    name = BUNDLED_MODEL.stem
    facts = {"model": name, "model_sha256": sha256(BUNDLED_MODEL.read_bytes())}
    layers = {"pose.head": {"float16": 6}, "graph": {"float32": 4, "int8": 1}}
    return {
        "runtime": "TensorRT-RTX 1.0", "target": "SM 8.9", "people": [1, 8], "machine": "2 cores",
        "frames": ["1920x1080"],
        "builds": [
            {**facts, "graph": "pose on crops", "precision": "fp16", "profiles": 3,
             "bytes": 12_340_000, "seconds": 61.4, "layers": layers},
            {**facts, "graph": "pose", "precision": "int8", "said": "refused by the gate"},
        ],
    }  # fmt: skip


def test_builds_become_a_table(tmp_path: Path) -> None:
    document, source = tmp_path / "doc.md", tmp_path / "builds.json"
    document.write_text(f"{BUILDS[0]}\n{BUILDS[1]}\n")
    source.write_text(json.dumps(_builds()))
    assert main([str(source), str(document)]) == 0
    text, name = document.read_text(), BUNDLED_MODEL.stem
    assert "profiles for 1 and 8 people and frames from 32 px to 1920x1080; 2 cores." in text
    assert f"| {name} | pose on crops | fp16 | 3 | 12.3 | 7 of 11 | 61 |" in text
    assert f"- {name}, pose in int8: refused by the gate." in text
    assert "replaced" not in text


def test_a_model_that_was_replaced_since_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    record = _builds()
    record["builds"][0]["model_sha256"] = "other"
    del record["builds"][1]
    assert f"Recorded before {BUNDLED_MODEL.stem} was replaced" in builds_block(record)
    record = _builds()
    monkeypatch.setattr(engines, "bundled_models", dict)
    assert f"Recorded before {BUNDLED_MODEL.stem} was replaced" in builds_block(record)
