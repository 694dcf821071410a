"""A checkpoint in SimCC's layout to figures by the paper's protocol, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cfpose_bench.cli import main as bench
from cfpose_export.cli import main as export
from cfpose_sdk import PoseEstimator
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.cli import main as train
from cfpose_training.nets.pose_net import Normalise, PoseNet
from tests.export.conftest import TINY, live_network
from tests.training.conftest import write_tiny_data

SIZE_WH = (64, 96)
SPEC = ModelSpec("simcc", COCO_17, SIZE_WH, decode="argmax")
Numbers = np.ndarray


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in SimCC's layout: converted, then exported with the flip test inside."""
    folder = tmp_path_factory.mktemp("official")
    network = live_network(TINY, SPEC, refined=False)
    with torch.no_grad():  # nothing at the edges: SimCC's shift repeats the last bin, and drops one
        network.head.mlp_head_x.bias[:2] = network.head.mlp_head_x.bias[-2:] = -1e4
        for layer in (network.head.mlp_head_x, network.head.mlp_head_y):
            layer.weight *= 0.2  # where each view is certain of its own, two halves are a tie
    state = {key.split(".", 1)[1]: value for key, value in network.state_dict().items()}
    assert {"conv1.weight", "final_layer.bias", "mlp_head_x.weight"} <= state.keys()
    torch.save(state, folder / "pose_hrnet.pth")
    checkpoint, target = folder / "pose.safetensors", folder / "pose.onnx"
    assert train(["convert", str(folder / "pose_hrnet.pth"), "-o", str(checkpoint)]) == 0
    options = ["--flip-test", "--min-confidence", "0", "-o", str(target)]
    assert export(["onnx", "--checkpoint", str(checkpoint), *options]) == 0
    return target


def crops() -> Numbers:
    """Two noisy crops (2, H, W, 3)."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (2, SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8)


def run(graph: Path, values: Numbers) -> tuple[Numbers, Numbers]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    xy, confidence = session.run(["keypoints", "confidence"], {"crops": values})
    return xy, confidence


def softmax(values: Numbers) -> Numbers:
    raised = np.exp(values - values.max(axis=2, keepdims=True))
    return np.asarray(raised / raised.sum(axis=2, keepdims=True))


def simccs_flip_test(network: PoseNet, values: Numbers) -> tuple[Numbers, Numbers]:
    """As SimCC's `validate_simdr` has it, in float64: pixels, and the greater peak of the axes."""
    images = Normalise()(torch.from_numpy(values)).double()
    with torch.no_grad():
        direct, mirrored = (
            [axis.numpy().copy() for axis in network.double()(view)[:2]]
            for view in (images, images.flip(3))
        )
    mirrored[0] = mirrored[0][:, :, ::-1].copy()
    for left, right in COCO_17.flip_pairs:
        for axis in mirrored:
            axis[:, [left, right]] = axis[:, [right, left]]
    mirrored[0][:, :, :-1] = mirrored[0][:, :, 1:].copy()  # SHIFT_HEATMAP: one bin
    means = [(softmax(a) + softmax(b)) / 2 for a, b in zip(direct, mirrored, strict=True)]
    xy = np.stack([mean.argmax(axis=2) / 2 for mean in means], axis=2)
    return xy, np.maximum(*(mean.max(axis=2) for mean in means))


def test_the_flip_test_inside_is_simccs_in_float64(graph: Path) -> None:
    network, spec = load_pose(graph.with_suffix(".safetensors"))
    assert isinstance(network, PoseNet)
    assert (spec.decode, spec.split_ratio, spec.calibration) == ("argmax", 2.0, (1.0, 0.0))
    values = crops()
    xy, confidence = run(graph, values)
    expected, score = simccs_flip_test(network, values)
    np.testing.assert_allclose(xy, expected, atol=1e-4)
    np.testing.assert_allclose(confidence, score, atol=1e-5)


def test_a_mirrored_photo_has_mirrored_joints(graph: Path) -> None:
    """A photo as large as the crop, in a box whose crop is the photo itself."""
    width, height = SIZE_WH
    side = np.array([width, height]) / 1.25 / 2
    middle = np.array(SIZE_WH) / 2
    box = np.concatenate([middle - side, middle + side])[None]
    order = COCO_17.flip_order
    with PoseEstimator(graph, device="cpu") as estimator:
        for photo in crops():
            here = estimator.predict(photo, boxes=box)
            there = estimator.predict(np.ascontiguousarray(photo[:, ::-1]), boxes=box)
            xy = there.xy[:, order].copy()
            xy[..., 0] = width - 1 - xy[..., 0]
            np.testing.assert_allclose(xy, here.xy, atol=1e-4)
            np.testing.assert_allclose(there.confidence[:, order], here.confidence, atol=1e-5)


def test_the_bench_measures_it_as_the_paper_does(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_data(tmp_path, photos=3)
    people = json.loads((tmp_path / "people.json").read_text())["annotations"]
    boxes = [
        {"image_id": p["image_id"], "category_id": 1, "bbox": p["bbox"], "score": score}
        for p in people
        for score in (0.9, 0.5)  # each person twice: OKS-NMS leaves one
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    report = tmp_path / "report.json"
    command = ["--dataset", str(tmp_path / "people.json"), "--preset", "paper", "--in-process"]
    command += ["--model", str(graph), "--boxes", str(tmp_path / "boxes.json")]
    command += ["--repeats", "0", "--rounds", "1", "--threads", "1", "--json", str(report)]
    assert bench(command) == 0
    found = json.loads(report.read_text())
    assert found["protocol"]["flip_test_method"] == "in the graph"
    assert (found["protocol"]["joint_threshold"], found["models"][0]["accuracy"]["poses"]) == (
        0.01, 3,
    )  # fmt: skip
    assert found["protocol"]["box_accuracy"]["boxes.json"]["AP50"] > 0.9
    assert "not for people: these are unchecked" in capsys.readouterr().err


def test_a_graph_without_it_is_refused_by_the_preset(graph: Path, tmp_path: Path) -> None:
    from cfpose_sdk.errors import InputError

    write_tiny_data(tmp_path, photos=1)
    model = onnx.load(str(graph))
    spec = json.loads(model.metadata_props[0].value)
    assert model.metadata_props[0].key == SPEC_KEY
    model.metadata_props[0].value = json.dumps({**spec, "flip_test": False})
    onnx.save(model, str(tmp_path / "plain.onnx"))
    command = ["--dataset", str(tmp_path / "people.json"), "--preset", "paper", "--in-process"]
    command += ["--model", str(tmp_path / "plain.onnx"), "--boxes", "gt"]
    with pytest.raises(InputError, match=r"plain\.onnx does not: write it with cfpose-export onnx"):
        bench(command)
