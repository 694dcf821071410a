"""One run: models opened, photos shown to them in turns, figures joined into rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.boxes import box_accuracy
from cfpose_bench.accuracy.coco import check_skeleton
from cfpose_bench.data.dataset import Boxes, KeypointDataset, Photos, read_boxes
from cfpose_bench.measurement import cpus_for
from cfpose_bench.models.open import Name, files_of, open_finder, parse_name
from cfpose_bench.models.workers import Setting, Worker, open_worker
from cfpose_bench.report.report import Measured
from cfpose_bench.run.predictions import Store, predict_photo
from cfpose_bench.run.protocol import BATCHES, PEOPLE, Protocol, box_label
from cfpose_bench.run.rounds import Entrant, people_timings, run_rounds
from cfpose_bench.run.rows import Subject, measured, with_people
from cfpose_sdk import __version__
from cfpose_sdk.detectors.base import BUNDLED_FINDER
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import digest, digest_of


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


OWN = "own"  # boxes of a model that finds the people itself


@dataclass(frozen=True)
class Plan:
    """What to run, and where."""

    models: tuple[str, ...]
    protocol: Protocol
    reference: str | None = None  # the model that the others drift from
    work: Path | None = None  # folder of finished predictions, to go on from
    peer_python: str | None = None  # interpreter of the peers' environment
    in_process: bool = False


def measure(plan: Plan, dataset: KeypointDataset) -> tuple[list[Measured], dict[str, Any]]:
    """Rows of all models under all kinds of boxes, and the report's protocol block."""
    protocol = plan.protocol
    texts = list(dict.fromkeys([*plan.models, *([plan.reference] if plan.reference else [])]))
    names = [parse_name(text) for text in texts]
    setting = Setting(
        device=protocol.device,
        threads=protocol.threads,
        cpus=() if plan.in_process else cpus_for(protocol.threads),
        find="detector" in protocol.boxes,
        detector=protocol.detector,
        flip_test=protocol.flip_test,
    )
    record = _protocol_record(plan, dataset)
    given: dict[str, Boxes | None] = {s: given_boxes(s, dataset) for s in protocol.boxes}
    with ExitStack() as opened:
        subjects: list[Subject] = []
        for name, label in zip(names, _labels(names), strict=True):
            worker = opened.enter_context(
                closing(
                    open_worker(name, setting, python=plan.peer_python, in_process=plan.in_process)
                )
            )
            check_skeleton(dataset.annotations, worker.facts.skeleton)
            if protocol.flip_test and name.adapter is not None:
                raise InputError(f"--model {name.text}: peers in processes of their own have no "
                                 f"flip test; omit --flip-test and --preset paper")  # fmt: skip
            subjects.append(Subject(name, label, worker, name.text == plan.reference))
        found = found_boxes(subjects, dataset, protocol, setting, plan.in_process)
        rows: list[Measured] = []
        for source in protocol.boxes:
            rows += _one_source(plan, dataset, subjects, source, given[source], found, record)
        timed = _people(subjects, dataset, protocol)
        rows = [_with_people(row, timed, subjects) for row in rows]
    if plan.reference is not None:
        record["reference"] = parse_name(plan.reference).label
    return rows, record


def _one_source(
    plan: Plan,
    dataset: KeypointDataset,
    subjects: Sequence[Subject],
    source: str,
    boxes: Boxes | None,
    found: Photos,
    record: dict[str, Any],
) -> list[Measured]:
    protocol, entrants = plan.protocol, []
    with ExitStack() as opened:
        taking = [
            s for s in subjects if not (s.worker.facts.one_stage and source != protocol.boxes[0])
        ]
        for subject in taking:
            own = boxes_for(subject.worker, boxes, found)
            store = None
            if plan.work is not None:
                key = _key(subject, source, own, plan, dataset)
                store = opened.enter_context(
                    closing(Store(plan.work, key, subject.worker.facts.skeleton))
                )
            entrants.append(Entrant(f"{subject.label}, boxes: {box_label(source)}",
                                    subject.worker, own, store))  # fmt: skip
        run_rounds(entrants, dataset, rounds=protocol.rounds, warmup=protocol.warmup)
    for subject, entrant in zip(taking, entrants, strict=True):
        facts = subject.worker.facts
        if source == "detector" and facts.needs_boxes and not facts.one_stage:
            add_detection(entrant, found)
    note_boxes(source, boxes, taking, entrants, dataset, record)
    record["taken_up"] = record.get("taken_up", 0) + sum(len(e.taken_up) for e in entrants)
    return [
        measured(
            subject,
            entrant,
            OWN if subject.worker.facts.one_stage else box_label(source),
            dataset,
            protocol,
            oks_threshold=protocol.oks_nms(source),
            base=_base(taking, entrants),
            reference=_base(taking, entrants) if plan.reference is not None else None,
        )
        for subject, entrant in zip(taking, entrants, strict=True)
    ]


def _base(subjects: Sequence[Subject], entrants: Sequence[Entrant]) -> Entrant:
    """Whose times the others' are divided by: the reference's, else the first model's."""
    for subject, entrant in zip(subjects, entrants, strict=True):
        if subject.is_reference:
            return entrant
    return entrants[0]


def _people(
    subjects: Sequence[Subject], dataset: KeypointDataset, protocol: Protocol
) -> Mapping[str, Any]:
    """Times by people a photo: on the photo with the most annotated people, its boxes repeated."""
    boxes = dataset.ground_truth_boxes()
    image_id = max(boxes, key=lambda i: len(boxes[i]))
    if protocol.repeats == 0 or len(boxes[image_id]) == 0:
        return {}
    entrants = [Entrant(s.label, s.worker, None) for s in subjects if not s.worker.facts.one_stage]
    counts = sorted({*PEOPLE, *BATCHES})
    return people_timings(
        entrants,
        dataset,
        image_id,
        boxes[image_id],
        counts,
        repeats=protocol.repeats,
        warmup=protocol.warmup,
    )


def _with_people(row: Measured, timed: Mapping[str, Any], subjects: Sequence[Subject]) -> Measured:
    worker = next(s.worker for s in subjects if s.label == row.model)
    more = with_people(timed.get(row.model, {}), worker.memory(), PEOPLE, BATCHES)
    return replace(row, **more)


def _labels(names: Sequence[Name]) -> list[str]:
    """Names for the report; those of equal file names are numbered."""
    labels: list[str] = []
    for name in names:
        copies = sum(other.split(" #")[0] == name.label for other in labels)
        labels.append(f"{name.label} #{copies + 1}" if copies else name.label)
    return labels


def _key(
    subject: Subject, source: str, boxes: Boxes | None, plan: Plan, dataset: KeypointDataset
) -> dict[str, Any]:
    """All that decides what a model answers to a photo."""
    protocol, name = plan.protocol, subject.name
    finder = Path(protocol.detector) if protocol.detector else BUNDLED_FINDER
    shown = {} if boxes is None else {str(i): np.asarray(b).tolist() for i, b in boxes.items()}
    return {
        "cfpose": __version__,
        "model": digest(*name.files),
        "adapter": None if name.adapter is None else digest(name.adapter),
        "boxes": digest_of(shown),
        "finder": digest(*files_of(finder)) if source == "detector" else None,
        "photos": digest_of({str(i): str(path.resolve()) for i, path in dataset.photos.items()}),
        "flip_test": protocol.flip_test,
        "threads": protocol.threads,
        "device": protocol.device,
        "rounds": protocol.rounds,
    }


def _protocol_record(plan: Plan, dataset: KeypointDataset) -> dict[str, Any]:
    people = sum(len(boxes) for boxes in dataset.ground_truth_boxes().values())
    record: dict[str, Any] = {
        "dataset": dataset.name,
        "images": len(dataset.photos),
        "missing_images": len(dataset.missing),
        "unannotated_images": dataset.unannotated,
        "instances": people,
        **plan.protocol.to_dict(),
        "isolation": "one process for all" if plan.in_process else "a process for each model",
    }
    if not dataset.has_keypoints:
        print("cfpose-bench: these people have boxes and no keypoints, so there is no AP",
              file=sys.stderr)  # fmt: skip
    if "detector" in plan.protocol.boxes:
        with closing(open_finder(plan.protocol.detector, "cpu")) as finder:
            record["detector"] = finder.name
            if (threshold := getattr(finder, "threshold", None)) is not None:
                record["detector_threshold"] = threshold
    return record
