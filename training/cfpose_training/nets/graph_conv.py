"""Graph convolution over the joints of a skeleton, as OPEC-Net arranges it.

Node tensors are (B, C, K): channels before joints, as batch norm wants them. Zhao et al., "Semantic
Graph Convolutional Networks for 3D Human Pose Regression", CVPR 2019; Qiu et al., "Peeking into
occluded joints" (OPEC-Net), ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfpose_sdk.skeleton import Pair


def graph_mask(num_joints: int, limbs: Sequence[Pair]) -> Tensor:
    """(K, K) bool: which joints a joint listens to, itself included (A + I)."""
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
