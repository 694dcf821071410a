"""The labeller: a single-pose network that predicts each person in several views.

A view is another crop of the person: another margin, a small shift, mirrored or not. Joints that
the network predicts at the same place in all views are more likely right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cfpose_bench.peers.movenet import MoveNet
from cfpose_sdk.arrays import Float64
from cfpose_sdk.crops import mirror_points
from cfpose_sdk.errors import InputError
from cfpose_sdk.media.image import Image
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.checkpoints.heatmap_graph import HeatmapPoses


@dataclass(frozen=True)
class View:
    """One look at a person."""

    mirrored: bool = False
    scale: float = 1.0  # of the crop's side, as a multiple of the labeller's own
    shift_xy: tuple[float, float] = (0.0, 0.0)  # of the crop, in longer box sides


# The first N are taken. Shifts move a joint against the network's grid and its crop's edge.
VIEWS = (
    View(),
    View(mirrored=True),
    View(scale=1.15, shift_xy=(0.03, 0.02)),
    View(mirrored=True, scale=1.15, shift_xy=(-0.03, -0.02)),
    View(scale=1.3, shift_xy=(-0.02, 0.03)),
    View(mirrored=True, scale=1.3, shift_xy=(0.02, -0.03)),
)


def first_views(count: int) -> tuple[View, ...]:
    """The first `count` of VIEWS. Raises InputError when there are not so many."""
    if not 1 <= count <= len(VIEWS):
        raise InputError(f"the number of views must be 1 to {len(VIEWS)}, got {count}")
    return VIEWS[:count]


MOVENETS = ("movenet", "thunder", "lightning")  # in a file's name


def labeller_name(paths: Sequence[Path]) -> str:
    """The name under which files label together."""
    return " + ".join(path.stem for path in paths)


class Labeller:
    """One MoveNet file, or heat-map files whose maps are averaged; COCO's 17 joints.

    A file is a MoveNet when its name says `movenet`, `thunder` or `lightning`. Raises ArtifactError
    and BackendError as MoveNet and HeatmapPoses.
    """

    skeleton = COCO_17

    def __init__(self, *paths: Path, threads: int | None = None) -> None:
        self.name = labeller_name(paths)
        self._model: MoveNet | HeatmapPoses
        if len(paths) == 1 and any(part in paths[0].stem.lower() for part in MOVENETS):
            self._model = MoveNet(paths[0], threads=threads)
        else:
            self._model = HeatmapPoses(paths, threads=threads)

    def look(self, image: Image, boxes: Float64, views: Sequence[View]) -> Float64:
        """(V, N, K, 3) x and y in photo pixels, and score, of N people in (N, 4) xyxy boxes."""
        width = image.shape[1]
        joints = np.zeros((len(views), len(boxes), len(self.skeleton), 3))
        if not len(boxes):
            return joints
        mirrored_image = np.ascontiguousarray(image[:, ::-1])
        for row, view in zip(joints, views, strict=True):
            region = view_boxes(boxes, view)
            if view.mirrored:
                # continuous edges under x → W − 1 − x, the map of pixel centres
                region = np.column_stack(
                    [width - 1 - region[:, 2], region[:, 1], width - 1 - region[:, 0], region[:, 3]]
                )
            poses = self._model.predict(mirrored_image if view.mirrored else image, region)
            xy, score = poses.xy.astype(np.float64), poses.confidence
            if view.mirrored:
                xy = mirror_points(xy, width, self.skeleton.flip_order)
                score = score[:, self.skeleton.flip_order]
            row[..., :2], row[..., 2] = xy, score
        return joints

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def view_boxes(boxes: Float64, view: View) -> Float64:
    """(N, 4) boxes whose crops, by the labeller's own rule, are those of the view."""
    centre, span = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centre = centre + np.array(view.shift_xy) * span.max(axis=1, keepdims=True)
    half = span / 2 * view.scale
    return np.concatenate([centre - half, centre + half], axis=1)
