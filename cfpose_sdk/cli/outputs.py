"""Output files of `cfpose predict`: JSON, CSV, COCO results, OpenPose, pictures and videos.

A sink writes one frame at a time and keeps none in memory, so that videos may be long. Files appear
whole, at `finish`; after `abandon` none is left.

OpenPose's JSON, which motion-capture tools read, has BODY_25 or COCO-18 joints, one object a frame.
Joints are taken by name. The neck is the midpoint of the shoulders (BODY_25's middle of the hips
likewise) with the lower of the two confidences, unless the skeleton has a neck of its own. Joints
that the skeleton lacks, such as toes, are 0, 0, 0, as OpenPose writes joints it did not find. Faint
joints keep their coordinates; their confidence says how faint.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cfpose_sdk.errors import InputError
from cfpose_sdk.files import UnfinishedFile, check_output_folder, check_outputs, shown, write_file
from cfpose_sdk.formats import ROW_FIELDS, numbers
from cfpose_sdk.media.frames import Footage
from cfpose_sdk.media.image import write_picture
from cfpose_sdk.media.video_writer import VideoRecording
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

    `person_id` holds the track id, or -1 as in OpenPose without tracking.
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


_NAME_BYTES = 230  # of 255, with room for a number
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Sink(Protocol):
    """`add` every frame, then `finish` or `abandon`."""

    def begin(self, name: str, footage: Footage, video: bool) -> None:
        """A new source begins: its name, its footage, and whether it is a video."""

    def add(self, poses: Poses) -> None: ...

    def end(self) -> None:
        """The source ended."""

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class _FileSink:
    def __init__(self, path: str | Path) -> None:
        self._file = UnfinishedFile(path)

    def begin(self, name: str, footage: Footage, video: bool) -> None: ...

    def end(self) -> None: ...

    def finish(self) -> None:
        self._file.commit()

    def abandon(self) -> None:
        self._file.discard()


class _ListSink(_FileSink):
    """A JSON list with an item a line."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._before = "[\n"

    def extend(self, items: Iterable[Any]) -> None:
        for item in items:
            self._file.write(self._before + json.dumps(item, ensure_ascii=False, allow_nan=False))
            self._before = ",\n"

    def finish(self) -> None:
        self._file.write("[]\n" if self._before == "[\n" else "\n]\n")
        super().finish()


class JsonSink(_ListSink):
    """`Poses.to_dict` of every frame."""

    def add(self, poses: Poses) -> None:
        self.extend([poses.to_dict()])


class CocoSink(_ListSink):
    """COCO keypoint results of every person."""

    def add(self, poses: Poses) -> None:
        self.extend(poses.to_coco())


class CsvSink(_FileSink):
    """One row a person and joint."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._file.write(",".join(ROW_FIELDS) + "\n")

    def add(self, poses: Poses) -> None:
        text = io.StringIO()
        csv.DictWriter(text, ROW_FIELDS, lineterminator="\n").writerows(poses.rows())
        self._file.write(text.getvalue())


class OpenPoseSink(_ListSink):
    """One JSON list of frames, each with the name of its `image`."""

    def __init__(self, path: str | Path, layout: OpenPoseFormat) -> None:
        super().__init__(path)
        self._layout = layout

    def add(self, poses: Poses) -> None:
        self.extend([{"image": poses.source, **openpose_frame(poses, self._layout)}])


@dataclass
class _FolderSink:
    folder: Path
    used: set[Path] = field(default_factory=set)

    def begin(self, name: str, footage: Footage, video: bool) -> None: ...

    def end(self) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...

    def place(self, stem: str, ending: str) -> Path:
        """A path in the folder that no earlier file of this run has, and that is no link.

        A stem that would make the name too long for a file system is cut.
        """
        stem = stem.encode(errors="replace")[: _NAME_BYTES - len(ending)].decode(errors="ignore")
        place, count = self.folder / f"{stem}{ending}", 1
        while place in self.used or place.is_symlink():
            count += 1
            place = self.folder / f"{stem}-{count}{ending}"
        self.used.add(place)
        return place


@dataclass
class OpenPoseFolderSink(_FolderSink):
    """One file a frame, NAME_keypoints.json, as OpenPose's `--write_json` makes them."""

    layout: OpenPoseFormat = "body25"
    _video: Path | None = None  # the video's part of the names: its frames are not remembered

    def begin(self, name: str, footage: Footage, video: bool) -> None:
        self._video = self.place(Path(name).stem, "") if video else None

    def add(self, poses: Poses) -> None:
        if self._video is None:
            place = self.place(Path(str(poses.source)).stem, "_keypoints.json")
        else:
            place = self._video.with_name(f"{self._video.name}-{poses.frame:06d}_keypoints.json")
        write_file(place, json.dumps(openpose_frame(poses, self.layout)))


@dataclass
class PictureSink(_FolderSink):
    """Drawn photos under their own names; a video becomes one video of its nominal fps and its
    size, made even.
    """

    covariance: bool = False
    _recording: VideoRecording | None = None

    def begin(self, name: str, footage: Footage, video: bool) -> None:
        if video:
            suffix = Path(name).suffix.lower()
            place = self.place(Path(name).stem, suffix if suffix in (".avi", ".mp4") else ".mp4")
            self._recording = VideoRecording(place, footage.fps)

    def add(self, poses: Poses) -> None:
        picture = poses.plot(covariance=self.covariance)
        if self._recording is not None:
            self._recording.add(picture)
            return
        name = Path(str(poses.source))
        suffix = name.suffix if name.suffix.lower() in _PICTURE_SUFFIXES else ".jpg"
        write_picture(self.place(name.stem, suffix), picture)

    def end(self) -> None:
        if self._recording is not None:
            self._recording.finish()
            self._recording = None

    def abandon(self) -> None:
        if self._recording is not None:
            self._recording.abandon()
            self._recording = None


@dataclass(frozen=True)
class OutputFiles:
    """The files and folders that `cfpose predict` was asked to write; None: not asked for."""

    coco: str | None = None
    json: str | None = None
    csv: str | None = None
    openpose: Path | None = None  # a .json file, else a folder
    openpose_format: OpenPoseFormat = "body25"
    pictures: Path | None = None  # a folder for drawn photos and videos

    def check(self, sources: Sequence[Path]) -> None:
        """Raise InputError unless all can be written without harm to the sources or each other."""
        files = {"--coco": self.coco, "--json": self.json, "--csv": self.csv}
        named = {option: Path(file) for option, file in files.items() if file is not None}
        if self.openpose is not None and self.openpose.suffix.lower() == ".json":
            named["--openpose"] = self.openpose
        elif self.openpose is not None:
            check_output_folder("--openpose", self.openpose)
        check_outputs(named, sources)
        if self.pictures is not None:
            check_output_folder("--save", self.pictures)
            _refuse_overwriting(sources, self.pictures)

    def open(self) -> list[Sink]:
        """A sink for each. Raises InputError, and leaves no file, when one cannot be written."""
        sinks: list[Sink] = []
        try:
            for sink in self._opened():
                sinks.append(sink)
        except BaseException:
            for sink in sinks:
                sink.abandon()
            raise
        return sinks

    def _opened(self) -> Iterator[Sink]:
        if self.coco is not None:
            yield CocoSink(self.coco)
        if self.json is not None:
            yield JsonSink(self.json)
        if self.csv is not None:
            yield CsvSink(self.csv)
        if self.openpose is not None:
            if self.openpose.suffix.lower() == ".json":
                yield OpenPoseSink(self.openpose, self.openpose_format)
            else:
                yield OpenPoseFolderSink(self.openpose, layout=self.openpose_format)
        if self.pictures is not None:
            yield PictureSink(self.pictures)


def _refuse_overwriting(sources: Sequence[Path], folder: Path) -> None:
    place = os.path.realpath(folder)
    for source in sources:
        # of a link both are kept: the link, and the file that it leads to
        if place in (os.path.realpath(source.parent), os.path.dirname(os.path.realpath(source))):
            raise InputError(
                f"--save {shown(folder)} is the folder of {shown(source.name)}, which would be "
                f"overwritten; choose another"
            )
