"""Whose boxes a model sees, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from cfpose_bench.box_accuracy import box_accuracy
from cfpose_bench.candidates import parse_name
from cfpose_bench.dataset import KeypointDataset, read_boxes
from cfpose_bench.figures import Subject
from cfpose_bench.predictions import Boxes, Photos, predict_photo
from cfpose_bench.protocol import Protocol, box_label
from cfpose_bench.rounds import Entrant
from cfpose_bench.workers import Setting, Worker, open_worker


def given_boxes(source: str, dataset: KeypointDataset) -> Boxes | None:
    """Boxes by photo of `gt` or a file; None for `detector`."""
    if source == "gt":
        return dataset.ground_truth_boxes()
    return None if source == "detector" else read_boxes(source)


def boxes_for(worker: Worker, boxes: Boxes | None, found: Photos) -> Boxes | None:
    """What a model is handed: nothing where it finds people, else the boxes there are."""
    if worker.facts.one_stage or (boxes is None and not worker.facts.needs_boxes):
        return None
    if boxes is not None:
        return boxes
    return {
        i: np.column_stack([poses.boxes, poses.box_scores]).astype(np.float64)
        for i, poses in found.items()
        if poses is not None
    }


def found_boxes(
    subjects: Sequence[Subject],
    dataset: KeypointDataset,
    protocol: Protocol,
    setting: Setting,
    in_process: bool,
) -> Photos:
    """The finder's boxes for peers that cannot open it, by a pass of the bundled model."""
    asking = [s for s in subjects if s.worker.facts.needs_boxes and not s.worker.facts.one_stage]
    if "detector" not in protocol.boxes or not asking:
        return {}
    with closing(open_worker(parse_name("default"), setting, in_process=in_process)) as worker:
        return {i: predict_photo(worker, dataset, i, None) for i in dataset.image_ids}


def add_detection(entrant: Entrant, found: Photos) -> None:
    """A peer's photo takes as long to search as it took the finder."""
    for image_id, poses in entrant.photos.items():
        other = found.get(image_id)
        if poses is not None and other is not None:
            spent, speed = other.speed_ms.get("detect", 0.0), dict(poses.speed_ms)
            speed |= {"detect": spent, "total": speed.get("total", 0.0) + spent}
            entrant.photos[image_id] = replace(poses, speed_ms=speed)


def note_boxes(
    source: str,
    boxes: Boxes | None,
    subjects: Sequence[Subject],
    entrants: Sequence[Entrant],
    dataset: KeypointDataset,
    record: dict[str, Any],
) -> None:
    """Accuracy of boxes that were found, into the protocol; what a boxes file lacks is counted."""
    if source == "gt":
        return
    if boxes is None:
        pairs = zip(subjects, entrants, strict=True)
        finders = [e for s, e in pairs if not s.worker.facts.one_stage]
        if not finders:
            return
        boxes = {
            i: np.column_stack([p.boxes, p.box_scores]).astype(np.float64)
            for i, p in finders[0].photos.items()
            if p is not None
        }
    facts: dict[str, Any] = box_accuracy(dataset.annotations, boxes, dataset.image_ids) or {}
    facts["photos_without_boxes"] = sum(len(boxes.get(i, ())) == 0 for i in dataset.image_ids)
    known = {image["id"] for image in dataset.annotations["images"]}
    facts["photos_not_in_dataset"] = sum(image_id not in known for image_id in boxes)
    record.setdefault("box_accuracy", {})[box_label(source)] = facts
