"""HRNet: parallel branches from 1/4 to 1/32 resolution that exchange their features many times.

Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR 2019.
Parameter names are those of the reference implementation, so its weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class HRNetConfig:
    """Width and depth of an HRNet. Branch b has `width * 2**b` channels."""

    width: int
    stem: int = 64  # channels of the stem, and of the bottlenecks' middle layer
    bottlenecks: int = 4  # in layer1
    modules: tuple[int, int, int] = (1, 4, 3)  # exchange modules in stages 2, 3, 4
    blocks: int = 4  # residual blocks a branch in every module


HRNET_W32 = HRNetConfig(width=32)
HRNET_W48 = HRNetConfig(width=48)
HRNET_S = HRNetConfig(width=16, stem=32, bottlenecks=2, modules=(1, 2, 1), blocks=2)


class Taps(NamedTuple):
    """Feature maps of stage 4 that the head and the refiner read, (B, C, h, w) each."""

    sixteenth: Tensor  # branch 2 of the last module, before its fusion
    eighth: Tensor  # branch 1, likewise
    quarter: Tensor  # the fused output; feeds the SimCC head


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, relu: bool = True
) -> nn.Sequential:
    """Same-padded convolution without bias, batch norm and, if asked, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + x)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, fourfold expansion, projected shortcut where channels differ."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            conv_bn(in_channels, out_channels, 1, relu=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)  # type: ignore[no-any-return]


class ExchangeModule(nn.Module):
    """Residual blocks on every branch, then every branch receives the sum of all branches.

    With `multi_scale=False` only branch 0 is fused; `run_branches` gives the maps before fusion.
    """

    def __init__(self, channels: Sequence[int], blocks: int, *, multi_scale: bool = True) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c) for _ in range(blocks))) for c in channels
        )
        receivers = len(channels) if multi_scale else 1
        self.fuse_layers = nn.ModuleList(
            nn.ModuleDict(
                {str(j): _exchange(channels, j, i) for j in range(len(channels)) if j != i}
            )
            for i in range(receivers)
        )
        self.relu = nn.ReLU(inplace=True)

    def run_branches(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [branch(x) for branch, x in zip(self.branches, maps, strict=True)]

    def fuse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fused = []
        for i, layers in enumerate(self.fuse_layers):
            assert isinstance(layers, nn.ModuleDict)
            height, width = maps[i].shape[-2:]
            total = maps[i]
            for j, layer in layers.items():
                # a map of odd size, halved and doubled, is one cell too large
                total = total + layer(maps[int(j)])[..., :height, :width]
            fused.append(self.relu(total))
        return fused

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return self.fuse(self.run_branches(maps))


def _exchange(channels: Sequence[int], source: int, target: int) -> nn.Sequential:
    """Bring branch `source` to the resolution and channels of branch `target`."""
    if source > target:
        lift = conv_bn(channels[source], channels[target], 1, relu=False)
        return lift.append(nn.Upsample(scale_factor=2.0 ** (source - target), mode="nearest"))
    steps = target - source
    halvings = [conv_bn(channels[source], channels[source], 3, stride=2) for _ in range(steps - 1)]
    return nn.Sequential(
        *halvings, conv_bn(channels[source], channels[target], 3, stride=2, relu=False)
    )


class HRNet(nn.Module):
    """HRNet body: normalised RGB images (B, 3, H, W) → Taps. H and W are multiples of 4."""

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # in training: maps inside modules are computed again, not kept
        stem, width = config.stem, config.width
        channels = [width * 2**b for b in range(4)]
        self.conv1 = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        expanded = stem * Bottleneck.expansion
        self.layer1 = nn.Sequential(
            Bottleneck(stem, stem),
            *(Bottleneck(expanded, stem) for _ in range(config.bottlenecks - 1)),
        )
        # transitions are keyed by the branch they make, as in the reference's state dict
        self.transition1 = nn.ModuleDict(
            {
                "0": conv_bn(expanded, channels[0], 3),
                "1": nn.Sequential(conv_bn(expanded, channels[1], 3, stride=2)),
            }
        )
        self.transition2 = nn.ModuleDict(
            {"2": nn.Sequential(conv_bn(channels[1], channels[2], 3, stride=2))}
        )
        self.transition3 = nn.ModuleDict(
            {"3": nn.Sequential(conv_bn(channels[2], channels[3], 3, stride=2))}
        )
        self.stage2 = self._stage(channels[:2], config.modules[0])
        self.stage3 = self._stage(channels[:3], config.modules[1])
        self.stage4 = self._stage(channels, config.modules[2], last=True)

    def _stage(self, channels: list[int], modules: int, *, last: bool = False) -> nn.ModuleList:
        return nn.ModuleList(
            ExchangeModule(
                channels, self.config.blocks, multi_scale=not (last and index == modules - 1)
            )
            for index in range(modules)
        )

    @property
    def tap_channels(self) -> tuple[int, int, int]:
        """Channels of Taps, in its order."""
        width = self.config.width
        return 4 * width, 2 * width, width

    def forward(self, images: Tensor) -> Taps:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self._run(self.layer1, x)
        maps = [self.transition1["0"](x), self.transition1["1"](x)]
        for module in self.stage2:
            maps = self._run(module, maps)
        maps = [*maps, self.transition2["2"](maps[-1])]
        for module in self.stage3:
            maps = self._run(module, maps)
        maps = [*maps, self.transition3["3"](maps[-1])]
        *fused, last = self.stage4
        for module in fused:
            maps = self._run(module, maps)
        assert isinstance(last, ExchangeModule)
        branches = self._run(last, maps, last.run_branches)
        return Taps(sixteenth=branches[2], eighth=branches[1], quarter=last.fuse(branches)[0])

    def _run(self, module: nn.Module, maps: Any, call: Callable[[Any], Any] | None = None) -> Any:
        """The module's maps (or those of `call`, a method of it), kept or to be computed again."""
        call = call or module
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return call(maps)
        return checkpoint(
            call, maps, use_reentrant=False, preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), still_norms(module)),
        )  # fmt: skip


@contextmanager
def still_norms(module: nn.Module) -> Iterator[None]:
    """Batch norms inside neither move their running statistics nor count: they saw the batch."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [(part, part.momentum, part.num_batches_tracked) for part in norms]
    for part in norms:
        part.momentum, part.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for part, momentum, count in before:
            part.momentum, part.num_batches_tracked = momentum, count


def init_convolutions(module: nn.Module, std: float = 0.001) -> None:
    """Initialise as the reference does: convolutions N(0, std), batch norm 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
