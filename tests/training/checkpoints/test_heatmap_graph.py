"""Heat-map graphs of others as teachers: closed forms on stand-ins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from cfpose_sdk.errors import ArtifactError, TrainingError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.heatmap_graph import HeatmapGraph
from cfpose_training.config import DistillConfig, LabelConfig
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import load_teacher, open_teacher
from cfpose_training.stages.graph_teacher import (
    GraphTeacher,
    GraphTeacherStage,
    Taught,
    bin_divergence,
    bin_log_probabilities,
    pose_distance,
)
from tests.training.label_cases import adopted

SIZE_WH = (48, 64)
Writer = Callable[..., None]
TINY = HRNetConfig(width=8, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
MIDDLE_PX = 1.5  # of the four pixels that the stand-in sums into a cell, from the cell's own place


def write_heat(path: Path, size_wh: tuple[int, int] = SIZE_WH, stride: int = 4) -> Path:
    """A graph whose every joint has the red of a crop as its heat, stride² pixels a cell."""
    width, height = size_wh
    cell = [stride, stride]
    # red under ImageNet's mean and deviation → 0 to 1
    nodes = [
        helper.make_node("AveragePool", ["image"], ["mean"], kernel_shape=cell, strides=cell),
        helper.make_node("Slice", ["mean", "zero", "one", "one"], ["red"]),
        helper.make_node("Mul", ["red", "std"], ["wide"]),
        helper.make_node("Add", ["wide", "shift"], ["level"]),
        helper.make_node("Tile", ["level", "times"], ["heatmaps"]),
    ]
    numbers = {"std": 0.229, "shift": 0.485}
    tensors = [helper.make_tensor(k, TensorProto.FLOAT, [], [v]) for k, v in numbers.items()]
    integers = {"zero": [0], "one": [1], "times": [1, 17, 1, 1]}
    tensors += [helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in integers.items()]
    ends = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, height, width]),
        helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, None),
    ]
    nodes[1].input[:] = ["mean", "zero", "one", "one"]
    graph = helper.make_graph(nodes, "heat", ends[:1], ends[1:], tensors)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_heat(folder / "plain.onnx")
    return folder


def test_crops_reach_the_graph_as_normalised_rgb(models: Path) -> None:
    crops = np.zeros((2, 64, 48, 3), np.uint8)
    crops[1, 8:12, 20:24, 2] = 255  # red, of BGR
    crops[1, 32:36, 4:8, :2] = 255
    with HeatmapGraph(models / "plain.onnx") as graph:
        heat = graph.heat(crops)
    expected = np.zeros((2, 17, 16, 12))
    expected[1, :, 2, 5] = 1
    np.testing.assert_allclose(heat, expected, atol=1e-6)


@pytest.mark.parametrize("stride", [4, 2])
def test_an_adopted_artifact_gives_its_maps(tmp_path: Path, stride: int) -> None:
    raw = write_heat(tmp_path / "raw.onnx", stride=stride)
    artifact = adopted(raw, tmp_path / "adopted.onnx", "tinypose")
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), np.uint8)
    with HeatmapGraph(artifact, threads=1) as graph:
        assert (graph.size_wh, graph.stride, graph.skeleton) == (SIZE_WH, stride, COCO_17)
        heat = graph.heat(crops)
    red = crops[..., 2].astype(float).reshape(3, 64 // stride, stride, 48 // stride, stride)
    np.testing.assert_allclose(heat[:, 5], red.mean(axis=(2, 4)) / 255, atol=1e-6)
    if stride == 4:
        with HeatmapGraph(raw, threads=1) as graph:
            np.testing.assert_allclose(graph.heat(crops), heat, atol=1e-6)


def test_artifacts_without_maps_cannot_teach(tmp_path: Path, write_movenet: Writer) -> None:
    write_movenet(tmp_path / "m.onnx", np.zeros((17, 2)), np.full(17, 0.9))
    coordinates = adopted(tmp_path / "m.onnx", tmp_path / "movenet.onnx", "movenet")
    raw = write_heat(tmp_path / "raw.onnx")
    udp = adopted(raw, tmp_path / "udp.onnx", "tinypose", geometry="udp")
    for path, reason in (
        (coordinates, "answers coordinates, not heat maps"),
        (udp, "its crops are udp"),
    ):
        with pytest.raises(ArtifactError, match=f"{path.name} cannot teach: .*{reason}"):
            open_teacher(path, spec_of(SIZE_WH), threads=1)


def test_other_graphs_are_refused(models: Path, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 5]) for n in "ab"]
    graph = helper.make_graph([node], "other", [ends[0]], [ends[1]])
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "other.onnx")
    with pytest.raises(ArtifactError, match=r"expected one input \(N, 3, H, W\)"):
        HeatmapGraph(tmp_path / "other.onnx")


def spec_of(size_wh: tuple[int, int]) -> ModelSpec:
    return ModelSpec("student", COCO_17, size_wh)


def test_marginals_keep_a_joints_place_in_another_crop_size() -> None:
    """Pixel p of 36 lies at ((p + 0.5) 48 / 36 - 0.5) / 4 of 12 cells."""
    bins = torch.arange(72) / 2
    for pixel in (10.0, 17.25, 24.0):
        cell = ((pixel + 0.5) * 48 / 36 - 0.5) / 4
        marginal = torch.exp(-((torch.arange(12.0) - cell) ** 2) / (2 * 0.9**2))
        found = bin_log_probabilities(marginal[None, None], bins=72, pixels=36, stride=4).exp()[
            0, 0
        ]
        assert float(found.sum()) == pytest.approx(1, abs=1e-5)
        mean = float((found * bins).sum())
        # without the half pixels it would be 0.125 off
        assert mean == pytest.approx(pixel, abs=0.03)
        deviation = float((found * (bins - mean) ** 2).sum()) ** 0.5
        assert deviation == pytest.approx(0.9 * 4 * 36 / 48, rel=0.03)


def test_the_teacher_answers_of_the_students_crop(models: Path) -> None:
    spec = spec_of((36, 48))
    teacher = open_teacher(models / "plain.onnx", spec, threads=1)
    assert isinstance(teacher, GraphTeacher)
    y, x = np.mgrid[:48, :36]
    red = np.exp(-((x - 20.0) ** 2 + (y - 30.0) ** 2) / (2 * 4.0**2))
    crops = np.zeros((3, 48, 36, 3), np.uint8)
    for index, height in enumerate((255, 102, 25)):
        crops[index, ..., 2] = np.round(height * red)
    taught = teacher.ask(torch.from_numpy(crops))
    for logits, pixel in ((taught.x_logits, 20.0), (taught.y_logits, 30.0)):
        bins = torch.arange(logits.shape[2]) / 2
        mean = (logits[0, 3].exp() * bins).sum()
        # the stand-in's cell i is the mean of pixels about 4 i + 1.5 of its own crop
        assert float(mean) == pytest.approx(pixel - MIDDLE_PX * 36 / 48, abs=0.3)
    peaks = teacher.graph.heat(
        np.stack([cv2.resize(crop, SIZE_WH, interpolation=cv2.INTER_LINEAR) for crop in crops])
    )[:, 0].max(axis=(1, 2))
    expected = np.clip((peaks - 0.2) / 0.5, 0, 1)
    assert expected[0] == 1
    assert 0 < expected[1] < 1
    assert expected[2] == 0
    np.testing.assert_allclose(taught.weight[:, 5].numpy(), expected, atol=1e-6)


def test_terms_are_means_over_the_joints_that_the_teacher_sees() -> None:
    draw = torch.Generator().manual_seed(0)
    own = tuple(torch.randn(2, 3, bins, generator=draw, dtype=torch.float64) for bins in (8, 10))
    theirs = [
        torch.randn(2, 3, bins, generator=draw, dtype=torch.float64).log_softmax(2)
        for bins in (8, 10)
    ]
    weight = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.25, 1.0]], dtype=torch.float64)
    taught = Taught(*theirs, weight)
    kl, l1 = 0.0, 0.0
    for person in range(2):
        for joint in range(3):
            share = float(weight[person, joint]) / float(weight.sum())
            for ours, teachers in zip(own, theirs, strict=True):
                p = teachers[person, joint].exp().numpy()
                q = ours[person, joint].softmax(0).numpy()
                kl += share * float((p * np.log(p / q)).sum())
                bins = np.arange(len(p)) / 2
                sharp = [a**2 / (a**2).sum() for a in (p, q)]  # tau = 2
                l1 += share * abs(float((sharp[0] * bins).sum() - (sharp[1] * bins).sum()))
    assert float(bin_divergence(own, taught)) == pytest.approx(kl, rel=1e-6)
    assert float(pose_distance(own, taught, 2.0, 2.0)) == pytest.approx(l1, rel=1e-6)


def test_a_stage_adds_the_terms_as_gamma_falls(models: Path) -> None:
    spec, config = spec_of((36, 48)), DistillConfig(kd_logit=True, kd_l1=True, logit_weight=0.5)
    teacher = GraphTeacher(HeatmapGraph(models / "plain.onnx", threads=1), spec)
    torch.manual_seed(1)
    network, labels = PoseNet(TINY, spec).eval(), LabelConfig(kind="gaussian")
    stage = GraphTeacherStage(network, spec, labels, config, teacher)
    batch = {
        "crops": torch.randint(0, 256, (2, 48, 36, 3)).byte(),
        "xy": 30 * torch.rand(2, 17, 2),
        "weight": torch.ones(2, 17),
    }
    for epoch, gamma in ((1, 1.0), (3, 0.5), (4, 0.25)):
        stage.set_epoch(epoch, 4)
        found = stage(batch)
        taught = found["kl"] + gamma * (0.5 * found["logit"] + 0.1 * found["l1"])
        torch.testing.assert_close(found["loss"].detach(), taught)
    assert found["loss"].requires_grad
    for wrong in (
        dataclasses.replace(config, kd_fea=True),
        dataclasses.replace(config, kd_cst=True),
    ):
        with pytest.raises(TrainingError, match="a heat-map graph teaches bins and poses"):
            GraphTeacherStage(network, spec, labels, wrong, teacher)


def test_a_teacher_of_other_crops_or_joints_is_refused(models: Path, tmp_path: Path) -> None:
    graph = HeatmapGraph(models / "plain.onnx", threads=1)
    with pytest.raises(TrainingError, match="same proportions"):
        GraphTeacher(graph, spec_of((48, 48)))
    with pytest.raises(TrainingError, match="the student crowd has"):
        GraphTeacher(graph, ModelSpec("crowd", CROWDPOSE_14, SIZE_WH))
    with pytest.raises(ArtifactError):
        load_teacher(tmp_path / "none.safetensors", spec_of(SIZE_WH))


def test_on_its_head_a_crop_has_no_teacher(models: Path) -> None:
    spec, config = spec_of((36, 48)), DistillConfig(kd_logit=True)
    teacher = GraphTeacher(HeatmapGraph(models / "plain.onnx", threads=1), spec)
    torch.manual_seed(1)
    network = PoseNet(TINY, spec).eval()
    stage = GraphTeacherStage(network, spec, LabelConfig(kind="gaussian"), config, teacher)
    batch = {
        "crops": torch.randint(128, 256, (2, 48, 36, 3)).byte(),
        "xy": 30 * torch.rand(2, 17, 2),
        "weight": torch.ones(2, 17),
    }
    alone = stage({key: value[:1] for key, value in batch.items()})
    both = stage({**batch, "upright": torch.tensor([1.0, 0.0])})
    torch.testing.assert_close(both["logit"], alone["logit"])
    assert not torch.isclose(stage(batch)["logit"], alone["logit"])
