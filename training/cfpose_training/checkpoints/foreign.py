"""Read checkpoints of other projects and our own, and translate their keys into our names.

Understood: the reference HRNet and SimCC state dicts (plain, under `module.`, or inside
`state_dict` / `best_state_dict`), mmpose's (`backbone.` and `head.`), HRNet's ImageNet weights, and
our own, checkpoints and exported graphs. Every tensor that is dropped is listed, and every one that
does not fit is an error.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.skeleton import Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.files import load_tensors, misfits
from cfpose_training.checkpoints.from_graph import read_graph
from cfpose_training.nets.efficientnet import SCALING, LiteConfig, LiteName, block_shapes
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import BackboneConfig, PoseNet, build_backbone

WRAPPERS = ("best_state_dict", "state_dict")  # the first that is there
BACKBONE = re.compile(r"(conv1|bn1|conv2|bn2|layer1|transition[123]|stage[234])\.")
LITE = re.compile(r"(body|lateral\d+|smooth\d+|down\d+)\.")
LITE_STEM = "body.conv_stem.weight"
HEAD = re.compile(r"(final_layer|mlp_head_x|mlp_head_y)\.")
CLASSIFIER = re.compile(r"(incre_modules|downsamp_modules|final_layer|classifier)\.")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Adopted:
    """A foreign checkpoint in our names."""

    backbone: BackboneConfig  # a graph does not tell how much of it was frozen
    tensors: Mapping[str, Tensor]  # `backbone.*`, and `head.*` where it has a SimCC head
    dropped: tuple[str, ...]  # its keys that have no place in a PoseNet
    filled: tuple[str, ...]  # our keys that files of PyTorch before 0.4.1 lack; zero

    @property
    def has_head(self) -> bool:
        """Whether it is a whole PoseNet, not a backbone alone."""
        return "head.mlp_head_x.weight" in self.tensors


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, without its wrapper and a `module.` before every key.

    `.safetensors`, what torch.save wrote (read with weights_only), or a fused `.onnx` of ours.
    Raises ArtifactError.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        return read_graph(path)
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    # plain data that the reference's and mmpose's files hold beside the weights
    array = np.zeros(1)
    rebuild, scalar = array.__reduce__()[0], array[0].__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"}
    harmless: list[Any] = [np.ndarray, np.dtype, *kinds]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        harmless += [(rebuild, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        # not PyTorch's own text, which advises to let the file run code
        why = getattr(error, "strerror", None) or "damaged, no such file, or one that runs code"
        raise ArtifactError(
            f"cannot read the checkpoint {path}: {why}; expected a file of tensors alone "
            f"(torch.save of a state dict)"
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, origin: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    if not isinstance(content, dict) or not content:
        raise ArtifactError(f"{origin} holds no state dict, got {type(content).__name__}")
    if other := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        raise ArtifactError(
            f"{origin} holds no state dict: no tensors are under {', '.join(other[:8])}"
        )
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def adopt(state: Mapping[str, Tensor], origin: Path) -> Adopted:
    """Translate a state dict of any understood layout; its network is read off its shapes.

    Raises ArtifactError naming every key that is missing, unexpected or misshapen.
    """
    plain, dropped = _reference_names(state, origin)
    config = _lite_of(plain) if LITE_STEM in plain else _hrnet_of(plain, origin)
    with torch.device("meta"):
        if "mlp_head_x.weight" in plain or "mlp_head_y.weight" in plain:
            own = PoseNet(config, head_spec(plain, origin)).state_dict()
        else:
            body = build_backbone(config).state_dict()
            own = {f"backbone.{key}": value for key, value in body.items()}
    ours = {_our_name(key): value for key, value in plain.items()}
    filled: list[str] = []
    if not any(key.endswith(COUNTER) for key in ours):
        filled = [key for key in own if key.endswith(COUNTER)]
        ours |= {key: torch.zeros((), dtype=torch.long) for key in filled}
    if problems := misfits(own, ours):
        kind = "EfficientNet pose network" if LITE_STEM in plain else "HRNet"
        raise ArtifactError(f"{origin} is no {kind} that fits: " + "; ".join(problems))
    return Adopted(config, {key: ours[key] for key in own}, tuple(dropped), tuple(filled))


def _our_name(key: str) -> str:
    """The reference's name → ours; a name of neither part stays, to be refused as unexpected."""
    if BACKBONE.match(key) or LITE.match(key):
        return f"backbone.{key}"
    return f"head.{key}" if HEAD.match(key) else key


def _reference_names(
    state: Mapping[str, Tensor], origin: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the reference's names, and the keys that have no place in a PoseNet."""
    plain: dict[str, Tensor] = {}
    original: dict[str, str] = {}
    dropped: list[str] = []
    for key, value in state.items():
        if key.startswith("refiner."):  # of our own refined checkpoints
            dropped.append(key)
            continue
        name = re.sub(r"^(pose\.)?(backbone|head|keypoint_head)\.", "", key)
        if name in plain:
            raise ArtifactError(f"{origin} holds {name} twice: as {original[name]} and as {key}")
        plain[name], original[name] = value, key
    is_classifier = any(key.startswith("classifier.") for key in plain)
    is_heatmap = not any(key.startswith("mlp_head_") for key in plain)
    last = max((int(m[1]) for key in plain if (m := re.match(r"stage4\.(\d+)\.", key))), default=0)
    unused = re.compile(rf"stage4\.{last}\.fuse_layers\.[123]\.")  # of the other three resolutions
    for name in list(plain):
        if (is_classifier and (CLASSIFIER.match(name) or unused.match(name))) or (
            is_heatmap and name.startswith("final_layer.")
        ):
            del plain[name]
            dropped.append(original[name])
    return plain, dropped


def _lite_of(plain: Mapping[str, Tensor]) -> LiteConfig:
    widths = (plain.get(f"smooth{stride}.0.weight", torch.empty(0)) for stride in (16, 8, 4))
    sixteenth, eighth, quarter = (weight.shape[0] for weight in widths)
    return LiteConfig(neck=(sixteenth, eighth, quarter), body=_lite_body(plain))


def _lite_body(plain: Mapping[str, Tensor]) -> LiteName:
    """The body whose blocks these are; lite0 when none is, to be refused by its keys."""
    outs: list[int] = []
    while (key := f"body.blocks.{len(outs)}.project_conv.weight") in plain:
        outs.append(plain[key].shape[0])
    for name in SCALING:
        if outs == [shape.out for shape in block_shapes(name)]:
            return name
    return "lite0"


def _hrnet_of(plain: Mapping[str, Tensor], origin: Path) -> HRNetConfig:
    needed = ("conv1.weight", "transition1.0.0.weight")
    if absent := [key for key in needed if key not in plain]:
        raise ArtifactError(
            f"{origin} is no HRNet: it lacks {', '.join(absent)}; its first keys are "
            f"{', '.join(list(plain)[:5])}"
        )

    def count(prefix: str) -> int:
        indices = [int(m[1]) for k in plain if (m := re.match(rf"{prefix}\.(\d+)\.", k))]
        return max(indices, default=0) + 1

    return HRNetConfig(
        width=plain["transition1.0.0.weight"].shape[0],
        stem=plain["conv1.weight"].shape[0],
        bottlenecks=count("layer1"),
        modules=(count("stage2"), count("stage3"), count("stage4")),
        blocks=count(r"stage2\.0\.branches\.0"),
    )


def head_spec(plain: Mapping[str, Tensor], origin: Path) -> ModelSpec:
    """Crop size, bins a pixel and number of joints of a SimCC head; the joints have no names.

    bins_x · bins_y = ratio² · width · height, and a cell is 4 x 4 pixels. Raises ArtifactError.
    """
    needed = ("final_layer.weight", "mlp_head_x.weight", "mlp_head_y.weight")
    if absent := [key for key in needed if key not in plain]:
        raise ArtifactError(f"{origin} has half a SimCC head: missing {', '.join(absent)}")
    joints = plain[needed[0]].shape[0]
    (bins_x, cells), bins_y = plain[needed[1]].shape, plain[needed[2]].shape[0]
    split_ratio = math.sqrt(bins_x * bins_y / (16 * cells))
    width, height = bins_x / split_ratio, bins_y / split_ratio
    size_wh = round(width), round(height)
    if math.dist((width, height), size_wh) > 1e-6 or size_wh[0] % 4 or size_wh[1] % 4:
        raise ArtifactError(
            f"{origin} has a SimCC head of {bins_x} and {bins_y} bins over {cells} cells, which "
            f"belongs to no crop of HRNet's"
        )
    names = tuple(f"joint {index}" for index in range(joints))
    skeleton = Skeleton(names, limbs=(), flip_pairs=(), oks_sigmas=(1.0,) * joints)
    return ModelSpec("foreign", skeleton, size_wh, decode="argmax", split_ratio=split_ratio)
