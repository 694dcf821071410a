"""The marginal head: its formula, its interpolation, what a heat map means, and SimCC's start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.pose_net import FIRST_CELL_PX, MarginalHead, SimCCHead, interpolation

SIZE_WH, BINS_XY = (48, 64), (96, 128)
CELLS_HW = 16, 12


@pytest.fixture
def head() -> MarginalHead:
    """Two joints over 5 channels; heat and places of its own, gain, power and prior off 1 and 0."""
    torch.manual_seed(0)
    head = MarginalHead(5, 2, SIZE_WH, BINS_XY).eval()
    head.gain.data.fill_(1.3)
    head.power.data.fill_(0.7)
    head.prior.data.normal_()
    return head


def test_the_bins_are_the_sums_of_one_plane(head: MarginalHead) -> None:
    """The closed form in loops over cells, from the heat and the regression alone."""
    quarter = torch.randn(3, 5, *CELLS_HW, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x_logits, y_logits = head(quarter)
        heat = head.heat(quarter).double().numpy()
        moves = head.regression(torch.nn.functional.pad(quarter, (1, 1, 1, 1))).double().numpy()
    middle_y, middle_x = 7, 5  # of 16 rows and 12 columns: the last before the half
    prior = head.prior.detach().double().numpy()
    for person in range(3):
        for joint in range(2):
            near = moves[person, 2 * joint : 2 * joint + 2, 6:9, 4:7].mean(axis=(1, 2))
            place = np.array([middle_y, middle_x]) + near
            mass = np.zeros(CELLS_HW)
            for row in range(CELLS_HW[0]):
                for column in range(CELLS_HW[1]):
                    distance = np.hypot(row - place[0], column - place[1])
                    value = 1.3 * heat[person, joint, row, column] + prior[joint, row, column]
                    mass[row, column] = np.exp(value) / (distance + 1.8) ** 0.7
            for logits, along, bins in ((x_logits, 0, 96), (y_logits, 1, 128)):
                cells = np.log(mass.sum(axis=along))
                pixels = np.arange(bins) / 2
                expected = np.interp((pixels - 1.75) / 4, np.arange(len(cells)), cells)
                found = logits[person, joint].numpy()
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_interpolation_reads_a_slope_exactly() -> None:
    weights = interpolation(12, 96, 48)
    cells = FIRST_CELL_PX + 4 * torch.arange(12.0)  # the pixel that each cell stands on
    pixels = torch.arange(96) / 2
    inside = (pixels >= cells[0]) & (pixels <= cells[-1])
    torch.testing.assert_close((weights @ cells)[inside], pixels[inside])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(96))
    assert torch.equal(weights[0], torch.eye(12)[0])  # beyond the ends: theirs


def test_a_peak_of_heat_is_a_position_from_the_start() -> None:
    torch.manual_seed(0)
    head = MarginalHead(5, 1, SIZE_WH, BINS_XY).eval()
    heat = torch.full((1, 1, *CELLS_HW), -15.0)
    heat[0, 0, 9, 4] = 5.0
    head.heat.forward = lambda _: heat  # type: ignore[method-assign]
    with torch.no_grad():
        xy, _ = decode_simcc(*head(torch.zeros(1, 5, *CELLS_HW)), 2.0, "subbin")
    np.testing.assert_allclose(xy[0, 0].numpy(), [4 * 4 + 1.75, 4 * 9 + 1.75], atol=0.3)


def test_of_two_equal_peaks_the_nearer_to_the_expected_place_wins() -> None:
    torch.manual_seed(0)
    head = MarginalHead(5, 1, SIZE_WH, BINS_XY).eval()
    heat = torch.full((1, 1, *CELLS_HW), -15.0)
    heat[0, 0, 2, 1] = heat[0, 0, 13, 10] = 5.0
    head.heat.forward = lambda _: heat  # type: ignore[method-assign]
    for place, pixel in (((3.0, 2.0), (4 + 1.75, 8 + 1.75)), ((12.0, 9.0), (41.75, 53.75))):
        y, x = (torch.tensor([[value]]) for value in place)
        head.expected = lambda _, y=y, x=x: (y, x)  # type: ignore[method-assign, misc]
        with torch.no_grad():
            xy, _ = decode_simcc(*head(torch.zeros(1, 5, *CELLS_HW)), 2.0, "subbin")
        np.testing.assert_allclose(xy[0, 0].numpy(), pixel, atol=0.5)


def test_logits_stay_in_full_precision_under_autocast(head: MarginalHead) -> None:
    quarter = torch.randn(2, 5, *CELLS_HW).bfloat16()
    with torch.no_grad():
        expected = head(quarter.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = head(quarter)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_logits_are_scaled_for_good(head: MarginalHead) -> None:
    quarter = torch.randn(2, 5, *CELLS_HW)
    with torch.no_grad():
        before = head(quarter)
        head.scale_logits(3.0)
        for ours, theirs in zip(head(quarter), before, strict=True):
            torch.testing.assert_close(ours, 3 * theirs)


def test_simcc_starts_without_denormal_weights() -> None:
    """exp(-d²/2) of far cells is denormal, and an exported graph then takes twice as long."""
    spec = ModelSpec("s", COCO_17, (144, 192))
    head = SimCCHead(4, 17, spec.size_wh, spec.bins_xy)
    head.init_as_marginals()
    for layer in (head.mlp_head_x, head.mlp_head_y):
        sizes = layer.weight.abs()
        assert sizes[sizes > 0].min() >= 1e-12
        assert sizes.max() > 0.9
