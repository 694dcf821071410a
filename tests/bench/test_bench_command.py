"""cfpose-bench with a stand-in estimator that knows the annotations."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfpose_bench import candidates, cli
from cfpose_bench.cli import main
from cfpose_bench.dataset import open_dataset
from cfpose_sdk import commands
from cfpose_sdk.detector import as_detections
from cfpose_sdk.errors import DatasetError, InputError
from cfpose_sdk.image import read_image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14


class KnowsTheAnswer:
    """Gives each box the annotated joints of its person, moved by `noise_px`; finds no crowds."""

    noise_px = 0.0
    delay_ms = 0.0
    repeats = 1  # how often the detector finds each person
    skeleton = COCO_17

    def __init__(self, model: Any, *, detector: Any = None, device: str = "auto") -> None:
        self.folder = Path(__file__).parent if model is None else Path(model).parent
        self.spec = SimpleNamespace(skeleton=self.skeleton, precision="fp32")
        self.info = SimpleNamespace(provider="StandIn", model=__file__)
        self.closed = False

    def predict(self, image: Path, boxes: Any = None) -> Poses:
        height, width = read_image(image).shape[:2]
        dataset = open_dataset(image.parent.parent)
        people = [
            p
            for p in dataset.annotations["annotations"]
            if p["image_id"] == int(image.stem) and p["num_keypoints"]
        ]
        if boxes is None:
            xywh = np.array([p["bbox"] for p in people for _ in range(self.repeats)])
            xyxy = xywh.reshape(-1, 4)
            xyxy[:, 2:] += xyxy[:, :2]
            boxes = np.column_stack([xyxy, np.full(len(xyxy), 0.5)])
        found = as_detections(boxes)
        by_corner = {tuple(np.float32(p["bbox"][:2])): p["keypoints"] for p in people}
        points = [by_corner[tuple(box[:2])] for box in found.boxes]
        joints = np.array(points, dtype=np.float32).reshape(-1, 17, 3)
        return Poses(
            xy=joints[..., :2] + np.float32([self.noise_px, 0]),
            confidence=np.full(joints.shape[:2], 0.5, np.float32),
            boxes=found.boxes,
            box_scores=found.scores,
            skeleton=COCO_17,
            image_size_wh=(width, height),
            speed_ms={"infer": 1.0 + self.delay_ms, "total": 2.0 + self.delay_ms},
        )

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[KnowsTheAnswer]:
    chosen = type("StandIn", (KnowsTheAnswer,), {})
    monkeypatch.setattr(candidates, "PoseEstimator", chosen)
    finder = SimpleNamespace(spec=SimpleNamespace(name="finder-x"))
    monkeypatch.setattr(cli, "PersonFinder", lambda path, device: nullcontext(finder))
    return chosen


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    target = folder.parent / "report.json"
    code = main(["--dataset", str(folder), "--json", str(target), *arguments])
    return code, json.loads(target.read_text())


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
    assert [row["boxes"] for row in found["models"]] == ["gt", "detector"]
    for row in found["models"]:
        assert row["model"] == "default"
        assert (row["precision"], row["provider"]) == ("fp32", "StandIn")
        assert row["bytes"] == Path(__file__).stat().st_size
        assert row["accuracy"]["AP"] == pytest.approx(1.0)
        assert row["accuracy"]["AP_ci95"] == pytest.approx([1.0, 1.0])
        assert {"AP", "AP50", "AP75", "APM", "APL", "AR"} <= row["accuracy"].keys()
        assert row["latency_ms"] == {
            "infer": {"p50": 1.0, "p90": 1.0, "p99": 1.0, "mean": 1.0, "n": 3},
            "total": {"p50": 2.0, "p90": 2.0, "p99": 2.0, "mean": 2.0, "n": 3},
        }
        assert not {"params", "macs", "drift", "unreadable"} & row.keys()  # not measured
    printed = capsys.readouterr().out
    assert "3 photos, 3 people" in printed
    assert printed.count("1.000 to 1.000") == 2


def test_added_noise_and_delay_show_in_the_figures(dataset_folder: Path, stand_in: Any) -> None:
    stand_in.noise_px, stand_in.delay_ms = 5.0, 7.0
    _, found = run(dataset_folder)
    (row,) = found["models"]
    assert row["latency_ms"]["infer"]["p50"] == pytest.approx(8.0)
    sigmas = np.array(COCO_17.oks_sigmas)
    thresholds = np.linspace(0.5, 0.95, 10)
    areas = np.array([100**2, 80**2, 150**2])
    oks = np.exp(-25 / (2 * areas[:, None] * (2 * sigmas) ** 2)).mean(axis=1)
    recalled = (oks[:, None] >= thresholds).mean(axis=0)
    assert row["accuracy"]["AR"] == pytest.approx(recalled.mean(), abs=1e-9)
    assert row["accuracy"]["AR"] < 1


def test_repeated_poses_are_suppressed_with_found_boxes(
    dataset_folder: Path, stand_in: Any
) -> None:
    stand_in.repeats = 3
    _, found = run(dataset_folder, "--boxes", "detector")
    assert found["models"][0]["accuracy"]["poses"] == 3
    assert found["models"][0]["accuracy"]["AP"] == pytest.approx(1.0)


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
    code, found = run(
        dataset_folder, "--limit", "1", "--model", "default", "--model", str(tmp_path / "b.onnx")
    )
    assert code == 0
    assert found["protocol"]["images"] == 1
    assert [row["model"] for row in found["models"]] == ["default", "b.onnx"]


def test_a_model_that_loses_a_box_is_refused(
    dataset_folder: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stand_in.predict
    monkeypatch.setattr(
        stand_in, "predict", lambda self, image, boxes: whole(self, image, boxes)[1:]
    )
    with pytest.raises(DatasetError, match="1 poses for 2 boxes"):
        run(dataset_folder)


def test_a_model_of_another_skeleton_is_refused(dataset_folder: Path, stand_in: Any) -> None:
    stand_in.skeleton = CROWDPOSE_14
    with pytest.raises(DatasetError, match="14 keypoints"):
        run(dataset_folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "crowdpose", "--data-root", "none"], "crowdpose is not in none"),
        (["--dataset", "demo"], "--dataset demo is not there yet"),
        (["--dataset", "x", "--html", "o.html"], "--html is not there yet"),
        (["--dataset", "x", "--max-drift", "1"], "--max-drift is not there yet"),
        (["--dataset", "x", "--max-p99-ms", "1"], "--max-p99-ms is not there yet"),
        (["--dataset", "x", "--baseline", "o.json"], "--baseline is not there yet"),
        (["--dataset", "x", "--min-ap", "nan"], "--min-ap must be a number"),
        (["--dataset", "none.json"], "cannot be read"),
    ],
)
def test_wrong_use_is_a_plain_sentence_and_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["cfpose-bench", *arguments])
    assert commands.bench() == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_unknown_peers_and_absent_files_are_refused(dataset_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no peer is called 'openpose'"):
        main(["--dataset", str(dataset_folder), "--model", "openpose:x.onnx"])
    with pytest.raises(ValueError, match="does not exist"):
        main(["--dataset", str(dataset_folder), "--model", f"movenet:{tmp_path}/lightning.onnx"])
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_help_names_every_promised_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = ["dataset", "data-root", "images", "model", "boxes", "detector", "limit", "json"]
    flags += ["html", "min-ap", "max-drift", "max-p99-ms", "baseline"]
    for flag in flags:
        assert f"--{flag} " in text
