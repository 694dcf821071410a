"""`movenet:F.onnx`: its crop rule on a stand-in network, its published AP on real photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.data.dataset import open_dataset
from cfpose_bench.models.open import open_model, parse_name
from cfpose_bench.run.predictions import predict_dataset
from cfpose_sdk.backends.foreign import CACHE_VARIABLE
from cfpose_sdk.skeleton import COCO_17


def stand_in_network(path: Path, side: int) -> Path:
    """Every joint at y = 0.25, x = 0.75 of the crop; its score is the mean of the first channel."""
    nodes = [
        helper.make_node("Cast", ["input"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "plane"], ["means"], keepdims=1),
        helper.make_node("Slice", ["means", "zero", "one", "last"], ["first"]),
        helper.make_node("Div", ["first", "full"], ["score"]),
        helper.make_node("Concat", ["yx", "score"], ["joint"], axis=3),
        helper.make_node("Expand", ["joint", "shape"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info("input", TensorProto.INT32, [1, side, side, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 17, 3])],
        [
            helper.make_tensor("plane", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("last", TensorProto.INT64, [1], [3]),
            helper.make_tensor("full", TensorProto.FLOAT, [1], [255.0]),
            helper.make_tensor("yx", TensorProto.FLOAT, [1, 1, 1, 2], [0.25, 0.75]),
            helper.make_tensor("shape", TensorProto.INT64, [4], [1, 1, 17, 3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("variant", "side", "scale"), [("lightning", 192, 1.25), ("thunder", 256, 1.1)]
)
def test_crop_is_a_square_around_the_box(
    tmp_path: Path, variant: str, side: int, scale: float
) -> None:
    path = stand_in_network(tmp_path / f"movenet_{variant}.onnx", side)
    opened = open_model(parse_name(f"movenet:{path}"), device="cpu", threads=1)
    assert (opened.facts.name, opened.facts.is_peer) == (f"movenet_{variant}", True)
    image = np.zeros((400, 400, 3), np.uint8)
    image[..., 2] = 204  # red of BGR: the network must see it first
    boxes = [[100, 120, 140, 220], [200, 200, 280, 240]]
    poses = opened.model.predict(image, boxes=boxes)
    opened.close()
    for xy, (x1, y1, x2, y2) in zip(poses.xy, boxes, strict=True):
        region = scale * max(x2 - x1, y2 - y1)
        centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
        expected = centre + np.array([0.25, -0.25]) * region
        np.testing.assert_allclose(xy, np.tile(expected, (17, 1)), atol=1e-3)
    np.testing.assert_allclose(poses.confidence, 0.8, atol=1e-3)
    assert poses.to_coco(7)[0]["score"] == pytest.approx(0.8, abs=1e-3)
    assert set(poses.speed_ms) == {"read", "detect", "crop", "infer", "post", "total"}
    parts = [poses.speed_ms[s] for s in poses.speed_ms if s != "total"]
    assert poses.speed_ms["total"] == pytest.approx(sum(parts))


def test_lightning_reaches_its_known_ap(shared_dir: Path) -> None:
    """AP 0.415 with ground-truth boxes on the 340 photos, as measured independently."""
    dataset = open_dataset("coco-val", data_root=shared_dir / "data")
    path = shared_dir / "data/labellers/movenet_lightning.onnx"
    model = open_model(parse_name(f"movenet:{path}"), device="cpu").model
    boxes = dataset.ground_truth_boxes()
    done = predict_dataset(model, dataset, COCO_17, boxes=boxes, oks_threshold=None, warmup=0)
    found = evaluate(dataset.annotations, done.results, image_ids=dataset.image_ids)
    known = {"AP": 0.415, "AP50": 0.669, "AP75": 0.451, "APM": 0.359, "APL": 0.487, "AR": 0.465}
    for name, value in known.items():
        assert getattr(found, name) == pytest.approx(value, abs=0.002), name
