"""HRNet and SimCC head against the numbers and names of the original implementation."""

from __future__ import annotations

import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.hrnet import HRNET_S, HRNET_W32, HRNET_W48, HRNet, HRNetConfig
from cfpose_training.nets.pose_net import PoseNet, PoseOutput

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"w32": HRNET_W32, "w48": HRNET_W48}


def spec(
    skeleton: Skeleton = COCO_17, size_wh: tuple[int, int] = (192, 256), split_ratio: float = 2.0
) -> ModelSpec:
    return ModelSpec("test", skeleton, size_wh, split_ratio=split_ratio)


def original_key(key: str) -> str:
    """Our state-dict key → the original's, which has no prefixes."""
    return key.removeprefix("backbone.").removeprefix("head.")


def seeded_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the golden numbers were made with."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if key.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        values = 0.1 * draw.standard_normal(shape)
    elif key.endswith("weight") and len(shape) == 1:
        values = draw.uniform(0.5, 1.0, shape)
    elif key.endswith("weight"):
        values = draw.standard_normal(shape) * np.sqrt(1 / math.prod(shape[1:]))
    else:
        values = 0.1 * draw.standard_normal(shape)
    return torch.from_numpy(values)


@cache
def golden_forward(size: str) -> PoseOutput:
    with torch.device("meta"):
        net = PoseNet(SIZES[size], spec())
    state = {
        key: seeded_tensor(original_key(key), tuple(value.shape))
        for key, value in net.state_dict().items()
    }
    net.load_state_dict(state, strict=True, assign=True)
    draw = np.random.Generator(np.random.PCG64(2026))
    with torch.inference_mode():
        return net.eval()(torch.from_numpy(draw.standard_normal((2, 3, 256, 192))))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_state_dict_has_the_original_names_and_shapes(size: str) -> None:
    with torch.device("meta"):
        ours = PoseNet(SIZES[size], spec()).state_dict()
    original = json.loads((GOLDEN / f"hrnet_{size}_simcc_state_dict.json").read_text())
    assert {original_key(key): list(value.shape) for key, value in ours.items()} == original


@pytest.mark.parametrize("size", SIZES)
def test_logits_match_the_original(size: str) -> None:
    golden = np.load(GOLDEN / f"hrnet_{size}_simcc_forward.npz")
    output = golden_forward(size)
    for name in ("x", "y"):
        ours = getattr(output, f"{name}_logits").numpy()
        stored = golden[f"logits_{name}"]  # rounded to float32, so half a unit in the last place
        assert ours.dtype == np.float64
        error = np.abs(ours - stored.astype(np.float64))
        assert np.all(error <= 0.5001 * np.spacing(np.abs(stored)) + 1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("tap", "stored"), [("sixteenth", "branch2"), ("eighth", "branch1"), ("quarter", "quarter_map")]
)
def test_taps_match_the_original(size: str, tap: str, stored: str) -> None:
    golden = np.load(GOLDEN / f"hrnet_{size}_simcc_forward.npz")
    feature = getattr(golden_forward(size).taps, tap).numpy()
    for ours, name in ((feature.mean((2, 3)), "mean"), (feature.std((2, 3), ddof=1), "std")):
        np.testing.assert_allclose(ours, golden[f"{stored}_{name}"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("config", "model_spec", "total"),
    [
        (HRNET_W32, spec(), 31_289_521),
        (HRNET_W48, spec(), 66_349_153),
        (HRNET_W48, spec(size_wh=(288, 384), split_ratio=1.5), 70_564_049),
        (HRNET_W32, spec(CROWDPOSE_14), 31_289_422),
    ],
)
def test_parameter_counts(config: HRNetConfig, model_spec: ModelSpec, total: int) -> None:
    with torch.device("meta"):
        assert parameters(PoseNet(config, model_spec)) == total


@pytest.mark.parametrize(
    ("config", "without_classifiers"), [(HRNET_W32, 28_536_113), (HRNET_W48, 63_595_745)]
)
def test_parameter_counts_by_part(config: HRNetConfig, without_classifiers: int) -> None:
    with torch.device("meta"):
        net = PoseNet(config, spec())
    assert parameters(net.backbone) + parameters(net.head.final_layer) == without_classifiers
    assert parameters(net.head.mlp_head_x) + parameters(net.head.mlp_head_y) == 2_753_408


@pytest.mark.parametrize("size_wh", [(192, 256), (100, 132)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_tap_shapes(size_wh: tuple[int, int], batch: int) -> None:
    width, height = size_wh
    net = HRNet(HRNET_S).eval()
    with torch.inference_mode():
        taps = net(torch.zeros(batch, 3, height, width))
    for feature, channels, stride in zip(taps, net.tap_channels, (16, 8, 4), strict=True):
        assert feature.shape == (batch, channels, -(-height // stride), -(-width // stride))


def test_crop_size_must_be_divisible() -> None:
    with pytest.raises(InputError, match="multiples of 4, got \\(190, 256\\)"):
        PoseNet(HRNET_S, spec(size_wh=(190, 256)))
