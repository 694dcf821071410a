"""OpenPose's JSON, which motion-capture tools read: BODY_25 or COCO-18 joints, one object a frame.

Joints are taken by name. The neck is the midpoint of the shoulders (BODY_25's middle of the hips
likewise) with the lower of the two confidences, unless the skeleton has a neck of its own. Joints
that the skeleton lacks, such as toes, are 0, 0, 0, as OpenPose writes joints it did not find. Faint
joints keep their coordinates; their confidence says how faint.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from cfpose_sdk.records import numbers
from cfpose_sdk.results import Poses

OpenPoseFormat = Literal["body25", "coco18"]

_ARMS = ("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder",
         "left_elbow", "left_wrist")  # fmt: skip
_LEGS = ("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle")
_FACE = ("right_eye", "left_eye", "right_ear", "left_ear")
_FEET = ("left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe",
         "right_heel")  # fmt: skip

JOINTS: dict[OpenPoseFormat, tuple[str, ...]] = {
    "body25": (*_ARMS, "mid_hip", *_LEGS, *_FACE, *_FEET),
    "coco18": (*_ARMS, *_LEGS, *_FACE),
}
_MIDPOINTS = {
    "neck": ("left_shoulder", "right_shoulder"),
    "mid_hip": ("left_hip", "right_hip"),
}


def openpose_frame(poses: Poses, layout: OpenPoseFormat = "body25") -> dict[str, Any]:
    """One frame as OpenPose's `write_json` has it; x and y in pixels of the frame.

    `person_id` holds the track id, or -1 as in OpenPose where nobody is tracked.
    """
    people = []
    for n in range(len(poses)):
        triples = [_joint(poses, n, name) for name in JOINTS[layout]]
        person: dict[str, Any] = {
            "person_id": [-1 if poses.ids is None else int(poses.ids[n])],
            "pose_keypoints_2d": [value for triple in triples for value in triple],
        }
        for part in ("face", "hand_left", "hand_right"):
            person[f"{part}_keypoints_2d"] = []
        for part in ("pose", "face", "hand_left", "hand_right"):
            person[f"{part}_keypoints_3d"] = []
        people.append(person)
    return {"version": 1.3, "people": people}


def _joint(poses: Poses, person: int, name: str) -> list[float]:
    names = poses.skeleton.keypoints
    ends = (name,) if name in names else _MIDPOINTS.get(name, ())
    if not ends or not all(end in names for end in ends):
        return [0.0, 0.0, 0.0]
    joints = [names.index(end) for end in ends]
    xy = poses.xy[person, joints].mean(axis=0)
    return numbers(np.append(xy, poses.confidence[person, joints].min()))
