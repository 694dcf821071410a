"""Everything that an adopted graph is made of: the file, what it answers, how it is read."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from cfpose_export.adopt.families import Answer
from cfpose_export.adopt.heatmap import Maps
from cfpose_export.adopt.presets import Custom
from cfpose_export.adopt.simcc import Vectors
from cfpose_export.adopt.source import Source
from cfpose_export.adopt.text import PREFIX
from cfpose_export.graph.rules import POSE_OUTPUTS
from cfpose_sdk.spec import ModelSpec

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
