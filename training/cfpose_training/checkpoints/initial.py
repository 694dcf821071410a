"""What a run can start from: files of ours and of others.

Such a file says which network it holds, with which joints, and how its artifact is used; a new head
keeps the rows of the joints that it knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dacite
import torch
from torch import Tensor

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.files import check_model_file
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from cfpose_training.checkpoints.files import BACKBONES, NETWORK_KEY, OPTIONS, load_tensors
from cfpose_training.checkpoints.foreign import adopt, read_state
from cfpose_training.checkpoints.from_graph import PREFIX, constants, load_graph
from cfpose_training.checkpoints.movenet import read_movenet
from cfpose_training.nets.movenet import WIDTHS, MoveNetConfig
from cfpose_training.nets.pose_net import BackboneConfig, HeadName
from cfpose_training.skeletons import columns

MOVENET_STEM = f"{PREFIX}backbone.stem.weight"
# tensors with rows for each joint, and how many
ROWS = {
    "head.final_layer.weight": 1, "head.final_layer.bias": 1,
    "head.heat.out.weight": 1, "head.heat.out.bias": 1,
    "head.regression.out.weight": 2, "head.regression.out.bias": 2,
    "head.prior": 1,
}  # fmt: skip
# of a joint that the start does not know, expected in the middle of the crop
FROM_ZERO = ("head.regression.out.weight", "head.regression.out.bias")


@dataclass(frozen=True)
class Initial:
    """A network to start from."""

    path: Path
    backbone: BackboneConfig
    head: HeadName
    spec: ModelSpec | None  # None: the file is another project's
    joints: tuple[str, ...]  # names, in the head's order; () where they are not known

    @property
    def is_whole(self) -> bool:
        """Whether the file is a pose model of ours, which can be measured as it is."""
        return self.spec is not None


def open_initial(path: Path) -> Initial:
    """Look at a file that a run starts from. Raises ArtifactError when it is none."""
    check_model_file(path, "a checkpoint or graph to start from")
    if path.suffix == ".safetensors":
        return _checkpoint(path)
    if path.suffix == ".onnx":
        return _graph(path)
    adopted = adopt(read_state(path), path)
    return Initial(path, adopted.backbone, "simcc", None, ())


def joint_names(path: Path) -> tuple[str, ...]:
    """The joints of a file that a network starts from; () where it does not name them."""
    if path.suffix == ".safetensors":
        text = load_tensors(path)[1].get(SPEC_KEY)
        return () if text is None else ModelSpec.from_json(text).skeleton.keypoints
    return _graph(path).joints if path.suffix == ".onnx" else ()


def is_own_graph(path: Path) -> bool:
    """Whether an ONNX file is a pose network that cfpose-export wrote from a checkpoint."""
    metadata = {entry.key: entry.value for entry in load_graph(path).metadata_props}
    return SPEC_KEY in metadata and ModelSpec.from_json(metadata[SPEC_KEY]).adopted is None


def _checkpoint(path: Path) -> Initial:
    tensors, metadata = load_tensors(path)
    if NETWORK_KEY not in metadata or SPEC_KEY not in metadata:
        return Initial(path, adopt(tensors, path).backbone, "simcc", None, ())
    spec, configs = ModelSpec.from_json(metadata[SPEC_KEY]), json.loads(metadata[NETWORK_KEY])
    kind = next(kind for kind in BACKBONES if kind in configs)
    backbone = dacite.from_dict(BACKBONES[kind], configs[kind], OPTIONS)
    return Initial(path, backbone, configs.get("head", "simcc"), spec, spec.skeleton.keypoints)


def _graph(path: Path) -> Initial:
    model = load_graph(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if SPEC_KEY not in metadata:
        body, _ = read_movenet(path)
        return Initial(path, MoveNetConfig(body), "marginal", None, COCO_17.keypoints)
    spec = ModelSpec.from_json(metadata[SPEC_KEY])
    if spec.adopted is not None:
        raise ArtifactError(
            f"{path} is an adopted {spec.adopted.family} network of another project; a run can "
            f"start from networks that it can build (ours, MoveNet's, HRNet's): give its own file "
            f"where it is one of them, or use it as a labeller (cfpose-train label)"
        )
    stem = constants(model.graph).get(MOVENET_STEM)
    for name, widths in WIDTHS.items():
        if stem is not None and widths[0] == len(stem):
            return Initial(path, MoveNetConfig(name), "marginal", spec, spec.skeleton.keypoints)
    backbone = adopt(read_state(path), path).backbone
    return Initial(path, backbone, "simcc", spec, spec.skeleton.keypoints)


def with_rows(
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    wanted: Sequence[str],
    given: Sequence[str],
) -> dict[str, Tensor]:
    """`tensors` of a head of the joints `given`, as a head of the joints `wanted` takes them.

    The rows of a joint that both know are the given ones, the others those of `own`, a fresh
    network's; rows of another width are left as they are, to be refused by their shape.
    """
    places = columns(wanted, given)
    matched = dict(tensors)
    for key, rows in ROWS.items():
        if key not in own or key not in tensors or own[key].shape[1:] != tensors[key].shape[1:]:
            continue
        value = torch.zeros_like(own[key]) if key in FROM_ZERO else own[key].detach().clone()
        for joint, place in enumerate(places):
            if place is not None:
                there = tensors[key][place * rows : (place + 1) * rows]
                value[joint * rows : (joint + 1) * rows] = there
        matched[key] = value
    return matched
