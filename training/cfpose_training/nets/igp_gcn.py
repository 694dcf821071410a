"""The refiner, IGP-GCN: a graph network over the joints that corrects a coarse pose.

It reads image features at the joints.

The paper (arXiv 2508.11212) builds on OPEC-Net (Qiu et al., ECCV 2020): its graph blocks, its
progressive order, and its feature adaptation, here set for an HRNet backbone. The graph
convolution is that of Zhao et al., "Semantic Graph Convolutional Networks for 3D Human Pose
Regression", CVPR 2019. Poses are (B, K, 2), x before y; node tensors are (B, C, K): channels before
joints, as batch norm wants them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import Pair, Skeleton
from cfpose_sdk.spec import JointLookup as LookupForm
from cfpose_training.nets.decode import full_precision
from cfpose_training.nets.hrnet import Taps


def graph_mask(num_joints: int, limbs: Sequence[Pair]) -> Tensor:
    """(K, K) bool: which joints a joint gets features from, itself included (A + I)."""
    mask = torch.eye(num_joints, dtype=torch.bool)
    for a, b in limbs:
        mask[a, b] = mask[b, a] = True
    return mask


class SemGraphConv(nn.Module):
    """Semantic graph convolution (Zhao et al., CVPR 2019): (B, in, K) → (B, out, K).

    The topology is fixed, the weight of each edge is learned; a row softmax makes them a mean.
    A joint's own features and its neighbours' have separate matrices.
    """

    edge_index: Tensor
    mask: Tensor
    loops: Tensor

    def __init__(self, in_channels: int, out_channels: int, mask: Tensor) -> None:
        super().__init__()
        edges = int(mask.sum())
        self.weight = nn.Parameter(torch.empty(2, in_channels, out_channels))
        self.edge_logits = nn.Parameter(torch.ones(edges))
        self.bias = nn.Parameter(torch.empty(out_channels))
        nn.init.xavier_uniform_(self.weight, gain=1.414)
        nn.init.uniform_(self.bias, -(out_channels**-0.5), out_channels**-0.5)
        index = torch.zeros(mask.shape, dtype=torch.long)
        index[mask] = torch.arange(edges)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("loops", torch.eye(len(mask), dtype=torch.bool), persistent=False)
        self.register_buffer("edge_index", index, persistent=False)

    def edge_weights(self) -> Tensor:
        """(K, K) learned adjacency; rows sum to 1."""
        # a gather, not a scatter: it folds to a constant on export
        logits = self.edge_logits[self.edge_index].masked_fill(~self.mask, -torch.inf)
        return torch.softmax(logits, dim=-1)

    def forward(self, nodes: Tensor) -> Tensor:
        weights = self.edge_weights()
        # masks, not diagonal() and diag(): those leave EyeLike in the exported graph
        own = weights.masked_fill(~self.loops, 0).sum(dim=1)
        others = weights.masked_fill(self.loops, 0)
        # the nodes stay the left operand of every product, and no transpose comes next to one:
        # onnxruntime's MatMul fails on the other forms when there are no people. One convolution
        # over what a joint has and what it hears, so that a runtime folds a batch norm into it.
        both = torch.cat([nodes * own, torch.matmul(nodes, others.T)], dim=1)
        return F.conv1d(both, self.weight.flatten(0, 1).T.unsqueeze(2), self.bias)


class GraphConv(nn.Module):
    """SemGraphConv → batch norm over channels → ReLU."""

    def __init__(self, in_channels: int, out_channels: int, mask: Tensor) -> None:
        super().__init__()
        self.conv = SemGraphConv(in_channels, out_channels, mask)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, nodes: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(nodes)))


class NodeAttention(nn.Module):
    """Scales each joint by 1 + gate, one gate a joint, from the mean over joints."""

    def __init__(self, channels: int, num_joints: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 4)
        self.gate = nn.Linear(channels // 4, num_joints)

    def forward(self, nodes: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gate(torch.relu(self.squeeze(nodes.mean(dim=2)))))
        return nodes * (1 + gates.unsqueeze(1))


class ResGraphConvAttention(nn.Module):
    """Residual graph block c → c/2 → c with node attention."""

    def __init__(self, channels: int, mask: Tensor) -> None:
        super().__init__()
        self.conv1 = GraphConv(channels, channels // 2, mask)
        self.conv2 = SemGraphConv(channels // 2, channels, mask)
        self.norm = nn.BatchNorm1d(channels)
        self.attention = NodeAttention(channels, len(mask))

    def forward(self, nodes: Tensor, joint_features: Tensor | None = None) -> Tensor:
        """`joint_features` (B, C_j, K) go before the (B, C, K) nodes; channels = C_j + C."""
        if joint_features is not None:
            nodes = torch.cat([joint_features, nodes], dim=1)
        residual = self.conv2(self.conv1(nodes))
        return self.attention(torch.relu(self.norm(nodes + residual)))  # type: ignore[no-any-return]


OutputKind = Literal["absolute", "residual"]
SampleAt = Literal["initial", "integral", "progressive"]
RefineMode = Literal["all", "low_conf"]
TAP_STRIDES = (16, 8, 4)  # crop pixels per cell of the three maps, in the order of Taps


@dataclass(frozen=True)
class IGPGCNConfig:
    """Sizes and switches of the refiner. Raises InputError when they contradict each other."""

    size_wh: tuple[int, int]  # crop width, height in pixels
    tap_channels: tuple[int, int, int]  # of the 1/16, 1/8 and 1/4 map
    node_channels: int = 128
    joint_channels: tuple[int, int, int] = (256, 128, 128)  # of the adapted maps
    output: OutputKind = "absolute"  # absolute: the paper; residual: offsets from the coarse pose
    sample_at: SampleAt = "initial"  # where features are read; progressive: at the last output
    # OPEC-Net's joint maps in the feature adaptation; only sample_at="integral" reads them
    integral_head: bool = False
    # all: the paper; low_conf: OPEC-Net's test, only joints scored below `refine_below` move
    refine: RefineMode = "all"
    refine_below: float = 0.0  # raw score

    def __post_init__(self) -> None:
        if self.refine not in get_args(RefineMode):
            raise InputError(f"refine must be one of {get_args(RefineMode)}, got {self.refine!r}")
        if (self.refine == "low_conf") != (0 < self.refine_below <= 1):
            raise InputError(
                f"refine='low_conf' goes with refine_below in (0, 1], refine='all' with 0; "
                f"got {self.refine!r} and {self.refine_below}"
            )
        if self.output not in get_args(OutputKind):
            raise InputError(f"output must be one of {get_args(OutputKind)}, got {self.output!r}")
        if self.sample_at not in get_args(SampleAt):
            raise InputError(
                f"sample_at must be one of {get_args(SampleAt)}, got {self.sample_at!r}"
            )
        if self.sample_at == "integral" and not self.integral_head:
            raise InputError("sample_at='integral' needs integral_head=True")
        if min(self.size_wh) < 2 * TAP_STRIDES[0]:
            raise InputError(f"size_wh must be at least 32 pixels a side, got {self.size_wh}")
        widths = (self.node_channels, *self.joint_channels)
        if any(width < 4 or width % 4 for width in widths):
            raise InputError(f"node and joint channels must be multiples of 4, got {widths}")


def normalise_xy(xy: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Crop pixels → [-1, 1] between the centres of the first and the last pixel of each axis."""
    return xy / _half_span(xy, size_wh) - 1


def denormalise_xy(normalised: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """The inverse of normalise_xy."""
    return (normalised + 1) * _half_span(normalised, size_wh)


class ChannelAttention(nn.Module):
    """Gates (B, C, 1, 1) in [0, 1] from the global means of two (B, C, h, w) maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(2 * channels, channels)
        self.gate = nn.Linear(channels, channels)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        pooled = torch.cat([coarse, fine], dim=1).mean(dim=(2, 3))
        gates = torch.sigmoid(self.gate(torch.relu(self.squeeze(pooled))))
        return gates.unsqueeze(-1).unsqueeze(-1)


class FeatureAdaptation(nn.Module):
    """Coarse-to-fine fusion of the taps: OPEC-Net's cascade, set for HRNet's channels.

    (1/16, 1/8, 1/4) maps → three adapted maps of the same sizes, and K joint maps at 1/4 or None.
    """

    def __init__(self, config: IGPGCNConfig, num_joints: int) -> None:
        super().__init__()
        taps, joints = config.tap_channels, config.joint_channels
        self.adapt1 = nn.Conv2d(taps[0], joints[0], 3, padding=1)
        self.up1 = nn.ConvTranspose2d(joints[0], taps[1], 2, stride=2)
        self.attention1 = ChannelAttention(taps[1])
        self.adapt2 = nn.Conv2d(taps[1], joints[1], 3, padding=1)
        self.up2 = nn.ConvTranspose2d(joints[1], taps[2], 2, stride=2)
        self.attention2 = ChannelAttention(taps[2])
        self.adapt3 = nn.Conv2d(taps[2], joints[2], 3, padding=1)
        self.joint_maps = (
            nn.Conv2d(joints[2], num_joints, 3, padding=1) if config.integral_head else None
        )

    def forward(self, taps: Taps) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        map1 = torch.relu(self.adapt1(taps.sixteenth))
        up = _crop_to(torch.relu(self.up1(map1)), taps.eighth)
        map2 = torch.relu(self.adapt2(up * self.attention1(up, taps.eighth) + taps.eighth))
        up = _crop_to(torch.relu(self.up2(map2)), taps.quarter)
        map3 = torch.relu(self.adapt3(up * self.attention2(up, taps.quarter) + taps.quarter))
        return (map1, map2, map3), None if self.joint_maps is None else self.joint_maps(map3)


class JointLookup(nn.Module):
    """Bilinear reading of a (B, C, h, w) map at (B, K, 2) crop pixels → (B, C, K) in float32.

    Cell i of a stride-s map is centred on crop pixel s * i; outside, the border cell counts.
    `form` is the operator that reads: one GridSample, or four Gathers, for runtimes whose
    GridSample cannot be trusted. Both give the same numbers.
    """

    def __init__(self, stride: int, form: LookupForm = "gridsample") -> None:
        super().__init__()
        self.stride = stride
        self.form = form

    def forward(self, features: Tensor, xy: Tensor) -> Tensor:
        features, xy = full_precision(features), full_precision(xy)
        if self.form == "gather":
            return _gather_bilinear(features, xy / self.stride)
        height, width = features.shape[-2:]
        # from the centre of the first cell to that of the last
        span_wh = (self.stride * (width - 1) + 1, self.stride * (height - 1) + 1)
        grid = normalise_xy(xy, span_wh).unsqueeze(1)
        sampled = F.grid_sample(
            features,
            grid,
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        return sampled.squeeze(2)


class IGPGCN(nn.Module):
    """Image-guided progressive GCN: coarse pose, score and taps → three poses, best last.

    The skeleton's limbs are the edges of its graph.
    """

    def __init__(self, config: IGPGCNConfig, skeleton: Skeleton) -> None:
        super().__init__()
        self.config = config
        mask = graph_mask(len(skeleton), skeleton.limbs)
        self.adaptation = FeatureAdaptation(config, len(skeleton))
        self.lookups = nn.ModuleList(JointLookup(stride) for stride in TAP_STRIDES)
        self.input = GraphConv(3, config.node_channels, mask)
        self.block1 = ResGraphConvAttention(config.node_channels, mask)
        self.blocks = nn.ModuleList()
        self.outputs = nn.ModuleList()
        channels = config.node_channels
        for joint_channels in config.joint_channels:
            channels += joint_channels
            self.blocks.append(ResGraphConvAttention(channels, mask))
            output = SemGraphConv(channels, 2, mask)
            if config.output == "residual":
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)
            self.outputs.append(output)

    def forward(self, taps: Taps, xy_init: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three progressive poses (B, K, 2) in crop pixels; the last one is the result.

        xy_init (B, K, 2) is in crop pixels, score (B, K) is raw. The loss compares poses through
        `normalise_xy`.
        """
        maps, joint_maps = self.adaptation(taps)
        # bfloat16 cannot hold a coordinate to a pixel, so autocast ends here
        with torch.autocast(xy_init.device.type, enabled=False):
            xy_init = full_precision(xy_init)
            query = xy_init if joint_maps is None else _integral_xy(full_precision(joint_maps))
            if self.config.sample_at != "integral":
                query = xy_init
            return self._refine(maps, query, xy_init, full_precision(score))

    def with_lookup(self, form: LookupForm) -> IGPGCN:
        """This network, weights shared, with another operator that reads its maps."""
        other = copy.copy(self)
        other._modules = self._modules.copy()  # `copy` shares the table of submodules
        other.lookups = nn.ModuleList(JointLookup(stride, form) for stride in TAP_STRIDES)
        return other

    def apply_to(self, taps: Taps, xy_init: Tensor, score: Tensor) -> Tensor:
        """The pose to report (B, K, 2): the last output, where `refine` lets it replace xy_init."""
        refined = self(taps, xy_init, score)[-1]
        if self.config.refine == "all":
            return refined  # type: ignore[no-any-return]
        weak = (full_precision(score) < self.config.refine_below).unsqueeze(2)
        return torch.where(weak, refined, full_precision(xy_init))

    def _refine(
        self, maps: tuple[Tensor, Tensor, Tensor], query: Tensor, xy_init: Tensor, score: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        size_wh = self.config.size_wh
        start = torch.cat([normalise_xy(xy_init, size_wh), score.unsqueeze(2)], dim=2)
        nodes = self.block1(self.input(start.transpose(1, 2)))
        poses: list[Tensor] = []
        for features, lookup, block, output in zip(
            maps, self.lookups, self.blocks, self.outputs, strict=True
        ):
            nodes = block(nodes, lookup(features, query))
            raw = output(nodes).transpose(1, 2)
            if self.config.output == "residual":
                pose = xy_init + raw * _half_span(raw, size_wh)
            else:
                pose = denormalise_xy(raw, size_wh)
            poses.append(pose)
            query = pose if self.config.sample_at == "progressive" else query
        return cast(tuple[Tensor, Tensor, Tensor], tuple(poses))


def _gather_bilinear(features: Tensor, cells: Tensor) -> Tensor:
    """(B, C, h, w) at (B, K, 2) cells, clipped to the map → (B, C, K)."""
    batch, channels, height, width = features.shape
    x = cells[:, :, 0].clamp(0, width - 1)
    y = cells[:, :, 1].clamp(0, height - 1)
    # the last cell but one at most: at the border its right neighbour then weighs all
    left, top = x.floor().clamp(max=max(width - 2, 0)), y.floor().clamp(max=max(height - 2, 0))
    flat = features.flatten(2)
    total = torch.zeros((), dtype=features.dtype, device=features.device)
    for down in (0, 1):
        for right in (0, 1):
            column, row = left + right, top + down
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            # a map of one cell a side has no neighbour, and its weight is 0
            index = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
            index = index.long().unsqueeze(1).expand(batch, channels, cells.shape[1])
            total = total + torch.gather(flat, 2, index) * weight.unsqueeze(1)
    return total


def _integral_xy(joint_maps: Tensor) -> Tensor:
    """Soft-argmax of (B, K, h, w) maps at the 1/4 scale → (B, K, 2) crop pixels."""
    height, width = joint_maps.shape[-2:]
    mass = torch.softmax(joint_maps.flatten(2), dim=2)
    cells = torch.arange(height * width, device=mass.device)
    columns, rows = (cells % width).to(mass.dtype), (cells // width).to(mass.dtype)
    x, y = (mass * columns).sum(dim=2), (mass * rows).sum(dim=2)
    return torch.stack([x, y], dim=2) * TAP_STRIDES[-1]


def _crop_to(up: Tensor, like: Tensor) -> Tensor:
    """Cut the extra cell of a map whose odd size was halved and doubled."""
    return up[..., : like.shape[-2], : like.shape[-1]]


def _half_span(like: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Half the distance between the first and the last pixel centre, (2,) in x, y."""
    width, height = size_wh
    return torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=like.dtype, device=like.device)
