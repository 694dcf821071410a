"""The labeller: one pose model or several, each predicting each person in several views.

A view is another crop of the person: another margin, a small shift, mirrored or not. Joints that
all models predict at the same place in all views are more likely right.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cfpose_sdk.arrays import Float64
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.backends.foreign import adopted_file, split_preset
from cfpose_sdk.crops import mirror_points
from cfpose_sdk.errors import ArtifactError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import Image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import Skeleton


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


@dataclass(frozen=True)
class LabellerFile:
    """A model that labels, by name: what PoseEstimator opens, or PRESET:F.onnx."""

    path: Path  # of the file that the user has
    preset: str | None = None  # with which it is adopted into the cache, if it must be

    @classmethod
    def of(cls, name: str | Path) -> LabellerFile:
        """Parse `--labeller`; a bundled model's name is one too."""
        foreign = split_preset(str(name))
        return cls(model_file(name)) if foreign is None else cls(foreign[1], foreign[0])

    def artifact(self) -> Path:
        """The artifact to open. Raises ArtifactError when the file cannot be adopted."""
        return self.path if self.preset is None else adopted_file(self.preset, self.path)


def labeller_name(files: Sequence[LabellerFile]) -> str:
    """The name under which models label together."""
    return " + ".join(file.path.stem for file in files)


class Labeller:
    """Models that label together, of the same joints.

    Raises ArtifactError and BackendError as PoseEstimator, and ArtifactError for other joints.
    """

    def __init__(self, *files: LabellerFile, threads: int | None = None) -> None:
        self._opened = ExitStack()
        try:
            self._models = [
                self._opened.enter_context(PoseEstimator(file.artifact(), threads=threads))
                for file in files
            ]
        except BaseException:
            self._opened.close()
            raise
        self.skeleton: Skeleton = self._models[0].spec.skeleton
        for file, model in zip(files, self._models, strict=True):
            if model.spec.skeleton.keypoints != self.skeleton.keypoints:
                self._opened.close()
                raise ArtifactError(
                    f"{file.path.name} has the {len(model.spec.skeleton)} joints "
                    f"{', '.join(model.spec.skeleton.keypoints)}, {files[0].path.name} the "
                    f"{len(self.skeleton)} {', '.join(self.skeleton.keypoints)}; give labellers of "
                    f"the same joints"
                )

    def look(self, image: Image, boxes: Float64, views: Sequence[View]) -> Float64:
        """Looks (V · M, N, K, 4) of M models at N people in (N, 4) xyxy boxes, view by view.

        A joint is x and y in photo pixels, score, and spread: the geometric mean of the
        covariance's two standard deviations in photo pixels; 1 of all where a model gives none.
        """
        joints = np.zeros((len(views) * len(self._models), len(boxes), len(self.skeleton), 4))
        if not len(boxes):
            return joints
        mirrored_image = np.ascontiguousarray(image[:, ::-1])
        rows = iter(joints)
        for view in views:
            region = view_boxes(boxes, view)
            if view.mirrored:
                region = _mirrored_boxes(region, image.shape[1])
            for model in self._models:
                poses = model.predict(mirrored_image if view.mirrored else image, region)
                next(rows)[:] = self._joints(poses, image.shape[1], mirrored=view.mirrored)
        if not np.isfinite(joints[..., 3]).all():
            joints[..., 3] = 1
        return joints

    def _joints(self, poses: Poses, width: int, *, mirrored: bool) -> Float64:
        """(N, K, 4) of one look, in the photo as it is; spread NaN without a covariance."""
        xy, score = poses.xy.astype(np.float64), poses.confidence.astype(np.float64)
        spread = np.full(score.shape, np.nan)
        if poses.covariance is not None:
            area = np.linalg.det(poses.covariance.astype(np.float64))
            spread = np.maximum(area, 0) ** 0.25
        if mirrored:
            order = self.skeleton.flip_order
            xy, score = mirror_points(xy, width, order), score[:, order]
            spread = spread[:, order]
        return np.concatenate([xy, score[..., None], spread[..., None]], axis=-1)

    def close(self) -> None:
        """Free the models."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mirrored_boxes(boxes: Float64, width: int) -> Float64:
    """(N, 4) in the mirrored photo: continuous edges under x → W − 1 − x, as pixel centres."""
    return np.column_stack(
        [width - 1 - boxes[:, 2], boxes[:, 1], width - 1 - boxes[:, 0], boxes[:, 3]]
    )


def view_boxes(boxes: Float64, view: View) -> Float64:
    """(N, 4) boxes whose crops, by a model's own rule, are those of the view."""
    centre, span = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centre = centre + np.array(view.shift_xy) * span.max(axis=1, keepdims=True)
    half = span / 2 * view.scale
    return np.concatenate([centre - half, centre + half], axis=1)
