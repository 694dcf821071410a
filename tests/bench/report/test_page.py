"""The HTML report: its figures are the JSON's, it asks nobody for anything, a browser opens it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.accuracy.reliability import calibration, coverage, judge
from cfpose_bench.data.dataset import KeypointDataset, open_dataset
from cfpose_bench.measurement import stage_timings
from cfpose_bench.report.page import page
from cfpose_bench.report.report import Row, report, side_table
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Cells with figures, addresses, ids, and whether tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.tags.add(tag)
        if "data-key" in facts:
            self.values[str(facts["data-key"])] = float(str(facts["data-value"]))
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.ids += [str(v) for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def shown(dataset_folder: Path) -> tuple[dict[str, Any], str]:
    """A report of two models over the small data set, and its page."""
    dataset = open_dataset(dataset_folder)
    rows = [measured(dataset, "first <model>", 2.0), measured(dataset, "second", 9.0)]
    record = report({"dataset": "d & d", "images": 3, "instances": 3, "boxes": "gt"}, rows)
    return record, page(record, rows, dataset, ["AP <0.5"])


def measured(dataset: KeypointDataset, name: str, noise: float) -> Row:
    rng = np.random.default_rng(0)
    photos, results = {}, []
    for image_id, boxes in dataset.ground_truth_boxes().items():
        people = [p for p in dataset.annotations["annotations"]
                  if p["image_id"] == image_id and p["num_keypoints"]]  # fmt: skip
        joints = np.array([p["keypoints"] for p in people]).reshape(-1, 17, 3)
        xy = joints[..., :2] + rng.normal(size=joints[..., :2].shape) * noise
        poses = Poses(
            xy=xy.astype(np.float32),
            confidence=rng.uniform(0, 1, xy.shape[:2]).astype(np.float32),
            boxes=boxes.astype(np.float32),
            box_scores=np.ones(len(boxes), np.float32),
            skeleton=COCO_17,
            image_size_wh=(320, 240),
            covariance=np.tile(np.float32(np.eye(2) * noise**2), (*xy.shape[:2], 1, 1)),
        )
        photos[image_id] = poses
        results += poses.to_coco(image_id)
    speed = [{"infer": 10.0 + i, "total": 12.0 + i} for i in range(3)]
    judged = judge(photos, dataset, COCO_17)
    return Row(
        model=name, boxes="gt", precision="fp32", provider="P", bytes=12, params=34, macs=56,
        accuracy=evaluate(dataset.annotations, results, bootstrap=20),
        latency_ms=stage_timings(speed), drift={"max_px": 0.25, "p99_px": 0.125},
        people_curve=[{"people": n, "p50": 1.0 * n} for n in (1, 5, 20)],
        memory_mb={"peak_rss": 99.5, "gpu": None}, calibration=calibration(judged),
        coverage=coverage(judged),
        details={"total_ms": [s["total"] for s in speed], "worst": judged[:2],
                 "skeleton": COCO_17},
    )  # fmt: skip


def test_the_figures_are_the_reports_and_the_page_stands_alone(
    shown: tuple[dict[str, Any], str],
) -> None:
    record, text = shown
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.values) > 30
    for key, value in reader.values.items():
        number, *keys = key.split(".")
        entry = json.loads(json.dumps(record["models"][int(number)]))
        for name in keys:
            entry = entry[name]
        assert value == entry, key
    assert {
        "0.accuracy.AP",
        "1.latency_ms.total.p99",
        "0.drift.max_px",
        "0.calibration.ece",
        "1.coverage.within_2_sigma",
    } <= reader.values.keys()
    assert not any("gpu" in key for key in reader.values)  # not measured
    stands_alone(reader, text)


def stands_alone(reader: Reader, text: str) -> None:
    """Nothing is fetched or run, ids are unique, what was given is escaped."""
    assert [a for a in reader.addresses if not a.startswith(("data:", "#"))] == []
    assert "script" not in reader.tags
    assert "url(http" not in text
    assert "@import" not in text
    assert len(set(reader.ids)) == len(reader.ids), "ids of several plots collide"
    for address in reader.addresses:
        assert not address.startswith("#") or address[1:] in reader.ids, address
    assert 'name="viewport"' in text
    assert text.count("<svg") == 6  # four plots, and precision and recall of two models
    assert text.count("data:image/jpeg;base64,") == 2
    assert "first &lt;model&gt;" in text
    assert "first <model>" not in text
    assert "AP &lt;0.5" in text
    assert "d &amp; d" in text


def test_the_second_table_has_a_column_each() -> None:
    nothing = {"images": [], "annotations": [], "categories": [{"id": 1}]}
    row = Row("m", "gt", None, None, None, evaluate(nothing, []), {})
    cells = side_table([row]).splitlines()[1].split()
    assert cells == ["m", "gt", *["-"] * 11]


def test_a_browser_opens_it(shown: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    browser = next((b for b in ("chromium", "google-chrome", "chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    record, text = shown
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000",
        "--enable-logging=stderr", "--window-size=390,800", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [browser, *flags, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    assert not re.search(r"net::ERR|Failed to load resource", done.stderr)
    reader = Reader()
    reader.feed(done.stdout)
    for n, model in enumerate(record["models"]):
        assert reader.values[f"{n}.accuracy.AP"] == model["accuracy"]["AP"]
        assert reader.values[f"{n}.latency_ms.total.p50"] == model["latency_ms"]["total"]["p50"]
    assert "svg" in reader.tags
