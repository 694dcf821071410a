"""cfpose-bench with a stand-in estimator that knows the annotations."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfpose_bench.models import open
from cfpose_sdk import commands
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17
from tests.bench.known_answer import run


def test_report_has_the_stable_keys(
    dataset_folder: Path, stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(dataset_folder, "--boxes", "gt", "--boxes", "detector")
    assert code == 0
    assert found["schema"] == 1
    assert {"cfpose", "python", "cpu", "cpu_count", "packages"} <= found["environment"].keys()
    protocol = found["protocol"]
    assert (protocol["dataset"], protocol["images"], protocol["instances"]) == ("annotations", 3, 3)
    assert (protocol["boxes"], protocol["detector"]) == ("gt+detector", "finder-x")
    assert protocol["oks_nms"] == {"gt": None, "detector": 0.9}
    assert protocol["flip_test"] is False
    assert protocol["detector_threshold"] == 0.25
    assert protocol["box_accuracy"]["detector"]["AP50"] == pytest.approx(1.0)
    assert {"threads", "rounds", "warmup", "sync", "device", "isolation"} <= protocol.keys()
    assert [row["boxes"] for row in found["models"]] == ["gt", "detector"]
    for row in found["models"]:
        assert row["model"] == "default"
        assert (row["precision"], row["provider"]) == ("fp32", "StandIn")
        assert row["bytes"] == BUNDLED_MODEL.stat().st_size
        assert row["sha256"] == hashlib.sha256(BUNDLED_MODEL.read_bytes()).hexdigest()
        assert row["accuracy"]["AP"] == pytest.approx(1.0)
        assert row["accuracy"]["AP_ci95"] == pytest.approx([1.0, 1.0])
        assert {"AP", "AP50", "AP75", "APM", "APL", "AR"} <= row["accuracy"].keys()
        assert row["latency_ms"] == {
            "infer": {"p50": 1.0, "p90": 1.0, "p99": 1.0, "mean": 1.0, "n": 3},
            "total": {"p50": 2.0, "p90": 2.0, "p99": 2.0, "mean": 2.0, "n": 3},
        }
        assert row["params"] > 0
        assert row["macs"] > 0
        assert row["memory_mb"]["peak_rss"] > 0
        assert row["calibration"]["bins"][0] == {"confidence": 0.5, "good": 1.0, "joints": 51}
        covered = {"within_1_sigma": 1.0, "within_2_sigma": 1.0, "joints": 51, "left_out": 0}
        assert row["coverage"] == covered
        missing = {"drift", "ratio", "people_curve", "throughput", "unreadable", "reference"}
        assert not missing & row.keys()  # not measured
    printed = capsys.readouterr().out
    assert "3 photos, 3 people" in printed
    assert printed.count("1.000 to 1.000") == 2


def test_added_noise_and_delay_show_in_the_figures(dataset_folder: Path, stand_in: Any) -> None:
    stand_in.noise_px, stand_in.delay_ms = 5.0, 50.0
    _, found = run(dataset_folder)
    (row,) = found["models"]
    assert row["latency_ms"]["infer"]["p50"] == pytest.approx(51.0)
    assert row["latency_ms"]["total"]["p99"] == pytest.approx(52.0)
    sigmas = np.array(COCO_17.oks_sigmas)
    thresholds = np.linspace(0.5, 0.95, 10)
    areas = np.array([100**2, 80**2, 150**2])
    oks = np.exp(-25 / (2 * areas[:, None] * (2 * sigmas) ** 2)).mean(axis=1)
    recalled = (oks[:, None] >= thresholds).mean(axis=0)
    assert row["accuracy"]["AR"] == pytest.approx(recalled.mean(), abs=1e-9)
    assert row["accuracy"]["AR"] < 1
    # 5 pixels where sigma is 4
    assert (row["coverage"]["within_1_sigma"], row["coverage"]["within_2_sigma"]) == (0.0, 1.0)


def test_repeated_poses_are_suppressed_with_found_boxes(
    dataset_folder: Path, stand_in: Any
) -> None:
    stand_in.repeats = 3
    _, found = run(dataset_folder, "--boxes", "detector")
    assert found["models"][0]["accuracy"]["poses"] == 3
    assert found["models"][0]["accuracy"]["AP"] == pytest.approx(1.0)
    assert found["protocol"]["oks_nms"] == {"detector": 0.9}
    _, found = run(dataset_folder, "--boxes", "detector", "--no-oks-nms")
    assert found["models"][0]["accuracy"]["poses"] == 9
    assert found["models"][0]["accuracy"]["AP"] < 1
    assert found["protocol"]["oks_nms"] == {"detector": None}
    with pytest.raises(InputError, match="leave --no-oks-nms out"):
        run(dataset_folder, "--no-oks-nms", "--preset", "paper", "--boxes", "gt")


def test_boxes_from_a_file(dataset_folder: Path, stand_in: Any, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([{"image_id": 2, "bbox": [40, 40, 150, 150], "score": 0.9}]))
    _, found = run(dataset_folder, "--boxes", str(boxes))
    (row,) = found["models"]
    assert row["boxes"] == found["protocol"]["boxes"] == "boxes.json"
    assert row["accuracy"]["poses"] == 1
    assert row["accuracy"]["AP"] == pytest.approx(34 / 101)  # recall 1/3: points 0.00 … 0.33


def test_min_ap_decides_the_exit_code(
    dataset_folder: Path, stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset_folder, "--min-ap", "0.999")[0] == 0
    stand_in.noise_px = 30.0
    assert run(dataset_folder, "--min-ap", "0.999")[0] == 1
    assert "is below 0.999" in capsys.readouterr().out


def test_damaged_and_missing_photos_are_counted(
    dataset_folder: Path, stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset_folder / "images/000000000001.png").unlink()
    (dataset_folder / "images/000000000002.png").write_bytes(b"no photo")
    _, found = run(dataset_folder)
    assert found["protocol"]["missing_images"] == 1
    assert (found["protocol"]["images"], found["protocol"]["instances"]) == (2, 1)
    assert found["models"][0]["unreadable"] == ["000000000002.png"]
    assert found["models"][0]["accuracy"]["AP"] == 0.0
    printed = capsys.readouterr()
    assert "000000000002.png cannot be read" in printed.err
    assert "1 annotated photos are missing" in printed.out


def test_limit_and_several_models(dataset_folder: Path, stand_in: Any, tmp_path: Path) -> None:
    (tmp_path / "b.onnx").touch()
    code, found = run(
        dataset_folder, "--limit", "1", "--model", "default", "--model", str(tmp_path / "b.onnx")
    )
    assert code == 0
    assert found["protocol"]["images"] == 1
    assert [row["model"] for row in found["models"]] == ["default", "b.onnx"]


def test_noise_moves_drift_by_what_was_added(
    dataset_folder: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "noisy.onnx").touch()
    plain = stand_in.predict

    def noisy(self: Any, image: Path, boxes: Any = None) -> Poses:
        self.noise_px = 3.0 if self.is_noisy else 0.0
        self.delay_ms = 50.0 if self.is_noisy else 0.0
        return plain(self, image, boxes)

    start = stand_in.__init__

    def remember(self: Any, model: Any, **options: Any) -> None:
        start(self, model, **options)
        self.is_noisy = model is not None

    monkeypatch.setattr(stand_in, "predict", noisy)
    monkeypatch.setattr(stand_in, "__init__", remember)
    arguments = ["--model", str(tmp_path / "photos" / "noisy.onnx"), "--reference", "default"]
    code, found = run(dataset_folder, *arguments, "--max-drift", "3.01")
    assert code == 0
    row, reference = found["models"]
    assert (reference["model"], reference["reference"]) == ("default", True)
    assert "drift" not in reference
    for name in ("max_px", "p99_px", "mean_px", "sure_max_px"):
        assert row["drift"][name] == pytest.approx(3.0, abs=1e-5)
    assert row["drift"]["delta_ap"] == row["accuracy"]["AP"] - reference["accuracy"]["AP"] < 0
    assert row["ratio"]["infer"] == pytest.approx(51.0)  # 51 ms against 1 ms
    assert row["ratio"]["total"] == pytest.approx(26.0)
    assert row["ratio"]["total_by_round"] == pytest.approx([26.0, 26.0])
    assert run(dataset_folder, *arguments, "--max-drift", "2.9")[0] == 1


def test_an_interrupted_run_goes_on_to_the_same_figures(
    dataset_folder: Path,
    stand_in: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, whole = run(dataset_folder)
    keep = ["--resume", "--work", str(tmp_path / "work")]
    plain, asked = stand_in.predict, []

    def interrupted(self: Any, image: Path, boxes: Any = None) -> Poses:
        asked.append(image.name)
        if image.name.startswith("000000000003"):
            raise KeyboardInterrupt
        return plain(self, image, boxes)

    monkeypatch.setattr(stand_in, "predict", interrupted)
    monkeypatch.setattr(
        sys, "argv", ["cfpose-bench", "--dataset", str(dataset_folder), "--in-process", *keep,
                      "--repeats", "0", "--rounds", "2"],
    )  # fmt: skip
    assert commands.bench() == 130
    assert "the same command goes on" in capsys.readouterr().err
    (kept,) = (tmp_path / "work").iterdir()
    kept.write_text(kept.read_text() + '{"photo": 3, "tu')  # the power failed while writing
    asked.clear()
    monkeypatch.setattr(stand_in, "predict", plain)
    seen: list[str] = []
    monkeypatch.setattr(
        stand_in,
        "predict",
        lambda self, image, boxes=None: (seen.append(image.name), plain(self, image, boxes))[1],
    )
    _, resumed = run(dataset_folder, *keep)
    assert set(seen) == {"000000000003.png"}
    assert resumed["protocol"]["taken_up"] == 2
    assert "2 predictions are of an earlier run" in capsys.readouterr().out
    for record in (whole, resumed):
        for row in record["models"]:
            del row["memory_mb"]
    assert resumed["models"] == whole["models"]
    seen.clear()
    run(dataset_folder, *keep)
    assert seen == []  # all was there
    stand_in.noise_px = 1.0  # other boxes are another run
    run(dataset_folder, *keep, "--boxes", "detector")
    assert seen


def test_any_detector_that_the_sdk_opens(
    dataset_folder: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a threshold of its own gives none to the report."""
    other = SimpleNamespace(name="yolo-x", close=lambda: None)
    monkeypatch.setattr(open, "open_detector", lambda path, **options: other)
    _, found = run(dataset_folder, "--boxes", "detector", "--detector", "yolo-x.onnx")
    assert found["protocol"]["detector"] == "yolo-x"
    assert "detector_threshold" not in found["protocol"]


def test_unannotated_photos_are_counted(
    dataset_folder: Path, stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dataset_folder / "images"
    (folder / "extra.png").write_bytes((folder / "000000000001.png").read_bytes())
    _, found = run(dataset_folder)
    assert found["protocol"]["unannotated_images"] == 1
    assert "1 photos have no annotation" in capsys.readouterr().out


def test_boxes_of_unknown_photos_are_counted(
    dataset_folder: Path, stand_in: Any, tmp_path: Path
) -> None:
    boxes = tmp_path / "boxes.json"
    rows = [{"image_id": 2, "bbox": [40, 40, 150, 150], "score": 0.9},
            {"image_id": 99, "bbox": [1, 1, 9, 9], "score": 0.9}]  # fmt: skip
    boxes.write_text(json.dumps(rows))
    _, found = run(dataset_folder, "--boxes", str(boxes))
    facts = found["protocol"]["box_accuracy"]["boxes.json"]
    assert (facts["photos_without_boxes"], facts["photos_not_in_dataset"]) == (2, 1)
    assert facts["recall50"] == pytest.approx(1 / 3)


def test_people_curve_throughput_and_csv(
    dataset_folder: Path, stand_in: Any, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    _, found = run(dataset_folder, "--repeats", "2", "--csv", str(table))
    (row,) = found["models"]
    assert [p["people"] for p in row["people_curve"]] == [1, 5, 20]
    assert [p["batch"] for p in row["throughput"]] == [1, 8, 32]
    assert row["people_curve"][0]["p50"] == pytest.approx(2.0)
    assert row["throughput"][1]["people_per_s"] == pytest.approx(8000.0)  # 8 people in 1 ms
    head, line = (text.split(",") for text in table.read_text().splitlines())
    cells = dict(zip(head, line, strict=True))
    assert float(cells["accuracy.AP"]) == row["accuracy"]["AP"]
    assert float(cells["latency_ms.infer.p99"]) == row["latency_ms"]["infer"]["p99"]
    assert float(cells["people_curve.20.p50"]) == row["people_curve"][2]["p50"]
