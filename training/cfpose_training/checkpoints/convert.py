"""Convert checkpoints between layouts, and start a network from one of them."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.files import write_file
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from cfpose_training.checkpoints.files import (
    NETWORK_KEY,
    backbone_kind,
    load_pose,
    load_tensors,
    misfits,
    save_pose,
    save_tensors,
)
from cfpose_training.checkpoints.foreign import Adopted, adopt, head_spec, read_state
from cfpose_training.checkpoints.initial import joint_names, open_initial, with_rows
from cfpose_training.checkpoints.movenet import start_movenet, takes_movenet
from cfpose_training.nets.efficientnet import LiteBackbone, LiteConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.skeletons import columns

Layout = Literal["simcc", "mmpose"]
BODY = "backbone.body."
IMAGENET_STEM = "_conv_stem.weight"  # as `efficientnet_lite_pytorch` names it
SKELETONS = {len(skeleton): skeleton for skeleton in (COCO_17, CROWDPOSE_14)}


@dataclass(frozen=True)
class Initialised:
    """What `initialise` loaded into a network, and which tensors of the file it did not use."""

    taken: tuple[str, ...]  # head layers that came from the file
    fresh: tuple[str, ...]  # "neck" and head layers that did not fit it, or that it lacks
    dropped: tuple[str, ...]
    joints: tuple[str, ...] | None = None  # whose rows of the head are the file's; None: no names


def load_foreign(path: Path) -> Adopted:
    """Another project's checkpoint in our names. Raises ArtifactError, also for one of ours."""
    if path.suffix == ".safetensors" and SPEC_KEY in load_tensors(path)[1]:
        raise ArtifactError(f"{path} is a cfpose checkpoint already; pass --to to convert it")
    return adopt(read_state(path), path)


def save_adopted(adopted: Adopted, target: Path, *, name: str, spec: ModelSpec | None) -> None:
    """Write a pose checkpoint, or a backbone file for `initialise` where there is no head.

    `spec` is the model's contract; without it COCO's or CrowdPose's joints are told by their
    number, decoded by argmax. Raises ArtifactError when it does not fit the tensors.
    """
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in adopted.tensors.items()}
    if not adopted.has_head:
        config = json.dumps(
            {backbone_kind(adopted.backbone): dataclasses.asdict(adopted.backbone)}, sort_keys=True
        )
        save_tensors(target, tensors, {NETWORK_KEY: config})
        return
    if spec is None:
        heads = {key.removeprefix("head."): value for key, value in tensors.items()}
        unnamed = head_spec(heads, target)
        joints = len(unnamed.skeleton)
        if joints not in SKELETONS:
            raise ArtifactError(f"{name} has {joints} joints; name them in a recipe (--recipe)")
        spec = dataclasses.replace(unnamed, name=name, skeleton=SKELETONS[joints])
    with torch.device("meta"):
        network = PoseNet(adopted.backbone, spec)
    if problems := misfits(network.state_dict(), tensors):
        raise ArtifactError(f"{name} does not fit the recipe: " + "; ".join(problems))
    network.load_state_dict(tensors, assign=True)
    save_pose(target, network, spec)


def export_state(checkpoint: Path, layout: Layout) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Our pose checkpoint as the reference's or mmpose's state dict, and the keys left behind."""
    network, _ = load_pose(checkpoint)
    pose = network.pose if isinstance(network, RefinedPoseNet) else network
    dropped = tuple(key for key in network.state_dict() if key.startswith("refiner."))
    tensors = pose.state_dict()
    if layout == "mmpose":  # whose prefixes are ours
        return dict(tensors), dropped
    return {key.split(".", 1)[1]: value for key, value in tensors.items()}, dropped


def save_state(path: Path, state: Mapping[str, Tensor], layout: Layout) -> None:
    """Write a state dict as its readers expect it (mmpose: inside `state_dict`), whole or not.

    Raises InputError when the place cannot be written to.
    """
    buffer = io.BytesIO()
    torch.save({"state_dict": dict(state)} if layout == "mmpose" else dict(state), buffer)
    write_file(path, buffer.getvalue())


def initialise(network: PoseNet, path: Path, joints: Sequence[str] = ()) -> Initialised:
    """Start a network from any understood checkpoint.

    `joints` are the names of the network's own: of a file that names its joints, those that both
    know keep their rows of the head. Without names a head of another number of joints is fresh.

    The backbone must fit whole. An EfficientNet body also takes its ImageNet weights, or those of
    the same body under another neck; then the neck above it stays as it was. Of a SimCC head each
    layer is taken that fits: another number of joints leaves `final_layer` as it was. Raises
    ArtifactError.
    A network of MoveNet's trunk begins on MoveNet's file, or on a checkpoint of such a network.
    """
    backbone, own = network.backbone, network.state_dict()
    given = joint_names(path) if joints else ()
    kept = tuple(name for name in joints if columns([name], given)[0] is not None)

    def matched(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not given or tuple(joints) == given:
            return dict(tensors)
        return with_rows(own, tensors, joints, given)

    if takes_movenet(network):
        taken, left = start_movenet(network, path, matched)
        return Initialised(taken, left, dropped=(), joints=kept if given else None)
    state = read_state(path)
    if isinstance(backbone, LiteBackbone) and IMAGENET_STEM in state:
        dropped = backbone.body.load_imagenet(state)
        return Initialised(taken=(), fresh=("neck", *_head_layers(network)), dropped=dropped)
    adopted = adopt(state, path)
    theirs, wanted, fresh = adopted.backbone, backbone.config, tuple[str, ...]()
    if isinstance(theirs, LiteConfig) and isinstance(wanted, LiteConfig):
        theirs = dataclasses.replace(theirs, frozen=wanted.frozen)
        if theirs.neck != wanted.neck:
            theirs, adopted = dataclasses.replace(theirs, neck=wanted.neck), _without_neck(adopted)
            fresh = ("neck",)
    if theirs != wanted:
        raise ArtifactError(f"{path} is an {theirs}, the network to start is an {wanted}")
    found = _take(network, matched(adopted.tensors), adopted.dropped)
    rows = kept if given and "head.final_layer" in found.taken else None
    return dataclasses.replace(found, fresh=(*fresh, *found.fresh), joints=rows)


def load_network(path: Path) -> tuple[PoseNet, ModelSpec]:
    """The pose network of a checkpoint or exported graph of ours, in eval mode, without a refiner.

    Raises ArtifactError when the file is another's.
    """
    if path.suffix != ".onnx":
        network, spec = load_pose(path)
        return (network.pose if isinstance(network, RefinedPoseNet) else network), spec
    start = open_initial(path)
    if start.spec is None:
        raise ArtifactError(f"{path} carries no {SPEC_KEY}, so it is not a cfpose pose graph")
    pose = PoseNet(start.backbone, start.spec, start.head)
    initialise(pose, path)
    return pose.eval(), start.spec


def _without_neck(adopted: Adopted) -> Adopted:
    kept = {k: v for k, v in adopted.tensors.items() if k.startswith((BODY, "head."))}
    left = tuple(key for key in adopted.tensors if key not in kept)
    return dataclasses.replace(adopted, tensors=kept, dropped=(*adopted.dropped, *left))


def _head_layers(network: PoseNet) -> tuple[str, ...]:
    return tuple(sorted({k.rsplit(".", 1)[0] for k in network.state_dict() if k[:5] == "head."}))


def _take(network: PoseNet, tensors: Mapping[str, Tensor], dropped: tuple[str, ...]) -> Initialised:
    """Load the backbone, and each layer of the head that fits."""
    own, layers = network.state_dict(), _head_layers(network)
    fits = {
        layer: all(
            key in tensors and tensors[key].shape == own[key].shape
            for key in (f"{layer}.weight", f"{layer}.bias")
        )
        for layer in layers
    }
    taken = {
        key: value
        for key, value in tensors.items()
        if key.startswith("backbone.") or fits[key.rsplit(".", 1)[0]]
    }
    network.load_state_dict({**own, **taken})
    return Initialised(
        taken=tuple(layer for layer in layers if fits[layer]),
        fresh=tuple(layer for layer in layers if not fits[layer]),
        dropped=dropped,
    )
