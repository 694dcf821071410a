"""Our checkpoints: weights and their ModelSpec in one safetensors file, read key by key.

A missing or an extra key is an error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dacite
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from cfpose_sdk.errors import ArtifactError, CfposeError
from cfpose_sdk.files import write_file
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec
from cfpose_training.nets.efficientnet import LiteConfig
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.movenet import MoveNetConfig
from cfpose_training.nets.pose_net import BackboneConfig, PoseNet, RefinedPoseNet

NETWORK_KEY = "cfpose.network"
BACKBONES: dict[str, type[BackboneConfig]] = {
    "hrnet": HRNetConfig,
    "lite": LiteConfig,
    "movenet": MoveNetConfig,
}
OPTIONS = dacite.Config(strict=True, cast=[tuple])


def backbone_kind(config: BackboneConfig) -> str:
    """The key of a backbone's options in a checkpoint's description."""
    return next(kind for kind, known in BACKBONES.items() if isinstance(config, known))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises InputError when the disk is full."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_file(path, save(contiguous, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises ArtifactError when it is not one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        hint = ""
        if path.suffix == ".onnx":
            hint = (
                f"; make a checkpoint of it: cfpose-train convert {path} -o {path.stem}.safetensors"
            )
        raise ArtifactError(f"cannot read the checkpoint {path}: {error}{hint}") from error


def misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Every key of `tensors` that is missing, unexpected or misshapen for a state dict."""
    problems = [f"missing {key}" for key in own if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in own]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    return problems


def load_strict(module: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Load a state dict; every missing, unexpected or misshapen key is named in ArtifactError."""
    if problems := misfits(module.state_dict(), tensors):
        raise ArtifactError(f"{origin} does not fit the network: " + "; ".join(problems))
    module.load_state_dict(tensors)


def save_pose(path: Path, network: PoseNet | RefinedPoseNet, spec: ModelSpec) -> None:
    """Write a pose checkpoint, with or without a refiner."""
    pose, refiner = (
        (network.pose, network.refiner) if isinstance(network, RefinedPoseNet) else (network, None)
    )
    configs: dict[str, Any] = {
        backbone_kind(pose.backbone.config): dataclasses.asdict(pose.backbone.config),
        "refiner": None if refiner is None else dataclasses.asdict(refiner.config),
    }
    if pose.head_name != "simcc":
        configs["head"] = pose.head_name
    metadata = {SPEC_KEY: spec.to_json(), NETWORK_KEY: json.dumps(configs, sort_keys=True)}
    save_tensors(path, network.state_dict(), metadata)


def load_spec(path: Path) -> ModelSpec:
    """The ModelSpec of a pose checkpoint, without its tensors. Errors as those of `load_pose`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"cannot read the checkpoint {path}: {error}") from error
    if SPEC_KEY not in metadata:
        raise ArtifactError(f"{path} is not a cfpose pose checkpoint: it carries no {SPEC_KEY}")
    return ModelSpec.from_json(metadata[SPEC_KEY])


def load_pose(path: str | Path) -> tuple[PoseNet | RefinedPoseNet, ModelSpec]:
    """Rebuild the network from its checkpoint, in eval mode.

    Raises ArtifactError for a foreign file or keys that do not fit, SpecError for its spec.
    """
    path = Path(path)
    tensors, metadata = load_tensors(path)
    if SPEC_KEY not in metadata or NETWORK_KEY not in metadata:
        raise ArtifactError(f"{path} is not a cfpose pose checkpoint: it carries no {SPEC_KEY}")
    spec = ModelSpec.from_json(metadata[SPEC_KEY])
    # building draws initial weights; leave the RNG alone
    with torch.random.fork_rng(devices=[]), _understood(path):
        configs = json.loads(metadata[NETWORK_KEY])
        kind = next((kind for kind in BACKBONES if kind in configs), "hrnet")
        backbone = dacite.from_dict(BACKBONES[kind], configs[kind], OPTIONS)
        pose = PoseNet(backbone, spec, configs.get("head", "simcc"))
        network: PoseNet | RefinedPoseNet = pose
        if configs["refiner"] is not None:
            config = dacite.from_dict(IGPGCNConfig, configs["refiner"], OPTIONS)
            network = RefinedPoseNet(pose, IGPGCN(config, spec.skeleton), spec)
    load_strict(network, tensors, path)
    return network.eval(), spec


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Turn any error from a damaged description of a network into ArtifactError."""
    try:
        yield
    except CfposeError:
        raise
    except (
        ValueError, LookupError, TypeError, AttributeError, RuntimeError, dacite.DaciteError,
    ) as error:  # fmt: skip
        raise ArtifactError(
            f"{path} is damaged, or of another version: {NETWORK_KEY} describes no network that "
            f"this one can build ({type(error).__name__}: {error}); write it anew"
        ) from error


def save_finder(path: Path, network: FinderNet, spec: FinderSpec) -> None:
    """Write a finder checkpoint."""
    configs = {"finder": dataclasses.asdict(network.config)}
    metadata = {FINDER_KEY: spec.to_json(), NETWORK_KEY: json.dumps(configs, sort_keys=True)}
    save_tensors(path, network.state_dict(), metadata)


def load_finder(path: Path) -> tuple[FinderNet, FinderSpec]:
    """Rebuild a finder from its checkpoint, in eval mode.

    Raises ArtifactError for a foreign file or keys that do not fit, SpecError for its spec.
    """
    tensors, metadata = load_tensors(path)
    if FINDER_KEY not in metadata or NETWORK_KEY not in metadata:
        raise ArtifactError(f"{path} is not a cfpose finder checkpoint: it carries no {FINDER_KEY}")
    with _understood(path):
        configs = json.loads(metadata[NETWORK_KEY])
        network = FinderNet(dacite.from_dict(FinderNetConfig, configs["finder"], OPTIONS))
    load_strict(network, tensors, path)
    return network.eval(), FinderSpec.from_json(metadata[FINDER_KEY])
