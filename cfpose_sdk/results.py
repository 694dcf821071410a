"""Poses: the people of one image and their joints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Float32
from cfpose_sdk.errors import InputError
from cfpose_sdk.formats import (
    coco_image_id,
    coco_results,
    dataframe,
    key_points,
    person_records,
    table_rows,
)
from cfpose_sdk.media.draw import Colouring, draw_poses
from cfpose_sdk.media.image import Image, check_image, thumbnail, write_picture
from cfpose_sdk.skeleton import Skeleton

Index = int | np.integer[Any] | slice | list[int] | list[bool] | NDArray[Any]

# A joint of at least this confidence is `visible` and drawn. Confidence is calibrated: of joints
# with 0.3, 3 in 10 are where the model puts them. Less confident joints keep their coordinates.
VISIBLE_FROM = 0.3

_FLOATS = ("xy", "confidence", "boxes", "box_scores", "covariance", "xy_raw")


@dataclass(frozen=True, eq=False)
class Poses:
    """N people with K joints, in pixels of the given image; (x, y) order, centres at integers.

    Indexing and iterating give Poses again; iterating gives one person at a time. Raises
    InputError when the arrays do not fit each other.
    """

    xy: Float32  # (N, K, 2)
    confidence: Float32  # (N, K) in [0, 1]
    boxes: Float32  # (N, 4) xyxy
    box_scores: Float32  # (N,) in [0, 1]; 1 for boxes that came without a score
    skeleton: Skeleton
    image_size_wh: tuple[int, int]
    speed_ms: Mapping[str, float] = field(default_factory=dict)  # read, detect, crop, …, total
    ids: NDArray[np.int64] | None = None  # (N,)
    covariance: Float32 | None = None  # (N, K, 2, 2), pixels²
    image: Image | None = field(default=None, repr=False)  # the frame, by reference
    source: str | None = None  # its file name
    xy_raw: Float32 | None = None  # (N, K, 2) as measured, where `xy` was smoothed over time
    frame: int | None = None  # number in its video, from 0
    time_s: float | None = None  # since the first frame of the video
    calibrated: bool = True  # False: an adopted network's own scores, not fitted on any photos

    def __post_init__(self) -> None:
        for name in _FLOATS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=np.float32))
        if self.ids is not None:
            object.__setattr__(self, "ids", np.asarray(self.ids, dtype=np.int64))
        if self.xy.ndim != 3:
            raise InputError(f"xy must have shape (N, K, 2), got {self.xy.shape}")
        people, joints = len(self.xy), len(self.skeleton)
        for name, shape in (
            ("xy", (people, joints, 2)),
            ("confidence", (people, joints)),
            ("boxes", (people, 4)),
            ("box_scores", (people,)),
            ("ids", (people,)),
            ("covariance", (people, joints, 2, 2)),
            ("xy_raw", (people, joints, 2)),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if value.shape != shape:
                raise InputError(f"{name} must have shape {shape}, got {value.shape}")
            if name != "covariance" and not np.isfinite(value).all():
                raise InputError(f"{name} must be finite, got NaN or infinity")
        for name in ("confidence", "box_scores"):
            value = getattr(self, name)
            if ((value < 0) | (value > 1)).any():
                raise InputError(f"{name} must lie in [0, 1], got up to {value.max()}")

    @classmethod
    def empty(cls, skeleton: Skeleton, image_size_wh: tuple[int, int], **others: Any) -> Poses:
        """No people: all arrays with N = 0. `others` are further fields."""
        joints = len(skeleton)
        return cls(
            xy=np.zeros((0, joints, 2), np.float32),
            confidence=np.zeros((0, joints), np.float32),
            boxes=np.zeros((0, 4), np.float32),
            box_scores=np.zeros(0, np.float32),
            skeleton=skeleton,
            image_size_wh=image_size_wh,
            **others,
        )

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: Index) -> Poses:
        """People by position, slice, boolean mask or list of positions; always Poses."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"person {index} of {len(self)}")
            index = [int(index) % len(self)]
        elif isinstance(index, list) and not index:
            index = slice(0, 0)
        fields = ((name, getattr(self, name)) for name in (*_FLOATS, "ids"))
        chosen: dict[str, Any] = {n: None if v is None else v[index] for n, v in fields}
        return replace(self, **chosen)

    def __iter__(self) -> Iterator[Poses]:
        return (self[n] for n in range(len(self)))

    def __repr__(self) -> str:
        named = f" in {self.source}" if self.source else ""
        honest = "" if self.calibrated else ", uncalibrated"
        return f"Poses({len(self)} people x {len(self.skeleton)} joints{named}{honest})"

    @property
    def visible(self) -> NDArray[np.bool_]:
        """(N, K) confidence ≥ 0.3 (`VISIBLE_FROM`)."""
        seen: NDArray[np.bool_] = self.confidence >= VISIBLE_FROM
        return seen

    @property
    def xyn(self) -> Float32:
        """(N, K, 2) xy divided by the image's width and height."""
        normalised: Float32 = np.divide(self.xy, self.image_size_wh, dtype=np.float32)
        return normalised

    @property
    def speed(self) -> Mapping[str, float]:
        """The same as `speed_ms`."""
        return self.speed_ms

    def arrays(self) -> tuple[Float32, Float32]:
        """`keypoints, scores = poses.arrays()`: (N, K, 2) pixels and (N, K) confidence."""
        return self.xy, self.confidence

    def plot(
        self,
        image: Image | None = None,
        *,
        threshold: float = VISIBLE_FROM,
        boxes: bool = False,
        ids: bool = True,
        covariance: bool = False,
        labels: bool = False,
        line_width: float | None = None,
        colours: Colouring = "auto",
    ) -> Image:
        """A new BGR image with the poses drawn on `image`, by default the frame they came from.

        People with ids have a colour each and their number beside them, unless `ids` is False.
        `labels` writes the score of each box beside its person. `line_width` is in pixels; None
        grows with the person. `colours`: "sides" paints left and right apart, "people" gives each
        a colour; "auto" is people where they have ids. Raises InputError for other values.
        `covariance` adds the ellipse of two standard deviations around each joint that is drawn.
        """
        ground = self.image if image is None else check_image(image)
        if ground is None:
            raise InputError("these Poses carry no image; pass one: poses.plot(image)")
        return draw_poses(
            ground,
            self.xy,
            self.confidence,
            self.boxes,
            self.skeleton,
            threshold=threshold,
            show_boxes=boxes,
            ids=self.ids if ids else None,
            covariance=self.covariance if covariance else None,
            labels=self._labels(ids) if labels else None,
            line_width=line_width,
            colours=colours,
        )

    def _labels(self, ids: bool) -> list[str]:
        scores = [f"{score:.2f}" for score in self.box_scores]
        if self.ids is None or not ids:
            return scores
        return [f"{number} {score}" for number, score in zip(self.ids, scores, strict=True)]

    def save(self, path: str | Path, image: Image | None = None) -> Path:
        """Write `plot(image)` to a file; the suffix gives the format. Whole or not at all."""
        return write_picture(path, self.plot(image))

    def _repr_jpeg_(self) -> bytes | None:
        """A small picture for notebooks, which keep it; None without an image."""
        return None if self.image is None else thumbnail(self.plot())

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `image`, `size_wh`, `keypoints` (names), `speed_ms`, `people`; of a video
        frame also `frame`, its number, and `time_s`.
        """
        place = {"frame": self.frame, "time_s": self.time_s}
        return {
            "image": self.source,
            **{name: value for name, value in place.items() if value is not None},
            "size_wh": list(self.image_size_wh),
            "keypoints": list(self.skeleton.keypoints),
            "speed_ms": dict(self.speed_ms),
            "people": person_records(
                self.xy,
                self.confidence,
                self.visible,
                self.boxes,
                self.box_scores,
                ids=self.ids,
                covariance=self.covariance,
                xy_raw=self.xy_raw,
            ),
        }

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """COCO keypoint results: score = box score × mean confidence, bbox as x, y, w, h.

        The third number of each keypoint is its confidence. By default the id is the file name:
        an integer when its stem is one, else the name; of a video frame always its name. Raises
        InputError when there is no name.
        """
        if image_id is None:
            if self.source is None:
                raise InputError("these Poses come from an array; pass to_coco(image_id)")
            # a frame's name has no suffix to cut: 2024.01-000007 is of 2024.01.mp4
            image_id = coco_image_id(self.source) if self.frame is None else self.source
        return coco_results(image_id, self.xy, self.confidence, self.boxes, self.box_scores)

    def rows(self) -> list[dict[str, Any]]:
        """One flat record a person and joint; what `to_dataframe` and CSV files hold."""
        people = np.arange(len(self)) if self.ids is None else self.ids
        return table_rows(
            self.source,
            self.frame,
            self.skeleton.keypoints,
            people,
            self.xy,
            self.confidence,
            self.visible,
            self.boxes,
            self.box_scores,
        )

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of `rows()`. Raises MissingDependencyError without pandas."""
        return dataframe(self.rows())

    def to_supervision(self) -> Any:
        """supervision.KeyPoints. Raises MissingDependencyError without supervision.

        `data` holds what supervision has no field for: `tracker_id`, `covariance` (pixels²), which
        its ellipse annotator draws, and `xy_raw`.
        """
        named = (("tracker_id", self.ids), ("covariance", self.covariance), ("xy_raw", self.xy_raw))
        data = {name: value for name, value in named if value is not None}
        return key_points(self.xy, self.confidence, self.visible, self.box_scores, data)
