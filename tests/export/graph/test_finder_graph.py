"""A finder's graph: which sides it leaves open, and what it gives for cut letterboxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cfpose_export.graph.finder import build_finder
from cfpose_export.graph.rules import whole_letterboxes
from cfpose_export.proof.compare import JointDifferences
from cfpose_export.proof.finder import judge_finder, measure_finder
from cfpose_export.proof.runtimes import nearest_gaps
from cfpose_sdk.backends import open_backend
from cfpose_sdk.errors import ExportError
from cfpose_sdk.spec import FinderSpec
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.nets.fused import FusedFinder

Body = tuple[str, tuple[int, int]]


def finder(body: str, size_wh: tuple[int, int]) -> FusedFinder:
    torch.manual_seed(3)
    widths = (8, 8, 8, 8, 8)
    config = FinderNetConfig(
        body=body,  # type: ignore[arg-type]
        channels=widths, blocks=(1, 1, 1, 1, 1), head_channels=8, box_grid=3,
    )  # fmt: skip
    network = FinderNet(config)
    assert network.box_refiner is not None
    torch.nn.init.normal_(network.box_refiner.sides.weight, std=0.1)
    for module in network.modules():  # norms that fit, so that no two candidates are alike
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network(torch.randn(2, 3, size_wh[1], size_wh[0]))
    torch.nn.init.normal_(network.heat[-1].weight)  # type: ignore[arg-type]
    return FusedFinder(network, FinderSpec("tiny", size_wh, threshold=0.0, nms_iou=0.5))


def sides(model: onnx.ModelProto) -> list[str | int]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


@pytest.mark.parametrize("body", [("plain", (192, 128)), ("efficientnet-lite0", (160, 224))])
def test_cut_letterboxes_give_what_torch_gives(body: Body, tmp_path: Path) -> None:
    fused = finder(*body)
    width, height = fused.spec.size_wh
    model = build_finder(fused)
    assert sides(model) == ["N", "H", "W", 3]
    onnx.save_model(model, tmp_path / "finder.onnx")
    generator = torch.Generator().manual_seed(1)
    with open_backend(tmp_path / "finder.onnx", device="cpu") as backend:
        for count, h, w in ((1, height, width), (2, 64, width), (1, height, 64)):
            pixels = torch.randint(0, 256, (count, h, w, 3), generator=generator).byte()
            with torch.inference_mode():
                boxes, scores = fused(pixels)
            got = backend.run({"images": pixels.numpy()})
            assert got["boxes"].shape == (count, 100, 4)
            far, gap = nearest_gaps(
                boxes[0].numpy(), scores[0].numpy(), got["boxes"][0], got["scores"][0]
            )
            best = JointDifferences(1, far, gap)
            assert best.max_px <= 0.01
            assert best.confidence_max <= 1e-4
        none = backend.run({"images": np.zeros((0, height, width, 3), np.uint8)})
    assert none["boxes"].shape == (0, 100, 4)


def test_a_small_letterbox_stays_whole() -> None:
    model = build_finder(finder("plain", (192, 64)))
    assert sides(model) == ["N", 64, 192, 3]
    assert whole_letterboxes(model) is model


def test_an_engine_is_built_for_whole_letterboxes() -> None:
    model = build_finder(finder("plain", (192, 128)))
    whole = whole_letterboxes(model)
    onnx.checker.check_model(whole, full_check=True)
    assert sides(whole) == ["N", 128, 192, 3]
    assert sides(model) == ["N", "H", "W", 3]


def test_the_proof_looks_at_cut_letterboxes_too() -> None:
    """A graph whose second look takes the whole letterbox's height for every one's."""
    fused = finder("plain", (128, 192))  # in which the demo photos are half as high
    model = build_finder(fused)
    judge_finder(measure_finder(fused, model, None))
    (height,) = (
        node
        for node in model.graph.node
        if node.op_type == "Shape"
        and node.input[0] == "images"
        and {a.name: a.i for a in node.attribute}["start"] == 1
    )
    constant = onnx.helper.make_tensor("height", onnx.TensorProto.INT64, [1], [192])
    frozen = onnx.helper.make_node("Constant", [], list(height.output), value=constant)
    model.graph.node[list(model.graph.node).index(height)].CopyFrom(frozen)
    with pytest.raises(ExportError, match="boxes drift"):
        judge_finder(measure_finder(fused, model, None))
