"""Verdicts on the goals, and the section of the document that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cfpose_bench.measurement import cpu_kind
from cfpose_bench.runtimes.contestants import RTMLIB, W32, W32_BF16
from cfpose_bench.runtimes.tables import NOT_MEASURED, goals, kind_of, runtimes_block
from cfpose_bench.tables import RUNTIMES, fill, main


def row(label: str, ms: float, ratio: tuple[float, float, float] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"label": label, "ms": ms, "samples_ms": [[ms], [ms]]}
    if ratio is not None:
        found["speedup"] = {"median": ratio[0], "low": ratio[1], "high": ratio[2], "by_round": []}
    return found


def outside(label: str, ms: float, share: float) -> dict[str, Any]:
    shares = {"median": share, "low": share - 0.01, "high": share + 0.01, "by_round": [share]}
    return {**row(label, ms), "outside_share": shares}


@pytest.fixture
def record() -> dict[str, Any]:
    w32 = [
        row(RTMLIB, 100.0),
        row(W32, 90.0, (1.1, 0.9, 1.2)),
        row(W32_BF16, 30.0, (2.9, 2.8, 3.2)),
    ]
    tasks = [
        {"model": "w32", "boxes": "given", "people": 5, "rows": w32},
        {
            "model": "default", "boxes": "found", "people": 1,
            "rows": [outside("default, a", 1, 0.9)],
        },
        {
            "model": "default", "boxes": "found", "people": 5,
            "rows": [outside("default, a", 50.0, 0.05), outside("default, b", 40.0, 0.125),
                     outside("MoveNet", 10.0, 0.01)],
        },
    ]  # fmt: skip
    return {
        "environment": {
            "cpu": "a CPU", "packages": {"onnxruntime": "1.0", "numpy": "2"},
            "cpu_features": ["avx2"],
        },
        "protocol": {"photo": "p.jpg", "size_wh": [7, 5], "threads": 2},
        "tasks": tasks,
        "first_result": {
            "median_s": 1.4, "max_s": 1.75, "samples_s": [1.25, 1.4, 1.75], "people": 3,
            "parts_s": {"import": 0.5, "start": 0.25},
        },
        "left_out": [{"label": "x", "why": "not here"}],
    }  # fmt: skip


def test_the_median_decides_and_the_interval_tells_how_surely(record: dict[str, Any]) -> None:
    same, best, share, first, amx = goals(record)
    assert (same["who"], same["verdict"], same["sure"]) == (W32, "pass", False)
    assert (best["who"], best["verdict"], best["sure"]) == (W32_BF16, "fail", False)
    # of the fastest own one, at five people
    assert (share["who"], share["value"], share["verdict"]) == ("default, b", 0.125, "fail")
    assert share["sure"]
    assert (first["verdict"], first["sure"], first["high"]) == ("pass", False, 1.75)
    assert (amx["verdict"], amx["why"]) == ("not measured", "no AMX")


def test_sure_verdicts_and_amx(record: dict[str, Any]) -> None:
    record["tasks"][0]["rows"][1] = row(W32, 90.0, (1.1, 1.0, 1.2))
    record["tasks"][0]["rows"][2] = row(W32_BF16, 30.0, (2.0, 1.9, 2.9))
    record["environment"]["cpu_features"] = ["amx_bf16"]
    same, best, _, _, amx = goals(record)
    assert (same["verdict"], same["sure"]) == ("pass", True)
    assert (best["verdict"], best["sure"]) == ("fail", True)
    assert (amx["verdict"], amx["value"]) == ("measured", 3.0)  # 90 ms by 30 ms


def test_what_was_left_out_is_not_measured(record: dict[str, Any]) -> None:
    record["tasks"] = record["tasks"][1:2]
    said = {goal["goal"]: goal["verdict"] for goal in goals(record)}
    assert said.pop("first result, seconds") == "pass"
    assert set(said.values()) == {"not measured"}
    assert len(said) == 4


def test_the_section_is_filled_by_the_tables_command(
    record: dict[str, Any], tmp_path: Path
) -> None:
    record["goals"] = goals(record)
    document, source = tmp_path / "doc.md", tmp_path / "record.json"
    document.write_text(f"before\n{RUNTIMES[0]}\n{NOT_MEASURED}\n{RUNTIMES[1]}\nafter\n")
    source.write_text(json.dumps(record))
    assert main([str(source), str(document)]) == 0
    text = document.read_text()
    for line in (
        f"| W32 | given | 5 | {RTMLIB} | 100.0 | 1 | - |",
        f"| W32 | given | 5 | {W32} | 90.0 | 1.10 (0.90 to 1.20) | - |",
        "| default | found | 5 | default, b | 40.0 | 1 | 12.5% |",
        f"| AVX2 | same onnxruntime as rtmlib | boxes given, 5 people | {W32} | ≥ 1 "
        "| 1.10 (0.90 to 1.20) | pass, not surely |",
        "not measured: no AMX |",
        "First result: median 1.40 s, most 1.75 s of 3 processes",
        "AVX2, left out: x (not here).",
        "AVX2: one run on a CPU with 2 threads",
        "Not measured: AMX, AVX-512, ARM.",
        "onnxruntime 1.0",
    ):
        assert line in text
    assert NOT_MEASURED not in text
    assert text.startswith("before\n")
    assert text.endswith(f"{RUNTIMES[1]}\nafter\n")


def test_the_document_shows_the_committed_record(root: Path) -> None:
    paths = (root / "benchmarks/results").glob("runtimes-*.json")
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    assert {f"runtimes-{kind_of(record)}" for record in records.values()} == records.keys()
    text = (root / "benchmarks/README.md").read_text(encoding="utf-8")
    assert fill(text, runtimes_block([*records.values()]), RUNTIMES) == text, "run: make tables"


def test_kinds_of_cpus_stand_side_by_side(record: dict[str, Any], tmp_path: Path) -> None:
    record["goals"] = goals(record)
    other = json.loads(json.dumps(record))
    other["environment"] |= {"cpu": "b CPU", "cpu_features": ["avx2", "avx512f", "amx_bf16"]}
    other["tasks"][0]["rows"] = [row(RTMLIB, 50.0), row(W32, 25.0, (2.0, 1.9, 2.1))]
    for name, each in (("avx2", record), ("amx", other)):
        (tmp_path / f"runtimes-{name}.json").write_text(json.dumps(each))
    document = tmp_path / "doc.md"
    document.write_text(f"{RUNTIMES[0]}\n{RUNTIMES[1]}")
    assert main([str(tmp_path), str(document)]) == 0
    text = document.read_text()
    for line in (
        "| people | runtime | ms AMX | ratio AMX | outside AMX | ms AVX2 | ratio AVX2 | outside",
        f"| W32 | given | 5 | {W32} | 25.0 | 2.00 (1.90 to 2.10) | - | 90.0 | 1.10 (0.90 to 1.20)",
        f"| W32 | given | 5 | {W32_BF16} | - | - | - | 30.0 | 2.90 (2.80 to 3.20) | - |",
        "| AMX | same onnxruntime as rtmlib |",
        "Not measured: AVX-512, ARM.",
    ):
        assert line in text
    assert text.index("AMX: one run on b CPU") < text.index("AVX2: one run on a CPU")


def test_kinds_of_cpus() -> None:
    flags = ["avx2", "avx512f", "amx_bf16"]
    assert [cpu_kind(flags[:n], "x86_64") for n in (0, 1, 2, 3)] == [
        "other",
        "avx2",
        "avx512",
        "amx",
    ]
    assert cpu_kind(["asimd", "bf16"], "aarch64") == cpu_kind([], "arm64") == "arm"
    old = {"environment": {"cpu_features": [], "platform": "Linux-6.1-aarch64-with-glibc2.36"}}
    assert kind_of(old) == "arm"
