"""A foreign file and the user's words → the plan of its artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.adopt.decode.heatmap import Maps
from cfpose_export.adopt.decode.simcc import Vectors
from cfpose_export.adopt.decode.text import PREFIX
from cfpose_export.adopt.families import Answer, answer_shapes, known_joints, recognise
from cfpose_export.adopt.presets import SKELETONS as NAMED_SKELETONS
from cfpose_export.adopt.presets import Custom, chosen_preset, complete, skeleton_of
from cfpose_export.adopt.source import Source, precision_of, read_source, with_open_batch
from cfpose_export.graph.rules import POSE_OUTPUTS
from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import Skeleton
from cfpose_sdk.spec import Adoption, ModelSpec

_TAKEN = frozenset({"crops", "frame", "boxes", *POSE_OUTPUTS})


@dataclass(frozen=True)
class Plan:
    """Everything that the fused graph is made of; `core` may be the source's with an open batch."""

    source: Source
    core: onnx.ModelProto
    answer: Answer
    preset: Custom
    spec: ModelSpec

    @property
    def flip_order(self) -> list[int]:
        """(K,) joints of the mirrored crop."""
        return [int(joint) for joint in self.spec.skeleton.flip_order]

    @property
    def map_wh(self) -> tuple[int, int]:
        """Width and height of a heatmap."""
        shape = self.answer.shapes[0]
        return shape[3], shape[2]

    @property
    def maps(self) -> Maps:
        """What the heatmap decoder must know."""
        windows = self.spec.windows if self.preset.decode == "window" else ()
        joints = len(self.spec.skeleton)
        decode, blur = self.preset.decode, self.preset.blur
        return Maps(joints, self.map_wh, self.stride_xy, decode, blur, windows)

    @property
    def vectors(self) -> Vectors:
        """What the SimCC decoder must know."""
        preset = self.preset
        return Vectors(
            len(self.spec.skeleton),
            (self.answer.shapes[0][2], self.answer.shapes[1][2]),
            self.spec.split_ratio,
            preset.decode,
            preset.values,
            preset.score,
            preset.temperature,
        )

    @property
    def stride_xy(self) -> tuple[float, float]:
        """Crop pixels a map pixel: between outer centres with UDP, else between outer edges."""
        less = 1 if self.spec.geometry == "udp" else 0
        sides = zip(self.spec.size_wh, self.map_wh, strict=True)
        x, y = ((side - less) / (cells - less) for side, cells in sides)
        return x, y


def is_taken(name: str) -> bool:
    """Whether a value's name is the contract's, or one of ours."""
    return name in _TAKEN or name.startswith((PREFIX, "sampler.", "placement."))


def core_name(name: str) -> str:
    """What a value of the network is called inside the adopted graph."""
    return f"network.{name}" if is_taken(name) else name


LICENCE_UNKNOWN = "not stated"


@dataclass(frozen=True)
class AdoptOptions:
    """What the user says of a file. `fields` are those of Preset that are set otherwise."""

    license: str
    preset: str | None = None
    skeleton: str | None = None
    name: str | None = None
    size_wh: tuple[int, int] | None = None
    outputs: tuple[str, ...] = ()
    flip_test: bool = False
    oks_window: float = 1.0  # of decode `window`, as the spec's
    trained_on: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.license.strip():
            raise InputError(
                f"the licence must be named, such as Apache-2.0; where the file has none: "
                f"--license {LICENCE_UNKNOWN!r}"
            )


def plan_adoption(path: Path, options: AdoptOptions) -> Plan:
    """Read, recognise, and decide. Raises ArtifactError for a file that cannot be adopted,
    InputError for what is missing or contradicts the file.
    """
    preset = chosen_preset(options.preset, options.fields)
    source = read_source(path, options.size_wh)
    shapes, values = answer_shapes(source)
    named = options.skeleton in NAMED_SKELETONS
    wanted = len(NAMED_SKELETONS[options.skeleton]) if named and options.skeleton else None
    joints = known_joints(wanted, preset.skeletons)
    answer = recognise(source, shapes, preset.family, joints, options.outputs)
    if answer.family == "simcc" and _sum_to_one([values[name] for name in answer.outputs]):
        preset = dataclasses.replace(preset, values="probabilities")
    custom = complete(preset, answer.family, source.size_wh[1])
    skeleton = skeleton_of(options.skeleton, answer.joints, preset)
    if answer.family == "simcc":
        _check_ratio(source, answer, preset.split_ratio)
    core, batch = source.model, source.batch
    if batch and (opened := with_open_batch(source)) is not None:
        core, batch = opened, 0
    if batch and options.flip_test:
        raise InputError(
            f"{path.name} takes {batch} crops at once and cannot be made to take more, which "
            f"--flip-test needs; export it with a dynamic batch"
        )
    spec = _spec(source, answer, custom, options, batch, skeleton)
    return Plan(source, core, answer, custom, spec)


def _spec(
    source: Source,
    answer: Answer,
    preset: Custom,
    options: AdoptOptions,
    batch: int,
    skeleton: Skeleton,
) -> ModelSpec:
    ratio = 2.0
    if answer.family == "simcc":
        ratio = answer.shapes[0][2] / source.size_wh[0]
    red, green, blue = (value / 255 for value in preset.mean)
    wide, tall, deep = (value / 255 for value in preset.std)
    return ModelSpec(
        name=options.name or source.path.stem,
        skeleton=skeleton,
        size_wh=source.size_wh,
        decode="argmax" if preset.decode == "argmax" else "subbin",
        oks_window=options.oks_window if preset.decode == "window" else 0.0,
        box_scale=preset.box_scale,
        geometry=preset.geometry,
        split_ratio=ratio,
        mean_rgb=(red, green, blue),
        std_rgb=(wide, tall, deep),
        flip_test=options.flip_test,
        precision=precision_of(source.model),
        trained_on=options.trained_on,
        license=options.license,
        adopted=Adoption(
            family=preset.family,
            decode=preset.decode,
            preset=options.preset or "none",
            source=source.path.name,
            sha256=source.sha256,
            batch=batch,
            settings=_settings(preset, source),
        ),
    )


def _check_ratio(source: Source, answer: Answer, given: float | None) -> None:
    found = answer.shapes[0][2] / source.size_wh[0]
    if given not in (None, found):
        raise InputError(
            f"{source.path.name} has {found:g} bins a pixel, --split-ratio says {given:g}"
        )


def _settings(preset: Custom, source: Source) -> dict[str, Any]:
    """What the spec says beside the family: only what this family's reading uses."""
    settings: dict[str, Any] = {
        "colour": preset.colour,
        "layout": "NCHW" if source.channels_first else "NHWC",
        "input": source.dtype.name,
        "file_batch": source.batch or "N",
    }
    if preset.family == "simcc":
        settings |= {"score": preset.score, "values": preset.values}
        settings["temperature"] = preset.temperature
    if preset.decode in ("dark", "dark-udp"):
        settings["blur"] = list(preset.blur)
    return settings


def _sum_to_one(vectors: list[Any]) -> bool:
    return all(
        bool((abs(v.astype("float64").sum(-1) - 1) < 1e-3).all() and (v >= 0).all())
        for v in vectors
    )
