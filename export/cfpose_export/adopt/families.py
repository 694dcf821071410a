"""Which outputs of a foreign network are its pose, by shape and name; doubt is an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_export.adopt.presets import PRESETS, SKELETONS
from cfpose_export.adopt.source import Source, run_network
from cfpose_sdk.errors import ArtifactError, InputError
from cfpose_sdk.spec import Family

Shapes = Mapping[str, tuple[int, ...]]
_PROBE_SEED = 0


@dataclass(frozen=True)
class Answer:
    """The outputs that hold the pose: one, or for SimCC those of x and y."""

    family: Family
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # as answered, with the batch in front

    @property
    def joints(self) -> int:
        """K."""
        return (
            self.shapes[0][2]
            if self.family == "coordinates" and len(self.shapes[0]) == 4
            else (self.shapes[0][1])
        )


def answer_shapes(source: Source) -> tuple[Shapes, dict[str, NDArray[Any]]]:
    """Shapes and values of the outputs on noise."""
    draw = np.random.Generator(np.random.PCG64(_PROBE_SEED))
    width, height = source.size_wh
    pixels = draw.uniform(0, 1, (source.batch or 2, height, width, 3))
    feeds = {source.input: source.pixels(pixels)}
    values = run_network(source.model, feeds, source.path.name)
    return {name: tuple(value.shape) for name, value in values.items()}, values


def recognise(
    source: Source,
    shapes: Shapes,
    family: Family | None,
    joints: Collection[int],
    only: Sequence[str] = (),
) -> Answer:
    """The outputs that are a pose. `joints`: the numbers that a skeleton is known for; `only`:
    names of the outputs to look at.

    Raises ArtifactError for a network that is none, or leaves two answers open, InputError for an
    unknown output and a family that is not the file's.
    """
    if unknown := sorted(set(only) - shapes.keys()):
        raise InputError(f"{source.path.name} has no output {unknown}; it has {sorted(shapes)}")
    batch = source.batch or 2
    seen = {n: s for n, s in shapes.items() if (not only or n in only) and s[:1] == (batch,)}
    found = _candidates(seen, source.size_wh)
    if not found:
        raise ArtifactError(_refusal(source, shapes))
    if family is not None and not any(a.family == family for a in found):
        fitting = [name for name, p in PRESETS.items() if p.family == found[0].family]
        raise InputError(
            f"the preset reads a {family} network, and {source.path.name} answers "
            f"{_words(shapes)}, which are {found[0].family}; take one of --preset "
            f"{'|'.join(fitting)}"
        )
    found = [answer for answer in found if family in (None, answer.family)]
    found = [answer for answer in found if answer.joints in joints] or found
    if len(found) > 1:
        raise ArtifactError(
            f"{source.path.name} has several outputs that could be the pose: "
            f"{[' and '.join(a.outputs) for a in found]}; choose with --network-output NAME "
            f"(SimCC: twice, x first)"
        )
    return found[0]


def known_joints(skeleton: int | None, preset: Sequence[str]) -> set[int]:
    """The numbers of joints to expect: the skeleton's, else the preset's, else all known."""
    if skeleton is not None:
        return {skeleton}
    return {len(SKELETONS[name]) for name in (preset or SKELETONS)}


def _candidates(shapes: Shapes, size_wh: tuple[int, int]) -> list[Answer]:
    width, height = size_wh
    found = []
    for name, shape in shapes.items():
        triples = len(shape) in (3, 4) and shape[-1] == 3 and shape[1:-2] in ((), (1,))
        if triples and shape[-2] > 1:
            found.append(Answer("coordinates", (name,), (shape,)))
        elif (
            len(shape) == 4
            and shape[2] > 4
            and shape[2] <= height
            and (shape[2] * width == shape[3] * height)
        ):
            found.append(Answer("heatmap", (name,), (shape,)))
    vectors = [(n, s) for n, s in shapes.items() if len(s) == 3 and s[2] >= min(size_wh)]
    for x_name, x_shape in vectors:
        for y_name, y_shape in vectors:
            along = x_shape[2] * height == y_shape[2] * width and x_shape[2] >= width
            if (
                x_name != y_name
                and x_shape[1] == y_shape[1]
                and along
                and (width != height or _in_order(x_name, y_name, list(shapes)))
            ):
                found.append(Answer("simcc", (x_name, y_name), (x_shape, y_shape)))
    return found


def _in_order(x_name: str, y_name: str, order: Sequence[str]) -> bool:
    """Of a square input: whether these are x and y by their names, else by their order."""
    ends = (x_name.lower().rstrip("0123456789")[-1:], y_name.lower().rstrip("0123456789")[-1:])
    if set(ends) == {"x", "y"}:
        return ends == ("x", "y")
    return order.index(x_name) < order.index(y_name)


def _refusal(source: Source, shapes: Shapes) -> str:
    """What the file seems to be instead."""
    label, ranks = source.path.name, {len(shape) for shape in shapes.values()}
    start = f"{label} answers {_words(shapes)} for {source.size_wh[0]} x {source.size_wh[1]} pixels"
    if ranks == {2}:
        return f"{start}, as a classifier does; expected heatmaps, SimCC vectors or coordinates"
    wide = [s for s in shapes.values() if len(s) == 3 and max(s[1:]) > 300]
    if any(56 in shape[1:] for shape in wide):
        return f"{start}, as a one-stage YOLO-pose does; measure it with: cfpose-bench --model " \
               f"yolopose:{label}"  # fmt: skip
    if wide or ranks & {3, 5} or len(shapes) > 2:
        return (
            f"{start}, as a detector does; give it as detector= of PoseEstimator, or --detector; "
            f"expected heatmaps, SimCC vectors or coordinates"
        )
    return (
        f"{start}; expected heatmaps [N, K, h, w] of the input's aspect ratio, SimCC vectors "
        f"[N, K, W·r] and [N, K, H·r], or coordinates [N, 1, K, 3]"
    )


def _words(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
