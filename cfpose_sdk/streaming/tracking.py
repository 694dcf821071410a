"""Tracking: the ids of people from frame to frame, and boxes for the next frame from the poses.

A track is matched to a pose by the mean of two similarities: the object keypoint similarity of the
joints that are confident in both, and the intersection over union of the boxes. The track is
compared where it was last seen and where its mean velocity would have brought it. The best pairs
are matched first. An id is never given twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.boxes import iou_matrix, nms
from cfpose_sdk.detectors.base import Detections
from cfpose_sdk.errors import InputError
from cfpose_sdk.oks import joint_oks, mean_oks
from cfpose_sdk.results import VISIBLE_FROM, Poses

# Joints end inside the body: eyes below the crown, ankles above the sole.
PADDING = 0.15  # of the joints' extent, on each side
FEWEST_JOINTS = 4  # confident ones; with fewer the pose has faded
SAME_PERSON_IOU = 0.8  # two poses that slid onto one person: the more confident stays


def carried_boxes(poses: Poses) -> Detections:
    """Padded extents of the confident joints of each pose, clipped to the frame, with its score.

    A pose with fewer than `FEWEST_JOINTS` joints of confidence ≥ `VISIBLE_FROM`, or whose box left
    the frame, is dropped. A box never grows from frame to frame by itself: it comes from the joints
    alone.
    """
    width, height = poses.image_size_wh
    seen = poses.visible
    enough = seen.sum(axis=1) >= FEWEST_JOINTS
    boxes, kept = [], []
    for person in np.flatnonzero(enough):
        points = poses.xy[person][seen[person]].astype(np.float64)
        low, high = points.min(axis=0), points.max(axis=0)
        pad = (high - low) * PADDING
        box = np.concatenate([low - pad, high + pad]).clip(0, [width, height, width, height])
        if (box[2:] - box[:2] >= 1).all():
            boxes.append(box)
            kept.append(person)
    if not boxes:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    array = np.asarray(boxes, dtype=np.float32)
    # mean confidence decides which of two poses on one person stays; order is kept
    alive = np.sort(nms(array, poses.confidence[kept].mean(axis=1), SAME_PERSON_IOU))
    return Detections(array[alive], poses.box_scores[kept][alive])


# COCO's sigmas are annotators' spread; a body moves further than that between two frames.
_LOOSER = 2.0
_VELOCITY_MEMORY = 0.6  # weight of the past in the running mean of a track's velocity
_LONGEST_STRIDE = 8  # frames over which a velocity is believed


@dataclass(frozen=True)
class TrackOptions:
    """`max_gap`: frames a person may be missing and still get the old id. `min_similarity`: in
    [0, 1]; below it a pose starts a new track. Raises InputError when a value is out of range.
    """

    max_gap: int = 30
    min_similarity: float = 0.15

    def __post_init__(self) -> None:
        if self.max_gap < 0:
            raise InputError(f"max_gap must be 0 frames or more, got {self.max_gap}")
        if not 0 < self.min_similarity <= 1:
            raise InputError(f"min_similarity must lie in (0, 1], got {self.min_similarity}")


@dataclass
class _Track:
    id: int
    xy: Float64  # (K, 2)
    confident: NDArray[np.bool_]  # (K,)
    box: Float64  # (4,)
    velocity: Float64  # (2,) pixels a frame
    missing: int = 0  # frames since it was seen


class Tracker:
    """Gives ids to the poses of one video, frame by frame; ids count from 1."""

    def __init__(self, options: TrackOptions | None = None) -> None:
        self.options = options or TrackOptions()
        self._tracks: list[_Track] = []
        self._next_id = 1

    def update(self, poses: Poses) -> Poses:
        """The same poses with `ids`; every pose gets one."""
        ids = np.zeros(len(poses), dtype=np.int64)
        for track in self._tracks:
            track.missing += 1
        for row, matched in self._pairs(poses):
            track = self._tracks[row]
            ids[matched] = track.id
            _follow(track, poses, matched)
        for person in np.flatnonzero(ids == 0):
            ids[person] = self._next_id
            self._next_id += 1
            self._tracks.append(_begin(int(ids[person]), poses, int(person)))
        # a person missed for max_gap frames is seen again with missing = max_gap + 1
        self._tracks = [t for t in self._tracks if t.missing <= self.options.max_gap]
        return replace(poses, ids=ids)

    def forget(self) -> None:
        """Start another video: its people get new ids, which go on counting."""
        self._tracks = []

    def _pairs(self, poses: Poses) -> list[tuple[int, int]]:
        """(track, person) by falling similarity, each at most once."""
        if not self._tracks or len(poses) == 0:
            return []
        least = self.options.min_similarity
        similarity = np.stack([_similarities(track, poses, least) for track in self._tracks])
        pairs: list[tuple[int, int]] = []
        while True:
            best = int(similarity.argmax())
            row, person = best // len(poses), best % len(poses)
            if similarity[row, person] < 0:
                return pairs
            pairs.append((row, person))
            similarity[row, :] = -1
            similarity[:, person] = -1


def _similarities(track: _Track, poses: Poses, least: float) -> Float64:
    """(N,) similarity of a track to each pose, where it was or where it went; −1 below `least`."""
    stride = track.velocity * min(track.missing, _LONGEST_STRIDE)
    there: list[Float64] = []
    for shift in (np.zeros(2), stride):
        box = track.box + np.tile(shift, 2)
        overlap = iou_matrix(box[None], poses.boxes)[0]
        there.append((_oks(track, poses, shift) + overlap) / 2)
    best: Float64 = np.maximum(*there)
    # of two people on one spot, the one whose way led there: velocity breaks the tie
    return np.where(best < least, -1.0, 0.25 * best + 0.75 * there[1])


def _oks(track: _Track, poses: Poses, shift: Float64) -> Float64:
    """(N,) mean over the joints that are confident in both; 0 where there is none."""
    both = track.confident & (poses.confidence >= VISIBLE_FROM)
    area = max(1.0, float(np.prod(track.box[2:] - track.box[:2])))
    sigmas = _LOOSER * np.asarray(poses.skeleton.oks_sigmas)
    return mean_oks(joint_oks(poses.xy, track.xy + shift, area, sigmas), both)


def _begin(number: int, poses: Poses, person: int) -> _Track:
    return _Track(
        number,
        poses.xy[person].astype(np.float64),
        poses.confidence[person] >= VISIBLE_FROM,
        poses.boxes[person].astype(np.float64),
        np.zeros(2),
    )


def _follow(track: _Track, poses: Poses, person: int) -> None:
    new = _begin(track.id, poses, person)
    both = track.confident & new.confident
    if both.any():
        # the median joint: one that jumps to another person does not drag the track along
        moved = np.median(new.xy[both] - track.xy[both], axis=0)
    else:
        moved = (new.box - track.box).reshape(2, 2).mean(axis=0)
    velocity = moved / track.missing
    track.velocity = _VELOCITY_MEMORY * track.velocity + (1 - _VELOCITY_MEMORY) * velocity
    track.xy, track.confident, track.box, track.missing = new.xy, new.confident, new.box, 0
