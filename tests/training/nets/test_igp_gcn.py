"""The refiner: blocks against the original's numbers, sizes, joint lookup, and its switches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from cfpose_training.nets.hrnet import Taps
from cfpose_training.nets.igp_gcn import (
    IGPGCN,
    GraphConv,
    IGPGCNConfig,
    JointLookup,
    ResGraphConvAttention,
    SemGraphConv,
    denormalise_xy,
    graph_mask,
    normalise_xy,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "igp_gcn_blocks.npz"
W32 = IGPGCNConfig(size_wh=(192, 256), tap_channels=(128, 64, 32), integral_head=True)
W32_WITHOUT_HEAD = dataclasses.replace(W32, integral_head=False)
SMALL = IGPGCNConfig(
    size_wh=(64, 96), tap_channels=(16, 8, 4), node_channels=8, joint_channels=(8, 4, 4)
)
OURS = {
    "gconv1.gconv": "conv1.conv",
    "gconv1.bn": "conv1.norm",
    "gconv2.gconv": "conv2",
    "gconv": "conv",
    "bn": "norm",
    "attention.squeeze.0": "attention.squeeze",
    "attention.squeeze.2": "attention.gate",
}
LEAVES = {"W": "weight", "e": "edge_logits"}


def load_golden(module: nn.Module, golden: Any, prefix: str) -> nn.Module:
    state = {}
    for key in golden.files:
        if key.startswith(f"param.{prefix}."):
            scope, _, leaf = key.removeprefix(f"param.{prefix}.").rpartition(".")
            name = f"{OURS.get(scope, scope)}.{LEAVES.get(leaf, leaf)}".removeprefix(".")
            state[name] = torch.from_numpy(golden[key])
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = value
    module.double().load_state_dict(state, strict=True)
    return module.eval()


def test_blocks_match_the_original() -> None:
    golden = np.load(GOLDEN)
    mask = graph_mask(12, [(int(a), int(b)) for a, b in golden["edges"]])
    joint_features = torch.from_numpy(golden["joint_features"])
    x = torch.from_numpy(golden["x"]).transpose(1, 2)
    with torch.inference_mode():
        nodes = load_golden(GraphConv(3, 16, mask), golden, "input")(x)
        steps = {"after_input": nodes}
        nodes = load_golden(ResGraphConvAttention(16, mask), golden, "block1")(nodes)
        steps["after_block1"] = nodes
        block2 = load_golden(ResGraphConvAttention(48, mask), golden, "block2")
        steps["after_block2"] = block2(nodes, joint_features)
        output = load_golden(SemGraphConv(48, 2, mask), golden, "output")
        steps["output"] = output(steps["after_block2"])
    for name, ours in steps.items():
        np.testing.assert_allclose(
            ours.mT.numpy(), golden[name], rtol=1e-9, atol=1e-12, err_msg=name
        )


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("skeleton", "counts", "adaptation", "total"),
    [
        (
            COCO_17,
            [1_207, 38_143, 335_359, 1_593, 594_559, 2_105, 927_487, 2_617],
            523_185,
            2_426_255,
        ),
        (
            CROWDPOSE_14,
            [1_196, 38_022, 335_046, 1_582, 594_150, 2_094, 926_982, 2_606],
            519_726,
            2_421_404,
        ),
    ],
)
def test_parameter_counts(
    skeleton: Skeleton, counts: list[int], adaptation: int, total: int
) -> None:
    refiner = IGPGCN(W32, skeleton)
    layers = [refiner.input, refiner.block1]
    for block, output in zip(refiner.blocks, refiner.outputs, strict=True):
        layers += [block, output]
    assert [parameters(layer) for layer in layers] == counts
    assert parameters(refiner.adaptation) == adaptation
    assert parameters(refiner) == total == sum(counts) + adaptation


def test_edges_start_as_the_neighbourhood_mean() -> None:
    mask = graph_mask(17, COCO_17.limbs)
    weights = SemGraphConv(4, 4, mask).edge_weights().detach()
    torch.testing.assert_close(weights, mask / mask.sum(1, keepdim=True))
    assert torch.equal(mask, mask.T)
    assert int(mask.sum()) == 17 + 2 * 19


def slow_lookup(features: np.ndarray, x: float, y: float, stride: int) -> np.ndarray:
    """Bilinear value of a (C, h, w) map at one crop pixel; the border cell outside."""
    _, height, width = features.shape
    u, v = min(max(x / stride, 0.0), width - 1.0), min(max(y / stride, 0.0), height - 1.0)
    left, top = min(int(u), width - 2), min(int(v), height - 2)
    a, b = u - left, v - top
    upper = (1 - a) * features[:, top, left] + a * features[:, top, left + 1]
    lower = (1 - a) * features[:, top + 1, left] + a * features[:, top + 1, left + 1]
    value: np.ndarray = (1 - b) * upper + b * lower
    return value


@given(
    xy=arrays(np.float64, (3, 2), elements=st.floats(-60, 250)),
    stride=st.sampled_from([4, 8, 16]),
    seed=st.integers(0, 2**16),
    form=st.sampled_from(["gridsample", "gather"]),
)
def test_lookup_is_bilinear(xy: np.ndarray, stride: int, seed: int, form: Any) -> None:
    features = np.random.default_rng(seed).standard_normal((1, 5, 12, 9))
    lookup = JointLookup(stride, form)
    ours = lookup(torch.from_numpy(features), torch.from_numpy(xy[None])).numpy()
    expected = np.stack([slow_lookup(features[0], x, y, stride) for x, y in xy])
    np.testing.assert_allclose(ours[0].T, expected, atol=1e-9)


@pytest.mark.parametrize("form", ["gridsample", "gather"])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_lookup_hits_cell_centres_and_clamps(stride: int, form: Any) -> None:
    features = torch.arange(12.0 * 9).reshape(1, 1, 12, 9).double()
    cells = torch.tensor([[0, 0], [8, 11], [3, 5], [8, 0]])
    outside = torch.tensor([[-90.0, -1], [1e4, 1e4]]).double()
    xy = torch.cat([cells * stride, outside]).unsqueeze(0)
    values = JointLookup(stride, form)(features, xy)
    expected = [9.0 * y + x for x, y in [*cells.tolist(), [0, 0], [8, 11]]]
    torch.testing.assert_close(values[0, 0], torch.tensor(expected).double())


@given(
    xy=arrays(np.float32, (4, 6, 2), elements=st.floats(-60, 250, width=32)),
    shape=st.sampled_from([(12, 9), (1, 5), (7, 2), (48, 36)]),
    seed=st.integers(0, 2**16),
)
def test_both_lookups_read_the_same_in_float32(
    xy: np.ndarray, shape: tuple[int, int], seed: int
) -> None:
    features = torch.randn(4, 5, *shape, generator=torch.Generator().manual_seed(seed))
    points = torch.from_numpy(xy)
    if shape[0] == 1:  # a grid cannot address the one row; Gather can
        assert JointLookup(4, "gather")(features, points).isfinite().all()
        return
    sampled = JointLookup(4)(features, points)
    torch.testing.assert_close(
        JointLookup(4, "gather")(features, points), sampled, atol=1e-5, rtol=1e-5
    )
    assert JointLookup(4, "gather")(features[:0], points[:0]).shape == (0, 5, 6)


def test_another_lookup_shares_the_weights_and_leaves_the_network_alone() -> None:
    refiner = IGPGCN(SMALL, COCO_17).eval()
    other = refiner.with_lookup("gather")
    assert [lookup.form for lookup in refiner.lookups] == ["gridsample"] * 3
    assert [lookup.form for lookup in other.lookups] == ["gather"] * 3
    assert all(a is b for a, b in zip(refiner.parameters(), other.parameters(), strict=True))
    assert other.state_dict().keys() == refiner.state_dict().keys()
    taps, xy, score = random_taps(3)
    torch.testing.assert_close(
        other.apply_to(taps, xy, score), refiner.apply_to(taps, xy, score), atol=1e-3, rtol=1e-5
    )


def random_taps(batch: int, seed: int = 0) -> tuple[Taps, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    width, height = SMALL.size_wh
    taps = Taps(
        *(
            torch.randn(batch, c, height // s, width // s, generator=draw)
            for c, s in zip(SMALL.tap_channels, (16, 8, 4), strict=True)
        )
    )
    xy = torch.rand(batch, 17, 2, generator=draw) * torch.tensor([width - 1, height - 1])
    return taps, xy, torch.rand(batch, 17, generator=draw)


@pytest.mark.parametrize("output", ["absolute", "residual"])
@pytest.mark.parametrize("sample_at", ["initial", "integral", "progressive"])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes_and_precision(output: Any, sample_at: Any, batch: int) -> None:
    config = dataclasses.replace(SMALL, output=output, sample_at=sample_at, integral_head=True)
    refiner = IGPGCN(config, COCO_17).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        poses = refiner(*random_taps(batch))
    assert [tuple(pose.shape) for pose in poses] == [(batch, 17, 2)] * 3
    assert {pose.dtype for pose in poses} == {torch.float32}


def test_residual_output_starts_as_the_coarse_pose() -> None:
    refiner = IGPGCN(dataclasses.replace(SMALL, output="residual"), COCO_17).eval()
    taps, xy, score = random_taps(2)
    with torch.inference_mode():
        assert all(torch.equal(pose, xy) for pose in refiner(taps, xy, score))


def test_absolute_output_is_denormalised_network_output() -> None:
    refiner = IGPGCN(SMALL, COCO_17).eval()
    for output in refiner.outputs:
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
    with torch.inference_mode():
        poses = refiner(*random_taps(1))
    centre = torch.tensor([31.5, 47.5]).expand(1, 17, 2)
    assert all(torch.equal(pose, centre) for pose in poses)


def test_crops_do_not_influence_each_other() -> None:
    refiner = IGPGCN(SMALL, COCO_17).eval()
    taps, xy, score = random_taps(3)
    with torch.inference_mode():
        together = refiner(taps, xy, score)[-1]
        alone = refiner(Taps(*(tap[1:2] for tap in taps)), xy[1:2], score[1:2])[-1]
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sample_at", ["initial", "progressive", "integral"])
def test_features_are_read_where_the_switch_says(sample_at: Any) -> None:
    """Which features an output depends on, seen from the positions handed to each lookup."""
    config = dataclasses.replace(SMALL, sample_at=sample_at, integral_head=True)
    refiner = IGPGCN(config, COCO_17).eval()
    queries: list[Tensor] = []
    for lookup in refiner.lookups:
        lookup.register_forward_pre_hook(lambda _, inputs: queries.append(inputs[1]))
    taps, xy, score = random_taps(2)
    with torch.inference_mode():
        poses = refiner(taps, xy, score)
    if sample_at == "initial":
        assert all(torch.equal(query, xy) for query in queries)
    elif sample_at == "progressive":
        expected = [xy, *poses[:2]]
        assert all(torch.equal(a, b) for a, b in zip(queries, expected, strict=True))
    else:
        assert not torch.equal(queries[0], xy)
        assert torch.equal(queries[0], queries[2])


def test_integral_pose_is_the_peak_of_a_sharp_map() -> None:
    refiner = IGPGCN(dataclasses.replace(SMALL, sample_at="integral", integral_head=True), COCO_17)
    sharp = torch.zeros(1, 17, 24, 16)
    sharp[:, :, 13, 6] = 100.0
    refiner.adaptation.joint_maps = nn.Identity()
    queries: list[Tensor] = []
    refiner.adaptation.joint_maps.forward = lambda _: sharp  # type: ignore[method-assign]
    refiner.lookups[0].register_forward_pre_hook(lambda _, inputs: queries.append(inputs[1]))
    with torch.inference_mode():
        refiner.eval()(*random_taps(1))
    torch.testing.assert_close(queries[0], torch.tensor([24.0, 52.0]).expand(1, 17, 2))


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    refiner = IGPGCN(W32_WITHOUT_HEAD, COCO_17).train()
    draw = torch.Generator().manual_seed(0)
    taps = Taps(
        torch.rand(2, 128, 16, 12, generator=draw),
        torch.rand(2, 64, 32, 24, generator=draw),
        torch.rand(2, 32, 64, 48, generator=draw),
    )
    xy = 190 * torch.rand(2, 17, 2, generator=draw)
    poses = refiner(taps, xy, torch.rand(2, 17, generator=draw))
    torch.stack([normalise_xy(pose, (192, 256)).abs().mean() for pose in poses]).sum().backward()
    still = [name for name, p in refiner.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@given(arrays(np.float64, (4, 2), elements=st.floats(-500, 500)))
def test_normalisation_inverts(xy: np.ndarray) -> None:
    there = normalise_xy(torch.from_numpy(xy), (192, 256))
    np.testing.assert_allclose(denormalise_xy(there, (192, 256)).numpy(), xy, atol=1e-9)
    corners = torch.tensor([[0.0, 0.0], [191.0, 255.0]])
    assert normalise_xy(corners, (192, 256)).tolist() == [[-1.0, -1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "offset"}, "output must be one of"),
        ({"sample_at": "p_init"}, "sample_at must be one of"),
        ({"sample_at": "integral"}, "needs integral_head=True"),
        ({"size_wh": (16, 256)}, "at least 32 pixels a side, got \\(16, 256\\)"),
        ({"node_channels": 6}, "multiples of 4, got \\(6, 8, 4, 4\\)"),
    ],
)
def test_config_refuses_contradictions(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **change)
