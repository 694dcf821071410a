"""EfficientNet-Lite: its tables, its weights in our names, and what of it does not learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB
from cfpose_training.nets.efficientnet import (
    SCALING,
    EfficientNetLite,
    LiteName,
    block_shapes,
    map_channels,
)
from cfpose_training.nets.finder import FinderNet, FinderNetConfig


def published_state(name: LiteName = "lite0") -> dict[str, Tensor]:
    """Random weights in the names of `efficientnet_lite_pytorch`, classifier included."""
    torch.manual_seed(0)
    body = EfficientNetLite(name)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = {}
    for key, value in body.state_dict().items():
        head, _, leaf = key.rpartition(".")
        parts = [part if part.isdigit() else f"_{part}" for part in head.split(".")]
        state[".".join([*parts, leaf])] = value.clone()
    last = f"_blocks.{len(body.blocks) + 2}._bn2.bias"
    return state | {"_fc.weight": torch.zeros(1000, 1280), last: torch.zeros(320)}


# parameters of the published classifiers, counted from their files; blocks of 1/32 in each, widths
# of its last stage and of the one before
PUBLISHED = {
    "lite0": (4_652_008, 4, 192, 320),
    "lite1": (5_416_680, 5, 192, 320),
    "lite2": (6_092_072, 5, 208, 352),
}


@pytest.mark.parametrize("name", SCALING)
def test_parameters_as_published(name: LiteName) -> None:
    """The last blocks of 1/32, the last convolution and the classifier hold what is not here."""
    total, blocks, narrow, last = PUBLISHED[name]
    wide = narrow * 6
    each = narrow * wide * 2 + wide * 25 + 2 * (wide + wide + narrow)
    end = narrow * wide + wide * 9 + wide * last + 2 * (wide + wide + last)
    top = last * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    body = sum(p.numel() for p in EfficientNetLite(name).parameters())
    assert body + (blocks - 2) * each + end + top == total


@pytest.mark.parametrize("name", SCALING)
def test_map_sizes(name: LiteName) -> None:
    body = EfficientNetLite(name).eval()
    maps = body(torch.zeros(2, 3, 64, 128))
    assert [m.shape for m in maps] == [
        (2, channels, 64 // stride, 128 // stride)
        for channels, stride in zip(map_channels(name), (4, 8, 16, 32), strict=True)
    ]


def test_bodies_do_not_take_each_others_weights() -> None:
    """Lite2 in Lite1: the widths differ. Lite1 in Lite0: a block has the next stage's shape."""
    for wanted, given in (("lite1", "lite2"), ("lite0", "lite1"), ("lite1", "lite0")):
        state = published_state(given)  # type: ignore[arg-type]
        with pytest.raises(ArtifactError, match=f"no EfficientNet-{wanted.capitalize()} weights"):
            EfficientNetLite(wanted).load_imagenet(state)  # type: ignore[arg-type]


def test_published_weights_see_their_own_pixels() -> None:
    """Away from the picture's edge the stem answers as one that gets (pixel - 127) / 128."""
    state = published_state()
    body = EfficientNetLite().eval()
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
    block = EfficientNetLite().double().eval().blocks[2]
    x = torch.randn(1, block_shapes("lite0")[1].out, 9, 7, dtype=torch.float64)
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
        EfficientNetLite().load_imagenet(state)


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
