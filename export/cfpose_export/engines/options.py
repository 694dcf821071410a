"""How an engine is built: the options, the profiles that they make, and the build's progress."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cfpose_sdk.backends.tensorrt.library import Flavour
from cfpose_sdk.backends.tensorrt.passport import Compatible, Shape, Shapes
from cfpose_sdk.errors import ExportError, InputError

TARGETS = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120",
           "12.1": "SM121"}  # fmt: skip
COMPATIBLE = {"same-sm": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
SMALLEST_FRAME = 32  # pixels of a side
Report = Callable[[str], None]
_SECONDS = 2.0  # between two lines about one phase of a build


@dataclass(frozen=True)
class BuildOptions:
    """How to build. An engine has a profile, of its own kernels, for each number of people, and for
    each size of frame beyond the first one with all of them; a run takes the first that fits.

    Raises InputError when a value is out of range.
    """

    flavour: Flavour | Literal["auto"] = "auto"
    # crops, or boxes of a frame: from 1 to each of them, tuned for it
    people: tuple[int, ...] = (1, 8, 32)
    # (width, height): from SMALLEST_FRAME to the longer side in either direction, tuned for it
    frames: tuple[tuple[int, int], ...] = ((1920, 1080), (3840, 2160), (7680, 4320))
    targets: tuple[str, ...] = ()  # TensorRT-RTX: compute capabilities; () is its default set
    compatible: Compatible = ""  # TensorRT: other GPUs that the engine is for
    tf32: bool = False  # let float32 convolutions and products round their inputs to 10 bits
    level: int | None = None  # of optimisation, 0 to 5; None is the builder's own
    workspace_mib: int = 2048  # memory that a layer may take for itself; of a Jetson's shared one
    timing_cache: Path | None = None  # TensorRT: measured kernels, kept between builds

    def __post_init__(self) -> None:
        people, frames = self.people, self.frames
        if not people or people[0] < 1 or list(people) != sorted(set(people)):
            raise InputError(f"people must be rising numbers from 1 on, got {people}")
        sides = [max(size) for size in frames]
        if not frames or sides != sorted(set(sides)) or min(map(min, frames)) < SMALLEST_FRAME:
            raise InputError(
                f"frames must be sizes from {SMALLEST_FRAME} px on whose longer sides rise, got "
                f"{frames}"
            )
        if unknown := sorted(set(self.targets) - set(TARGETS)):
            raise InputError(f"targets must be of {list(TARGETS)}, got {unknown}")
        if self.compatible not in get_args(Compatible):
            raise InputError(f"compatible must be of {list(COMPATIBLE)}, got {self.compatible!r}")
        if self.workspace_mib < 1:
            raise InputError(f"workspace must be 1 MiB or more, got {self.workspace_mib}")

    def check(self, flavour: Flavour) -> None:
        """Raise InputError for options that a flavour does not have."""
        if flavour == "rtx" and self.timing_cache is not None:
            raise InputError("TensorRT-RTX has no timing cache; leave --timing-cache out")
        if flavour == "rtx" and self.compatible:
            raise InputError("TensorRT-RTX builds for --targets; leave --compatible out")
        if flavour == "tensorrt" and self.targets:
            raise InputError(
                "targets are for TensorRT-RTX; TensorRT builds for the GPU that is here, and with "
                "--compatible for others"
            )


def frame_size(text: str) -> tuple[int, int]:
    """ "1920x1080" → (1920, 1080). Raises InputError on anything else."""
    match = re.fullmatch("([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None:
        raise InputError(f"a frame's size is WIDTHxHEIGHT, such as 1920x1080, got {text!r}")
    return int(match[1]), int(match[2])


def profiles_of(
    inputs: Mapping[str, Shape], options: BuildOptions
) -> tuple[Mapping[str, Shapes], ...]:
    """The profiles of a network by its inputs' shapes, in which an unknown side is negative.

    `crops` and `boxes` are as many as there are people, `frame` is of any size, and of anything
    else there is one a run. Raises ExportError where another side than the first is unknown.
    """
    middle = options.people[len(options.people) // 2]
    pairs = [((count, count), options.frames[0]) for count in options.people]
    if "frame" in inputs:
        pairs += [((middle, options.people[-1]), size) for size in options.frames[1:]]
    profiles: list[Mapping[str, Shapes]] = []
    for counts, size_wh in pairs:
        shapes = {name: _range(name, shape, counts, size_wh) for name, shape in inputs.items()}
        if shapes not in profiles:
            profiles.append(shapes)
    return tuple(profiles)


def _range(name: str, shape: Shape, counts: tuple[int, int], size_wh: tuple[int, int]) -> Shapes:
    """Smallest, best and largest shape of an input in one profile."""
    width, height = size_wh
    longest = max(size_wh)
    sides = {
        "crops": ((1, *counts),),
        "boxes": ((1, *counts),),
        "frame": ((SMALLEST_FRAME, height, longest), (SMALLEST_FRAME, width, longest)),
    }.get(name, ((1, 1, 1),))
    unknown = [axis for axis, side in enumerate(shape) if side < 0]
    if len(unknown) > len(sides) or unknown != list(range(len(unknown))):
        raise ExportError(f"input {name} has shape {shape}; only its first sizes may be unknown")

    def fill(which: int) -> Shape:
        return tuple(sides[a][which] if side < 0 else side for a, side in enumerate(shape))

    return fill(0), fill(1), fill(2)


def monitored(trt: Any, report: Report) -> Any:
    """A progress monitor of TensorRT: each phase is reported, and a long one every few seconds."""
    totals: dict[str, int] = {}
    told: dict[str, float] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            totals[phase], told[phase] = steps, time.monotonic()
            report(f"{phase}: {steps} steps")

        def step_complete(self, phase: str, step: int) -> bool:
            if time.monotonic() - told.get(phase, 0.0) >= _SECONDS:
                told[phase] = time.monotonic()
                report(f"{phase}: {step + 1} of {totals.get(phase, 0)}")
            return True

        def phase_finish(self, phase: str) -> None:
            totals.pop(phase, None)

    return Monitor()
