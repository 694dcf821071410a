"""What a recipe may say: the range of every number, and which names are options.

A range stands by the dataclass and the field of `config` that hold the number; a field of several
numbers has one range for all of them. A test compares this table with the
dataclasses, so that no number is left without a range.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import dacite

LARGE = 10**9  # of what has no limit of its own


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; without the ends that are open."""

    low: float
    high: float = LARGE
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN lies in none."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.open_low else f"{self.low:g}"
        if self.high == LARGE:
            return low if self.open_low else f"{low} or more"
        return f"{low} {'to less than' if self.open_high else 'to'} {self.high:g}"


SHARE = Range(0, 1)
FROM_ZERO = Range(0)
COUNT = Range(1)
POSITIVE = Range(0, open_low=True)
MAX_BOX_SIGMA = 0.2  # opposite edges, off by 2 sigma each, keep a fifth of the side between them
CHANNELS = Range(1, 8192)
SIDE = Range(1, 8192)
LAYERS = Range(1, 64)

JOINT = Range(0, 199)

RANGES: dict[str, dict[str, Range]] = {
    "Skeleton": {"limbs": JOINT, "flip_pairs": JOINT, "oks_sigmas": Range(0, 1, open_low=True)},
    "OptimConfig": {
        "epochs": COUNT, "batch_size": COUNT, "lr": POSITIVE, "weight_decay": FROM_ZERO,
        "milestones": COUNT, "warmup_steps": FROM_ZERO, "final_lr": FROM_ZERO,
        "cosine_from": Range(0, 1, open_high=True), "mild_epochs": FROM_ZERO,
        "clip_norm": FROM_ZERO, "ema_decay": Range(0, 1, open_high=True),
        "seed": Range(0, 2**63 - 1), "workers": Range(0, 1024),
        "accumulate": COUNT,
    },
    "PhotoSource": {"repeat": COUNT, "holdout_every": FROM_ZERO},
    "FinderAugmentConfig": {
        "flip_p": SHARE, "zoom": Range(0, 100, open_low=True), "contrast": SHARE,
        "brightness": Range(0, 255), "mosaic_p": SHARE,
    },
    "FinderConfig": {
        "size_wh": SIDE, "deploy_size_wh": Range(0, 8192), "label_score": SHARE,
        "ignore_score": SHARE, "threshold": SHARE, "nms_iou": Range(0, 1, open_low=True),
    },
    "FinderNetConfig": {
        "channels": CHANNELS, "blocks": Range(0, 64), "head_channels": CHANNELS,
        "frozen": Range(0, 64), "box_grid": Range(0, 64),
    },
    "FitConfig": {"init_share": Range(0, 1, open_high=True)},
    "Source": {"repeat": COUNT, "holdout_every": FROM_ZERO},
    "AugmentConfig": {
        "flip_p": SHARE, "zoom_sigma": Range(0, 1, open_high=True), "rotation_p": SHARE,
        "rotation_sigma_deg": Range(0, 180), "half_body_p": SHARE,
        "half_body_min_joints": FROM_ZERO, "dropout_p": SHARE, "dropout_side": SHARE,
        "turn_p": SHARE,
        "contrast": SHARE, "brightness": Range(0, 255), "box_sigma": Range(0, MAX_BOX_SIGMA),
    },
    "LabelConfig": {
        "epsilon": Range(0, 1, open_high=True), "sigma_bins": POSITIVE, "softmax_beta": POSITIVE,
    },
    "DistillConfig": {
        "alpha": FROM_ZERO, "alpha_auto": FROM_ZERO,
        "beta": FROM_ZERO, "tau": POSITIVE, "logit_weight": FROM_ZERO,
    },
    "PoseConfig": {
        "size_wh": SIDE, "split_ratio": Range(0, 64, open_low=True),
        "box_scale": Range(0, 10, open_low=True), "deploy_box_scale": Range(0, 10),
        "oks_window": Range(0, 100), "spread_temperature": Range(0, 100, open_low=True),
        "spread_isotropy": SHARE,
    },
    "RefinerConfig": {
        "teacher_fraction": SHARE, "node_channels": CHANNELS, "joint_channels": CHANNELS,
        "output_weights": FROM_ZERO, "refine_below": SHARE, "init_noise_px": Range(0, 8192),
    },
    "HRNetConfig": {
        "width": CHANNELS, "stem": CHANNELS, "bottlenecks": LAYERS, "modules": LAYERS,
        "blocks": LAYERS,
    },
    "LiteConfig": {"neck": CHANNELS, "frozen": Range(0, 64)},
    "MoveNetConfig": {"frozen": Range(0, 64)},
}  # fmt: skip

# Options of before, and what stands in their place.
REMOVED = {
    "cst_ratio": "L_cst weighs as L1 does, as eq. (2) has it; leave it out",
    "logit_temperature": "kd_logit compares the bins as they are; leave it out",
    "alpha_auto_batches": "alpha_auto is measured on 20 batches; leave it out",
    "integral_head": 'sample_at = "integral" brings that head along; leave it out',
    "weight": "give a source's annotations joint_weights, or repeat the others",
    "quality_p": "no recipe gained from worse pictures; leave it out",
    "final": "best.safetensors is kept beside the last epoch's network; take it from there",
}


def out_of_range(options: object, name: str = "") -> Iterator[str]:
    """A sentence for each number of a dataclass, and of those in it, that its range does not hold.

    `name` is that of `options` in the recipe.
    """
    if isinstance(options, tuple):
        for index, item in enumerate(options):
            yield from out_of_range(item, f"{name}[{index}]")
    if not dataclasses.is_dataclass(options):
        return
    ranges = RANGES.get(type(options).__name__, {})
    for field in dataclasses.fields(options):
        value, place = getattr(options, field.name), f"{name}.{field.name}".lstrip(".")
        if field.name not in ranges:
            yield from out_of_range(value, place)
            continue
        for number in _numbers(value):
            # a whole number of TOML may be too large for math.isfinite
            real = isinstance(number, Real) and not isinstance(number, bool)
            if not (real and -math.inf < number < math.inf):
                yield f"{place} is {number}, expected a number: {ranges[field.name]}"
            elif not ranges[field.name].holds(number):
                yield f"{place} is {value}, expected {ranges[field.name]}"


def _numbers(value: Any) -> Iterator[Any]:
    """A number, or those of a tuple and of the tuples in it."""
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def unknown_options(table: Any, options: type, place: str = "") -> Iterator[str]:
    """A sentence for each key of a TOML table, and of the tables in it, that no field has, and for
    each value that stands where a list does.

    `options` is the dataclass that the table becomes, `place` its name in the recipe.
    """
    hints = typing.get_type_hints(options)
    names = [field.name for field in dataclasses.fields(options)]
    for key, value in table.items():
        where = f"{place}.{key}".lstrip(".")
        if key not in names:
            if key in REMOVED:
                yield f"{where} is no option any more: {REMOVED[key]}"
            else:
                yield f"{where} is no option; {_meant(key, names)}"
            continue
        below = next(_dataclasses(hints[key]), None)
        if typing.get_origin(hints[key]) is tuple and not isinstance(value, list):
            wanted = "a list in [ ]" if below is None else f"[[{where}]], a table each"
            yield f"{where} is {value!r}, expected {wanted}"
            continue
        if below is None:
            continue
        if isinstance(value, dict):
            yield from unknown_options(value, below, where)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield from unknown_options(item, below, f"{where}[{index}]")


def wrong_value(error: dacite.WrongTypeError) -> str:
    """What dacite says of a value; of one that is none of a few words, these words."""
    if typing.get_origin(error.field_type) is not Literal:
        return str(error)
    words = ", ".join(repr(word) for word in typing.get_args(error.field_type))
    return f"{error.field_path} is {error.value!r}, expected one of {words}"


def _meant(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(names)}"


def _dataclasses(hint: Any) -> Iterator[type]:
    """The dataclasses in a field's type, as in `Config | None` and `tuple[Config, ...]`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from _dataclasses(part)
