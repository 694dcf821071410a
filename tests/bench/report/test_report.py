"""What a report says about the machine, and what it does when it cannot be written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import cfpose_sdk
from cfpose_bench.accuracy.coco import Accuracy
from cfpose_bench.measurement import Timing
from cfpose_bench.report.report import Row, environment, report, table, write_json
from cfpose_sdk.errors import InputError

FIGURES = Accuracy(
    AP=0.5, AP50=0.8, AP75=0.4, APM=float("nan"), APL=0.6, AR=0.55, AR50=0.85, AR75=0.45,
    ARM=float("nan"), ARL=0.65, images=3, instances=4, ignored=1, poses=5,
)  # fmt: skip
ROW = Row(
    model="m",
    boxes="gt",
    precision=None,
    provider="P",
    bytes=None,
    accuracy=FIGURES,
    latency_ms={"infer": Timing(1.0, 2.0, 3.0, 1.5, 3)},
)


def test_environment_names_versions_of_this_process() -> None:
    found = environment()
    assert found["cfpose"] == cfpose_sdk.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert 1 <= found["cpu_count"] <= (os.cpu_count() or 1)
    assert None not in found.values()


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_json(report({"dataset": "d"}, [ROW]), path)
    found = json.loads(path.read_text())
    assert list(found) == ["schema", "environment", "protocol", "models"]
    (row,) = found["models"]
    assert set(row) == {"model", "boxes", "provider", "accuracy", "latency_ms"}
    assert row["accuracy"]["AP"] == 0.5
    assert not {"APM", "ARM", "AP_ci95", "per_image"} & set(row["accuracy"])
    assert row["latency_ms"]["infer"]["p99"] == 3.0
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    with pytest.raises(InputError, match="cannot be written"):
        write_json({}, path / "below-a-file.json")


def test_table_shows_the_figures_in_columns() -> None:
    lines = table([ROW]).splitlines()
    assert lines[0].split()[:3] == ["model", "boxes", "AP"]
    cells = lines[1].split()
    assert cells[:8] == ["m", "gt", "0.500", "-", "0.800", "0.400", "-", "0.600"]
    assert cells[-3:] == ["1.0", "-", "-"]  # infer, and no post or total
