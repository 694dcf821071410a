"""The finder's second look: where it looks, what it corrects, what it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from cfpose_sdk.boxes import iou_matrix
from cfpose_training.finder.stage import FinderStage
from cfpose_training.nets.finder import (
    REACH,
    WIDTH,
    BoxRefiner,
    FinderNet,
    FinderNetConfig,
    pick_people,
)

STRIDE, GRID = 8, 5
TINY = FinderNetConfig(
    channels=(8, 8, 8, 8, 8), blocks=(1, 1, 1, 1, 1), head_channels=8, box_grid=GRID
)


def ramp(height: int, width: int) -> Tensor:
    """(1, 2, h, w): the x and y of each cell's centre in letterbox pixels."""
    x = torch.arange(width).expand(height, width) * STRIDE + 0.5
    y = torch.arange(height)[:, None].expand(height, width) * STRIDE + 0.5
    return torch.stack([x, y])[None].float()


def test_the_grid_lies_over_the_box_and_a_little_around_it() -> None:
    """A map that holds its own coordinates is read at the points of the grid."""
    refiner = BoxRefiner(2, GRID, STRIDE)
    boxes = torch.tensor([[[40.0, 30.0, 90.0, 130.0], [60.5, 60.5, 100.5, 70.5]]])
    size = boxes[..., 2:] - boxes[..., :2]
    seen = refiner._sample(ramp(24, 20), boxes, size).reshape(2, 2, GRID, GRID)
    steps = REACH * ((np.arange(GRID) + 0.5) / GRID - 0.5)
    for (x1, y1, x2, y2), (x, y) in zip(boxes[0].tolist(), seen.numpy(), strict=True):
        np.testing.assert_allclose(x, np.tile((x1 + x2) / 2 + steps * (x2 - x1), (GRID, 1)), 1e-4)
        np.testing.assert_allclose(y.T, np.tile((y1 + y2) / 2 + steps * (y2 - y1), (GRID, 1)), 1e-4)


def test_it_starts_as_the_identity_and_takes_nobody() -> None:
    refiner = BoxRefiner(8, GRID, STRIDE).eval()
    features = torch.randn(2, 8, 16, 16)
    boxes = torch.tensor([[8.0, 8.0, 60.0, 90.0], [50.0, 5.0, 50.0, 5.0]]).expand(2, 2, 4)
    torch.testing.assert_close(refiner(features, boxes), boxes, rtol=0, atol=0)
    assert refiner(features, boxes[:, :0]).shape == (2, 0, 4)


def test_corrections_are_shares_of_the_box() -> None:
    refiner = BoxRefiner(8, GRID, STRIDE).eval()
    with torch.no_grad():
        refiner.sides.bias.copy_(torch.tensor([-0.1, 0.0, 0.2, 0.5]))
    boxes = torch.tensor([[[10.0, 20.0, 50.0, 120.0]]])
    expected = torch.tensor([[[6.0, 20.0, 58.0, 170.0]]])
    torch.testing.assert_close(refiner(torch.zeros(1, 8, 16, 16), boxes), expected)


def test_it_learns_to_see_where_a_person_ends() -> None:
    """Bright rectangles on a dark map, proposals off by up to 0.3 of their sides."""
    torch.manual_seed(0)
    refiner = BoxRefiner(1, 7, STRIDE)
    optimiser = torch.optim.Adam(refiner.parameters(), lr=2e-3)
    cells = ramp(32, 32)[0]

    def case(count: int) -> tuple[Tensor, Tensor, Tensor]:
        low = torch.rand(count, 2) * 60 + 40
        truth = torch.cat([low, low + torch.rand(count, 2) * 70 + 40], dim=1)
        inside = (cells[None] > truth[:, :2, None, None]) & (cells[None] < truth[:, 2:, None, None])
        sides = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
        off = truth + (torch.rand(count, 4) * 0.4 - 0.2) * sides
        return inside.all(dim=1, keepdim=True).float(), off[:, None], truth

    for _ in range(250):
        features, proposals, truth = case(32)
        loss = (refiner(features, proposals)[:, 0] - truth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    features, proposals, truth = case(200)
    with torch.no_grad():
        corrected = refiner.eval()(features, proposals)[:, 0]
    before, after = (
        np.mean(np.diag(iou_matrix(boxes.numpy(), truth.numpy())))
        for boxes in (proposals[:, 0], corrected)
    )
    assert before < 0.75
    assert after > before + 0.08


def test_the_stage_teaches_it_without_moving_the_proposals() -> None:
    """Gradients of the second look reach the features and not the sides of the first."""
    torch.manual_seed(0)
    network = FinderNet(TINY)
    stage = FinderStage(network).train()
    heat, box = torch.zeros(2, 16, 16), torch.zeros(2, 4, 16, 16)
    heat[0, 5, 6] = 1
    box[0, :, 5, 6] = torch.tensor([20.0, 10.0, 80.0, 75.0])
    batch = {
        "image": torch.randint(0, 255, (2, 128, 128, 3), dtype=torch.uint8),
        "heat": heat, "heat_weight": torch.ones_like(heat),
        "box": box, "box_weight": heat.clone(),
    }  # fmt: skip
    output = network(stage.normalise(batch["image"]))
    assert network.box_refiner is not None
    second = stage._second_look(network.box_refiner, output, batch)
    assert 0 < second.item() < 2
    with torch.no_grad():
        network.box_refiner.sides.weight.normal_(std=0.1)  # zeros stop the gradient behind them
    stage._second_look(network.box_refiner, output, batch).backward()
    assert network.box[-1].weight.grad is None
    assert network.laterals[0][0].weight.grad.abs().sum() > 0
    assert {"heat", "box", "second"} <= stage(batch).keys()
    nobody = {**batch, "heat": torch.zeros_like(heat)}
    assert stage(nobody)["second"].item() == 0


def test_the_finder_corrects_what_it_picks() -> None:
    torch.manual_seed(0)
    network = FinderNet(TINY).eval()
    assert network.box_refiner is not None
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        network.box_refiner.sides.bias.fill_(0.25)
        boxes, scores = network.find(images, top_k=4)
        first, first_scores = pick_people(network(images), top_k=4)
    size = (first[..., 2:] - first[..., :2]).repeat(1, 1, 2)
    torch.testing.assert_close(boxes, first + 0.25 * size)
    torch.testing.assert_close(scores, first_scores)
    plain = FinderNet(dataclasses.replace(TINY, box_grid=0))
    assert not [key for key in plain.state_dict() if key.startswith("box_refiner")]
    assert pytest.approx(WIDTH * GRID**2 + 1) == network.box_refiner.hidden.in_features
