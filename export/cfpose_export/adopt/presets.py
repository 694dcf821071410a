"""What a foreign pose network's file does not say about itself, for the families of the field.

A preset is the custom of one project, taken from its own configuration; every field can be set
otherwise. What neither says is an error that names the option.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from cfpose_sdk.crops import Geometry
from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import COCO_17, COCO_WHOLEBODY_133, CROWDPOSE_14, HALPE_26, Skeleton
from cfpose_sdk.spec import READINGS, Family, Reading

Colour = Literal["rgb", "bgr"]
Score = Literal["min", "max", "mean"]  # of a SimCC network's two peaks
# of a SimCC network's vectors: probabilities as they are; logits, whose softmax is; or scores,
# whose peak is the confidence itself
Values = Literal["probabilities", "logits", "scores"]

SKELETONS: Mapping[str, Skeleton] = {
    "coco17": COCO_17,
    "crowdpose14": CROWDPOSE_14,
    "halpe26": HALPE_26,
    "wholebody133": COCO_WHOLEBODY_133,
}
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of RGB 0 to 255


@dataclass(frozen=True)
class Preset:
    """How a family of networks is fed and read; None and () are open, and need an option."""

    family: Family | None = None
    colour: Colour | None = None
    mean: tuple[float, float, float] | None = None  # of RGB, 0 to 255, whatever the order
    std: tuple[float, float, float] | None = None
    box_scale: float | None = None
    box_scales: Mapping[int, float] = dataclasses.field(default_factory=dict)  # by input height
    geometry: Geometry | None = None
    decode: Reading | None = None
    blur: tuple[int, float] | None = None  # of DARK: kernel (odd), sigma in map pixels
    score: Score = "min"
    values: Values | None = None
    temperature: float = 1.0  # SimCC: the softmax is of values / temperature
    split_ratio: float | None = None  # SimCC bins a pixel; None: from the shapes
    skeletons: tuple[str, ...] = ()  # that its networks are known with, by number of joints

    def __post_init__(self) -> None:
        if self.blur is not None and (self.blur[0] % 2 == 0 or self.blur[0] < 1):
            raise InputError(f"the blur's kernel must be odd, got {self.blur[0]}")
        if self.blur is not None and not self.blur[1] > 0:
            raise InputError(f"the blur's sigma must be positive, got {self.blur[1]}")
        for name, choices in (("colour", Colour), ("score", Score), ("geometry", Geometry)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise InputError(f"{name} must be one of {get_args(choices)}, got {value!r}")
        if self.std is not None and not all(side > 0 for side in self.std):
            raise InputError(f"std must be three positive numbers, got {self.std}")


@dataclass(frozen=True)
class Custom:
    """A preset of which nothing is open any more; the fields are Preset's."""

    family: Family
    colour: Colour
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    box_scale: float
    geometry: Geometry
    decode: Reading
    blur: tuple[int, float]
    score: Score
    values: Values
    temperature: float


# The tables of the projects' own configurations. mmpose's RTMPose and RTMW: RGB, SimCC with two
# bins a pixel, trained as softmax(10 x); transformers' ViTPose: UDP, DARK with sigma 0.8 (mmpose's
# own blurs with 2); HRNet: quarter shift; SimCC's authors score by the larger peak; PP-TinyPose:
# DARK with OpenCV's kernel of three, (1, 2, 1) / 4, whose sigma is 0.849; MoveNet's crops are ours
# to choose, the box scales are those that read best on COCO.
PRESETS: Mapping[str, Preset] = {
    "rtmpose": Preset(
        "simcc", "rgb", _MEAN, _STD, 1.25, {}, "classic", "argmax",
        values="scores", temperature=0.1, skeletons=("coco17", "halpe26", "wholebody133"),
    ),
    "rtmw": Preset(
        "simcc", "rgb", _MEAN, _STD, 1.25, {}, "classic", "argmax",
        values="scores", temperature=0.1, skeletons=("wholebody133",),
    ),
    "simcc-hrnet": Preset(
        "simcc", "rgb", _MEAN, _STD, 1.25, {}, "classic", "argmax",
        score="max", values="logits", skeletons=("coco17",),
    ),
    "vitpose": Preset(
        "heatmap", "rgb", _MEAN, _STD, 1.25, {}, "udp", "dark-udp",
        blur=(11, 0.8), skeletons=("coco17", "wholebody133"),
    ),
    "hrnet": Preset(
        "heatmap", "rgb", _MEAN, _STD, 1.25, {}, "classic", "shift",
        skeletons=("coco17", "wholebody133"),
    ),
    "tinypose": Preset(
        "heatmap", "rgb", _MEAN, _STD, 1.25, {}, "classic", "dark",
        blur=(3, 0.84932), skeletons=("coco17",),
    ),
    "movenet": Preset(
        "coordinates", "rgb", (0, 0, 0), (1, 1, 1), None, {192: 1.25, 256: 1.1}, "classic", "given",
        skeletons=("coco17",),
    ),
}  # fmt: skip


def chosen_preset(name: str | None, options: Mapping[str, Any]) -> Preset:
    """A preset (None: an empty one) with the options that were given.

    Raises InputError for an unknown name.
    """
    if name is not None and name not in PRESETS:
        raise InputError(f"no preset is called {name!r}; expected one of {', '.join(PRESETS)}")
    preset = Preset() if name is None else PRESETS[name]
    given = {key: value for key, value in options.items() if value is not None}
    preset = dataclasses.replace(preset, **given)
    if preset.family and preset.decode and preset.decode not in READINGS[preset.family]:
        raise InputError(
            f"--decode {preset.decode} is not for a {preset.family} network; expected one of "
            f"{READINGS[preset.family]}"
        )
    return preset


def complete(preset: Preset, family: Family, height: int) -> Custom:
    """The preset for a family and an input of this height.

    Raises InputError that names what is still open.
    """
    if preset.box_scale is None and height in preset.box_scales:
        preset = dataclasses.replace(preset, box_scale=preset.box_scales[height])
    needed = {
        "colour": "--colour rgb|bgr", "mean": "--mean R G B", "std": "--std R G B",
        "box_scale": "--box-scale S", "geometry": "--geometry classic|udp", "decode": "--decode D",
    }  # fmt: skip
    if family == "simcc":
        needed["values"] = f"--values {'|'.join(get_args(Values))}"
    missing = [option for name, option in needed.items() if getattr(preset, name) is None]
    if preset.decode in ("dark", "dark-udp") and preset.blur is None:
        missing.append("--blur KERNEL SIGMA")
    if missing:
        raise InputError(
            f"the file does not say how the network is fed and read; give a preset "
            f"(--preset {'|'.join(PRESETS)}) or: {', '.join(missing)}"
        )
    given: dict[str, Any] = {field.name: getattr(preset, field.name) for field in fields(Custom)}
    given |= {"family": family, "blur": preset.blur or (1, 1.0)}
    return Custom(**{**given, "values": preset.values or "scores"})


def skeleton_of(option: str | None, joints: int, preset: Preset) -> Skeleton:
    """The skeleton that `--skeleton` names, or the preset's of this many joints.

    `option`: a name of SKELETONS, or a JSON file with keypoints, limbs and flip_pairs (pairs from
    0), oks_sigmas; the last may be absent. Raises InputError when it does not have `joints` joints.
    """
    if option is None:
        fitting = [name for name in preset.skeletons if len(SKELETONS[name]) == joints]
        if len(fitting) == 1:
            return SKELETONS[fitting[0]]
        known = {name: len(skeleton) for name, skeleton in SKELETONS.items()}
        raise InputError(
            f"the network has {joints} joints, and "
            + (f"networks of this preset have {preset.skeletons}" if preset.skeletons else "")
            + f"; name them with --skeleton: one of {known}, or a JSON file"
        )
    skeleton = SKELETONS[option] if option in SKELETONS else _read_skeleton(Path(option))
    if len(skeleton) != joints:
        raise InputError(
            f"--skeleton {option} has {len(skeleton)} joints, the network {joints}; give the "
            f"skeleton that it was trained with"
        )
    return skeleton


def _read_skeleton(path: Path) -> Skeleton:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = [str(name) for name in record["keypoints"]]
        limbs = [(int(a) + 1, int(b) + 1) for a, b in record.get("limbs", ())]
    except OSError as error:
        raise InputError(
            f"--skeleton {path}: no such file, and no skeleton is called so; expected one of "
            f"{', '.join(SKELETONS)}, or a JSON file ({error})"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no skeleton ({error!r}); expected a JSON object with keypoints (names), "
            f"limbs and flip_pairs (pairs of joint numbers from 0) and oks_sigmas"
        ) from error
    kept = {key: record[key] for key in ("flip_pairs", "oks_sigmas") if record.get(key) is not None}
    return Skeleton.from_coco_category({"keypoints": names, "skeleton": limbs, **kept})
