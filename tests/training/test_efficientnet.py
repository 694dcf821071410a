"""EfficientNet-Lite0: its tables, its weights in our names, and what of it does not learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from cfpose_training.nets.efficientnet import (
    BLOCKS,
    CHANNELS,
    QUARTER_CHANNELS,
    EfficientNetLite0,
)
from cfpose_training.nets.finder import FinderNet, FinderNetConfig


def published_state() -> dict[str, Tensor]:
    """Random weights in the names of `efficientnet_lite_pytorch`, classifier included."""
    torch.manual_seed(0)
    body = EfficientNetLite0()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = {}
    for key, value in body.state_dict().items():
        head, _, leaf = key.rpartition(".")
        parts = [part if part.isdigit() else f"_{part}" for part in head.split(".")]
        state[".".join([*parts, leaf])] = value.clone()
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_blocks.15._bn2.bias": torch.zeros(320)}


def test_parameters_as_published() -> None:
    """Lite0 has 4,652,008 parameters; blocks 13 to 15, the last convolution and the classifier
    hold what is not here."""
    wide = 192 * 6
    per_192 = 192 * wide * 2 + wide * 25 + 2 * (wide + wide + 192)
    last = 192 * wide + wide * 9 + wide * 320 + 2 * (wide + wide + 320)
    top = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    body = sum(p.numel() for p in EfficientNetLite0().parameters())
    assert body + 2 * per_192 + last + top == 4_652_008


def test_map_sizes() -> None:
    body = EfficientNetLite0().eval()
    maps = body(torch.zeros(2, 3, 64, 128))
    assert [m.shape for m in maps] == [
        (2, channels, 64 // stride, 128 // stride)
        for channels, stride in zip((QUARTER_CHANNELS, *CHANNELS), (4, 8, 16, 32), strict=True)
    ]


def test_published_weights_see_their_own_pixels() -> None:
    """Away from the picture's edge the stem answers as one that gets (pixel - 127) / 128."""
    state = published_state()
    body = EfficientNetLite0().eval()
    dropped = body.load_imagenet(state)
    assert dropped == ("_blocks.15._bn2.bias", "_fc.weight")
    pixels = torch.rand(1, 3, 32, 32) * 255
    mean = torch.tensor(IMAGENET_MEAN_RGB)[:, None, None]
    std = torch.tensor(IMAGENET_STD_RGB)[:, None, None]
    ours = body.bn0(body.conv_stem((pixels / 255 - mean) / std))
    theirs = F.batch_norm(
        F.conv2d((pixels - 127) / 128, state["_conv_stem.weight"], stride=2, padding=1),
        state["_bn0.running_mean"],
        state["_bn0.running_var"],
        eps=1e-3,
    )
    torch.testing.assert_close(ours[..., 1:, 1:], theirs[..., 1:, 1:], rtol=1e-4, atol=1e-4)


def test_block_is_an_inverted_residual() -> None:
    """Block 2 in float64 against the operators written out."""
    torch.manual_seed(1)
    block = EfficientNetLite0().double().eval().blocks[2]
    x = torch.randn(1, BLOCKS[1][0], 9, 7, dtype=torch.float64)
    norm = (1 + 1e-3) ** -0.5  # of statistics that are still 0 and 1
    wide = (F.conv2d(x, block.expand_conv.weight) * norm).clamp(0, 6)
    deep = F.conv2d(wide, block.depthwise_conv.weight, padding=1, groups=wide.shape[1]) * norm
    expected = x + F.conv2d(deep.clamp(0, 6), block.project_conv.weight) * norm
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_other_weights_are_refused(damage: str) -> None:
    state = published_state()
    key = "_blocks.4._project_conv.weight"
    if damage == "missing":
        del state[key]
    else:
        state[key] = state[key][:1]
    with pytest.raises(ArtifactError, match=r"blocks\.4\.project_conv\.weight"):
        EfficientNetLite0().load_imagenet(state)


def test_statistics_and_first_blocks_stay() -> None:
    torch.manual_seed(2)
    net = FinderNet(FinderNetConfig(body="efficientnet-lite0", head_channels=8, frozen=3)).train()
    before = {key: value.clone() for key, value in net.body.state_dict().items()}
    output = net(torch.randn(2, 3, 64, 64))
    (output.heat_logits.square().mean() + output.sides.square().mean()).backward()
    for key, value in net.body.state_dict().items():
        if "running" in key or "tracked" in key:
            assert torch.equal(value, before[key]), key
    for name, parameter in net.body.named_parameters():
        still = name.startswith(("conv_stem", "bn0", "blocks.0.", "blocks.1.", "blocks.2."))
        assert (parameter.grad is None) == still, name
