"""Run the labeller over all photos, and write its annotation file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import cfpose_sdk
from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.commands import watched
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.detectors.base import Detections, Detector, as_detections
from cfpose_sdk.errors import ArtifactError, DatasetError
from cfpose_sdk.files import digest, sha256, write_file
from cfpose_sdk.media.image import read_image
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.labels.annotations import LabelWriter
from cfpose_training.labels.journal import Journal, Sight
from cfpose_training.labels.labeller import (
    Labeller,
    LabellerFile,
    View,
    first_views,
    labeller_name,
)
from cfpose_training.labels.people import (
    Target,
    Who,
    annotated_targets,
    check_joints,
    photo_targets,
    unnamed_joints,
)
from cfpose_training.labels.quality import measure
from cfpose_training.labels.rules import LabelRules
from cfpose_training.run.state import Record, recorded

JOURNAL_SUFFIX = ".journal"


@dataclass(frozen=True)
class LabelOptions:
    """What a run labels, with which models, and where it writes.

    With `annotations`, `who` chooses the people whose boxes are used, and there is no detector;
    without, the detector finds the people in the photos of `images`.
    """

    out: Path
    images: Path
    labellers: tuple[LabellerFile, ...]
    annotations: Path | None = None
    who: Who = "unlabelled"
    detector: Path | None = None
    box_score: float = 0.4
    views: int = 4
    rules: LabelRules = field(default_factory=LabelRules)
    weight: float = 0.5
    licence: str = ""
    holdout_every: int = 0
    min_side: float = 32.0
    limit: int = 0
    threads: int | None = None
    resume: bool = False
    max_minutes: float = math.inf

    def __post_init__(self) -> None:
        if not self.labellers:
            raise DatasetError("give a model that labels")
        if (self.annotations is None) == (self.detector is None):
            raise DatasetError(
                "give either annotations, whose boxes are labelled, or a detector that finds "
                "people in photos without any"
            )
        if not 0 <= self.weight <= 1:
            raise DatasetError(f"the weight must lie in [0, 1], got {self.weight}")


def run_labelling(options: LabelOptions) -> dict[str, Any] | None:
    """Label, and write `options.out`; returns its content, or None when time ran out first.

    Raises DatasetError, ArtifactError and InputError for what cannot be used, TrainingError when
    the journal beside `out` is another run's, or any and `resume` is not set.
    """
    views, record = first_views(options.views), None
    if options.annotations is not None:
        record = read_annotations(options.annotations)
    files = _file_facts(options)
    with Labeller(*options.labellers, threads=options.threads) as labeller:
        if record is not None:
            check_joints(record, labeller.skeleton, str(options.annotations))
        targets = _targets(options, record)
        journal_path = options.out.with_name(options.out.name + JOURNAL_SUFFIX)
        made_from = _run_record(options, views, files, targets)
        with Journal(journal_path, made_from, resume=options.resume) as journal:
            if not _look_at_all(targets, options, labeller, views, journal):
                return None
            content = _content(options, record, targets, journal.done, labeller.skeleton)
    content["info"] |= {"views": [asdict(view) for view in views], "files": files}
    write_file(options.out, json.dumps(content, indent=1 if options.who == "measure" else None))
    return content


def _targets(options: LabelOptions, record: dict[str, Any] | None) -> list[Target]:
    """Whom to label: people of the record, or photos of the folder."""
    if record is None:
        return photo_targets(options.images)[: options.limit or None]
    return annotated_targets(
        record, options.images, options.who, min_side=options.min_side,
        holdout_every=options.holdout_every, limit=options.limit,
    )  # fmt: skip


def _look_at_all(
    targets: Sequence[Target],
    options: LabelOptions,
    labeller: Labeller,
    views: Sequence[View],
    journal: Journal,
) -> bool:
    """Look at every photo that the journal lacks; False when time ran out."""
    deadline = time.monotonic() + options.max_minutes * 60
    left = [target for target in targets if target.image["id"] not in journal.done]
    if not left:
        return True
    detector: Detector | None = None
    if options.detector is not None:
        settings = DetectorOptions(threshold=options.box_score)
        detector = open_detector(options.detector, settings, threads=options.threads)
    with tqdm(
        total=len(targets), initial=len(targets) - len(left), desc="labelling", unit="photo",
        disable=not watched(),
    ) as progress:  # fmt: skip
        for target in left:
            if time.monotonic() > deadline:
                return False
            _look_at(target, labeller, detector, options.min_side, views, journal)
            progress.update()
    return True


def _look_at(
    target: Target,
    labeller: Labeller,
    detector: Detector | None,
    min_side: float,
    views: Sequence[View],
    journal: Journal,
) -> None:
    image = read_image(target.path)
    height, width = image.shape[:2]
    if detector is None:
        stated = target.image["width"], target.image["height"]
        if stated != (width, height):
            raise DatasetError(
                f"{target.path} is {width} x {height} pixels, its annotations say "
                f"{stated[0]} x {stated[1]}; take the photos that they belong to"
            )
        boxes, scores = target.boxes(), np.ones(len(target.people or ()))
    else:
        detections: Detections = as_detections(detector(image))
        boxes, scores = detections.boxes.astype(np.float64), detections.scores.astype(np.float64)
        large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= min_side
        boxes, scores = boxes[large], scores[large]
    seen = labeller.look(image, boxes, views)
    journal.add(target.image["id"], (width, height), boxes, scores, seen)


def _content(
    options: LabelOptions,
    record: dict[str, Any] | None,
    targets: Sequence[Target],
    sights: dict[int, Sight],
    skeleton: Skeleton,
) -> dict[str, Any]:
    rules = options.rules
    info: dict[str, Any] = {
        "version": cfpose_sdk.__version__,
        "rules": rules.as_dict(),
        "license": options.licence,
    }
    if options.who == "measure":
        names = [file.path.stem for file in options.labellers]
        tables = measure(targets, sights, skeleton, rules, options.views, names)
        people = sum(len(target.people or ()) for target in targets)
        return {"info": info | {"people": people, "photos": len(targets)}, **tables}
    detector = "" if options.detector is None else options.detector.stem
    name = labeller_name(options.labellers)
    writer = LabelWriter(skeleton, rules, name, detector, options.weight)
    if record is not None and options.who == "fill":
        joints = unnamed_joints(record, len(skeleton))
        if record["annotations"] and not joints:
            raise DatasetError(
                f"{options.annotations} labels all {len(skeleton)} joints somewhere; there is "
                f"nothing to fill"
            )
        labels = writer.filled_people(record, targets, sights, joints)
    else:
        labels = writer.new_people(targets, sights)
    info |= {
        "description": f"{options.who} people, labelled by {name}",
        "weight": options.weight,
        "people_looked_at": sum(len(sights[target.image["id"]].boxes) for target in targets),
        **_totals(labels["annotations"], name),
    }
    categories = [_category(skeleton)] if record is None else record["categories"]
    return {"info": info, **labels, "categories": categories}


def _totals(annotations: Sequence[dict[str, Any]], labeller: str) -> dict[str, int]:
    """How many people and joints the labeller labelled."""
    givers = [person.get("origin", {"joints": []})["joints"] for person in annotations]
    counts = [joints.count(labeller) for joints in givers]
    return {"people": sum(count > 0 for count in counts), "joints": sum(counts)}


def _category(skeleton: Skeleton) -> dict[str, Any]:
    return {
        "id": 1,
        "name": "person",
        "keypoints": list(skeleton.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs],
    }


def _file_facts(options: LabelOptions) -> dict[str, dict[str, str]]:
    """Names and SHA-256 of what the labels are made from, and with which preset it was adopted."""
    roles = ["labeller", *(f"labeller {n}" for n in range(2, len(options.labellers) + 1))]
    models = dict(zip(roles, options.labellers, strict=True))
    others = {"detector": options.detector, "annotations": options.annotations}
    files = {role: LabellerFile(path) for role, path in others.items() if path is not None}
    try:
        return {
            role: {"name": file.path.name, "sha256": digest(file.path)}
            | ({"preset": file.preset} if file.preset else {})
            for role, file in (models | files).items()
        }
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error


def _run_record(
    options: LabelOptions,
    views: tuple[View, ...],
    files: dict[str, dict[str, str]],
    targets: Sequence[Target],
) -> Record:
    """What decides the predictions; rules, weight and licence are applied afterwards."""
    record = {
        role: f"a file with SHA-256 {facts['sha256'][:16]}"
        + (f", adopted as {facts['preset']}" if "preset" in facts else "")
        for role, facts in files.items()
    }
    if options.annotations is None:
        record["box_score"] = repr(options.box_score)
        names = "\n".join(target.image["file_name"] for target in targets)
        record["photos"] = f"names with SHA-256 {sha256(names.encode())[:16]}"
    else:
        record["who"] = options.who
    for name in ("holdout_every", "min_side", "limit"):
        record[name] = repr(getattr(options, name))
    return record | recorded(views, "views")
