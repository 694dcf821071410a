"""MoveNet's weights, read from its single-pose ONNX file, and networks begun on them.

The file's convolutions are told by their order: stem, blocks, laterals right after the first three
stages, pyramid, and the branches in the order heat, regression, centre, offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from cfpose_training.checkpoints.files import load_tensors, misfits
from cfpose_training.checkpoints.from_graph import (
    CLASSIFIERS,
    PREFIX,
    classifier,
    constants,
    graph_spec,
    load_graph,
)
from cfpose_training.nets.movenet import WIDTHS, MoveNetBackbone, MoveNetConfig, MoveNetName
from cfpose_training.nets.pose_net import MarginalHead, PoseNet

BRANCHES = ("heat", "regression", "centre", "offsets")
JOINTS = 17


def read_movenet(path: Path) -> tuple[MoveNetName, dict[str, Tensor]]:
    """Which MoveNet a file is, and its weights: `backbone.*`, and `head.*` of heat and regression.

    Stored half precision becomes float32. Raises ArtifactError when it is another network.
    """
    convolutions = list(_convolutions(load_graph(path).graph))
    widths = {body: widths[0] for body, widths in WIDTHS.items()}
    stem = len(convolutions[0][0]) if convolutions else 0
    body = next((name for name, width in widths.items() if width == stem), None)
    names = [] if body is None else _layer_names(body)
    if body is None or len(names) != len(convolutions):
        raise ArtifactError(
            f"{path} has {len(convolutions)} convolutions, the first with {stem} channels; "
            f"expected a single-pose MoveNet, Lightning or Thunder, as an ONNX file"
        )
    state: dict[str, Tensor] = {}
    for name, (weight, bias) in zip(names, convolutions, strict=True):
        state[f"{name}.weight"] = weight
        if bias is not None:
            state[f"{name}.bias"] = bias
    unused = tuple(f"head.{branch}." for branch in BRANCHES[2:])
    return body, {key: value for key, value in state.items() if not key.startswith(unused)}


def start_movenet(
    network: PoseNet,
    path: Path,
    matched: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Begin a network of MoveNet's trunk on a MoveNet file, or on a checkpoint or exported graph of
    such a network. `matched` fits the file's tensors to the network's joints.

    Returns the parts of the head that came from the file, and those that did not fit or are not in
    it. Raises ArtifactError, with the keys, when the backbone does not fit whole.
    """
    assert isinstance(network.backbone, MoveNetBackbone)
    body = network.backbone.config.body
    tensors: dict[str, Tensor]
    if path.suffix != ".onnx":
        tensors = {key.removeprefix("pose."): t for key, t in load_tensors(path)[0].items()}
    elif any(entry.key == SPEC_KEY for entry in load_graph(path).metadata_props):
        tensors = _read_own(path)
    else:
        found, tensors = read_movenet(path)
        if found != body:
            raise ArtifactError(
                f"{path} is MoveNet {found.title()}, the network to start has the body {body!r}; "
                f"give the other file, or body = {found!r}"
            )
    own = network.state_dict()
    tensors = dict(matched(tensors))
    trunk = {key: value for key, value in tensors.items() if key.startswith("backbone.")}
    wanted = {key: value for key, value in own.items() if key.startswith("backbone.")}
    if problems := misfits(wanted, trunk):
        raise ArtifactError(f"{path} is no MoveNet {body.title()}: " + "; ".join(problems[:8]))
    parts = _parts(own, tensors)
    taken = {key: tensors[key] for keys in parts.values() for key in keys}
    network.load_state_dict({**own, **trunk, **taken})
    fresh = {_part(key) for key in own if key.startswith("head.")} - parts.keys()
    return tuple(sorted(parts)), tuple(sorted(fresh))


def _read_own(path: Path) -> dict[str, Tensor]:
    """The state dict of a network of this kind that `cfpose-export` wrote."""
    graph = load_graph(path).graph
    arrays = {name: value.float() for name, value in constants(graph).items()}
    state = {
        key.removeprefix(PREFIX): value for key, value in arrays.items() if key.startswith(PREFIX)
    }
    for layer in CLASSIFIERS:
        state |= classifier(graph, arrays, layer, path)
    state.setdefault("head.power", torch.tensor(1.0))  # the exporter leaves out a factor of 1
    return state


def read_own_graph(path: Path, spec: ModelSpec | None = None) -> PoseNet | None:
    """The network of an exported graph on MoveNet's trunk, without its refiner; None for another.

    Its `frozen` is the default: a graph does not tell it. Crop and joints are those of `spec`, else
    the graph's own. Raises ArtifactError when the head is not whole, or is of other crops or joints
    than `spec` says.
    """
    if path.suffix != ".onnx":
        return None
    stem = constants(load_graph(path).graph).get(f"{PREFIX}backbone.stem.weight")
    body = next((b for b, w in WIDTHS.items() if stem is not None and w[0] == len(stem)), None)
    if body is None:
        return None
    own = graph_spec(path)
    if spec is not None and (spec.size_wh, spec.skeleton) != (own.size_wh, own.skeleton):
        raise ArtifactError(
            f"{path} has crops of {own.size_wh} and {len(own.skeleton)} joints, the recipe asks "
            f"for {spec.size_wh} and {len(spec.skeleton)}, or for other joints"
        )
    network = PoseNet(MoveNetConfig(body), spec or own, "marginal")
    if left := start_movenet(network, path)[1]:
        raise ArtifactError(f"{path} lacks {', '.join(left)} of its head")
    return network


def _part(key: str) -> str:
    return ".".join(key.split(".")[:2])


def _parts(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The parts of the head of which every tensor is given in the shape that the network has."""
    keys: dict[str, list[str]] = {}
    for key in own:
        if key.startswith("head."):
            keys.setdefault(_part(key), []).append(key)
    return {
        part: names
        for part, names in keys.items()
        if all(name in tensors and tensors[name].shape == own[name].shape for name in names)
    }


def _layer_names(body: MoveNetName) -> list[str]:
    """Our names of a file's convolutions, in its order."""
    with torch.device("meta"):
        backbone = MoveNetBackbone(MoveNetConfig(body, frozen=0))
    names = ["stem", *_convolution_names(backbone.first, "first")]
    for number, stage in enumerate(backbone.stages):
        names += _convolution_names(stage, f"stages.{number}")
        names += {0: ["lateral4"], 1: ["lateral8"], 2: ["lateral16"]}.get(number, [])
    names += ["last", "top"]
    for merge in ("merge16", "merge8", "merge4"):
        names += _convolution_names(getattr(backbone, merge), merge)
    layers = [f"backbone.{name}" for name in names]
    # layer by layer, each for all branches
    for layer in ("depthwise", "hidden", "out"):
        layers += [f"head.{branch}.{layer}" for branch in BRANCHES]
    return layers


def _convolution_names(module: nn.Module, prefix: str) -> list[str]:
    named = module.named_modules(prefix=prefix)
    return [name for name, layer in named if isinstance(layer, nn.Conv2d)]


def _convolutions(graph: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight, and bias where there is one, of each convolution in the graph's order."""
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in arrays:  # stored in half precision
            arrays[node.output[0]] = arrays[node.input[0]]
    for node in graph.node:
        if node.op_type == "Conv":
            weight, *bias = (
                torch.from_numpy(arrays[name].astype(np.float32)) if name in arrays else None
                for name in node.input[1:]
            )
            if weight is not None:
                yield weight, bias[0] if bias else None


def takes_movenet(network: PoseNet) -> bool:
    """Whether `start_movenet` is the way to begin this network."""
    return isinstance(network.backbone, MoveNetBackbone) and isinstance(network.head, MarginalHead)
