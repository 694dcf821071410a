"""A whole measurement: open the models, predict in turns under each kind of boxes, make rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.boxes import box_accuracy, note_on_boxes
from cfpose_bench.accuracy.coco import check_skeleton
from cfpose_bench.data.annotations import is_crowdpose
from cfpose_bench.data.box_files import check_photos, read_box_file
from cfpose_bench.data.dataset import Boxes, KeypointDataset, Photos
from cfpose_bench.data.gaps import notes, sentences
from cfpose_bench.measurement import cpus_for
from cfpose_bench.models.open import ModelName, files_of, open_finder, parse_name
from cfpose_bench.models.workers import Setting, Worker, open_worker
from cfpose_bench.report.report import Row
from cfpose_bench.run.predictions import Store, predict_photo
from cfpose_bench.run.protocol import BATCHES, PEOPLE, Protocol, box_label
from cfpose_bench.run.rounds import Run, people_timings, run_rounds
from cfpose_bench.run.rows import row_of, with_people
from cfpose_sdk import __version__
from cfpose_sdk.arrays import Float64
from cfpose_sdk.backends.tuned import read_tuned
from cfpose_sdk.detectors.base import BUNDLED_FINDER
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import digest, digest_of


def given_boxes(
    source: str, dataset: KeypointDataset, record: dict[str, Any] | None = None
) -> Boxes | None:
    """Boxes by photo of `gt` or a file; None for `detector`.

    What of a file is not used is said on stderr, and counted in the protocol `record`. Raises
    DatasetError where that is all of it.
    """
    if source == "gt":
        return dataset.ground_truth_boxes()
    if source == "detector":
        return None
    known = {image["id"] for image in dataset.annotations["images"]}
    file = read_box_file(source, dataset.annotations["categories"][0]["id"])
    check_photos(source, file.boxes, known)
    strange = sum(len(rows) for image_id, rows in file.boxes.items() if image_id not in known)
    unused = {"of another category": file.other_category, "of photos not in the data set": strange}
    for what, count in unused.items():
        if count:
            say(f"{box_label(source)}: {count} boxes {what} are not used")
            left_out = (record if record is not None else {}).setdefault("boxes_not_used", {})
            left_out.setdefault(box_label(source), {})[what] = count
    return file.boxes


def say(sentence: str) -> None:
    """A note of the run, on stderr."""
    print(f"cfpose-bench: {sentence}", file=sys.stderr)


def note_data(dataset: KeypointDataset, record: dict[str, Any]) -> None:
    """Say, and write into the protocol, what the annotations lacked."""
    record |= notes(dataset.annotations)
    for sentence in sentences(dataset.name, notes(dataset.annotations)):
        say(sentence)


def note_sizes(runs: Sequence[Run], dataset: KeypointDataset, record: dict[str, Any]) -> None:
    """Say, and count in the protocol, photos of another size (or turned) than annotated."""
    if "photos_of_another_size" in record or not runs:
        return
    others = []
    for image in dataset.annotations["images"]:
        poses = runs[0].photos.get(image["id"])
        if poses is not None and "width" in image and "height" in image:
            annotated = (image["width"], image["height"])
            if poses.image_size_wh != annotated:
                others.append((image["file_name"], poses.image_size_wh, annotated))
    if others:
        name, (width, height), (wide, high) = others[0]
        record["photos_of_another_size"] = len(others)
        say(
            f"{len(others)} photos have another size than annotated, so their figures are wrong: "
            f"{name} has {width}x{height}, annotated are {wide}x{high}; take the photos that were "
            f"annotated, turned alike"
        )


def boxes_for(worker: Worker, boxes: Boxes | None, detected: Photos) -> Boxes | None:
    """What a worker is handed: nothing where it detects the people, else the boxes there are."""
    if worker.facts.one_stage or (boxes is None and not worker.facts.needs_boxes):
        return None
    return boxes_of(detected) if boxes is None else boxes


def boxes_of(photos: Photos) -> dict[int, Float64]:
    """(N, 5) boxes with scores of the poses of each photo that was read."""
    return {
        image_id: np.column_stack([poses.boxes, poses.box_scores]).astype(np.float64)
        for image_id, poses in photos.items()
        if poses is not None
    }


def detect_for_peers(
    runs: Sequence[Run],
    dataset: KeypointDataset,
    protocol: Protocol,
    setting: Setting,
    in_process: bool,
) -> Photos:
    """The detector's boxes for peers that cannot open it, by a pass of the bundled model."""
    needing = [r for r in runs if r.worker.facts.needs_boxes and not r.worker.facts.one_stage]
    if "detector" not in protocol.boxes or not needing:
        return {}
    with closing(open_worker(parse_name("default"), setting, in_process=in_process)) as worker:
        return {i: predict_photo(worker, dataset, i, None) for i in dataset.image_ids}


def add_detection(run: Run, detected: Photos) -> None:
    """Add to each photo of a peer the time that the detector took on it."""
    for image_id, poses in run.photos.items():
        other = detected.get(image_id)
        if poses is not None and other is not None:
            spent, speed = other.speed_ms.get("detect", 0.0), dict(poses.speed_ms)
            speed |= {"detect": spent, "total": speed.get("total", 0.0) + spent}
            run.photos[image_id] = replace(poses, speed_ms=speed)


def note_boxes(
    source: str,
    boxes: Boxes | None,
    runs: Sequence[Run],
    dataset: KeypointDataset,
    record: dict[str, Any],
) -> None:
    """Write the accuracy of detected boxes into the protocol, and count what a boxes file lacks."""
    if source == "gt":
        return
    if boxes is None:
        detecting = [run for run in runs if not run.worker.facts.one_stage]
        if not detecting:
            return
        boxes = boxes_of(detecting[0].photos)
    facts: dict[str, Any] = box_accuracy(dataset.annotations, boxes, dataset.image_ids) or {}
    facts["photos_without_boxes"] = sum(len(boxes.get(i, ())) == 0 for i in dataset.image_ids)
    known = {image["id"] for image in dataset.annotations["images"]}
    facts["photos_not_in_dataset"] = sum(image_id not in known for image_id in boxes)
    record.setdefault("box_accuracy", {})[box_label(source)] = facts
    if record.get("preset") == "paper":
        photos, crowded = len(dataset.photos), is_crowdpose(dataset.annotations)
        note = note_on_boxes(dataset.name, photos, crowded, facts.get("AP"))
        if note:
            facts["note"] = note
            say(f"{box_label(source)}: {note}")


def note_flips(runs: Sequence[Run], record: dict[str, Any]) -> None:
    """Say, and write into the protocol, whose graphs average both views themselves."""
    inside = [run.label for run in runs if run.worker.facts.flips_inside]
    if not inside or record.get("preset") == "paper":  # which asks for no other
        return
    record["flip_test_inside"] = inside
    asked = "are not flipped again" if record["flip_test"] else "are, though nobody asked for it"
    say(f"flip-tested inside their graphs, and {asked}: {', '.join(inside)}")


@dataclass(frozen=True)
class Plan:
    """The models to measure, how, and where predictions are kept."""

    models: tuple[str, ...]
    protocol: Protocol
    reference: str | None = None  # the model that the others' drift is measured from
    work: Path | None = None  # folder of finished predictions, to go on from
    peer_python: str | None = None  # interpreter of the peers' environment
    in_process: bool = False


def measure(plan: Plan, dataset: KeypointDataset) -> tuple[list[Row], dict[str, Any]]:
    """Rows of all models under all kinds of boxes, and the report's protocol block."""
    protocol = plan.protocol
    setting = Setting(
        device=protocol.device,
        threads=protocol.threads,
        cpus=() if plan.in_process else cpus_for(protocol.threads),
        find="detector" in protocol.boxes,
        detector=protocol.detector,
        flip_test=protocol.flip_test,
    )
    texts = list(dict.fromkeys([*plan.models, *([plan.reference] if plan.reference else [])]))
    names = [parse_name(text) for text in texts]
    record = _protocol_record(plan, dataset)
    note_data(dataset, record)
    given: dict[str, Boxes | None] = {s: given_boxes(s, dataset, record) for s in protocol.boxes}
    with ExitStack() as opened:
        runs = [
            _open(plan, name, label, setting, dataset, opened)
            for name, label in zip(names, _labels(names), strict=True)
        ]
        note_flips(runs, record)
        detected = detect_for_peers(runs, dataset, protocol, setting, plan.in_process)
        rows: list[Row] = []
        for source in protocol.boxes:
            rows += _one_source(plan, dataset, runs, source, given[source], detected, record)
        timed = _people(runs, dataset, protocol)
        rows = [_with_people(row, timed, runs) for row in rows]
    if plan.reference is not None:
        record["reference"] = parse_name(plan.reference).label
    return rows, record


def _open(
    plan: Plan,
    name: ModelName,
    label: str,
    setting: Setting,
    dataset: KeypointDataset,
    opened: ExitStack,
) -> Run:
    """A run without boxes yet. Raises as `open_worker`, and where the model does not fit."""
    worker = opened.enter_context(
        closing(open_worker(name, setting, python=plan.peer_python, in_process=plan.in_process))
    )
    check_skeleton(dataset.annotations, worker.facts.skeleton)
    if plan.protocol.flip_test and name.adapter is not None:
        raise InputError(
            f"--model {name.text}: peers in processes of their own have no flip test; omit "
            f"--flip-test and --preset paper"
        )
    _check_preset(plan.protocol, label, worker)
    return Run(label, worker, is_reference=name.text == plan.reference)


def _check_preset(protocol: Protocol, label: str, worker: Worker) -> None:
    """Raise InputError where a model cannot be measured as the papers are."""
    if protocol.preset != "paper":
        return
    if not worker.facts.flips_inside:
        how = "cfpose-export adopt" if worker.facts.is_peer else "cfpose-export onnx"
        raise InputError(
            f"--preset paper averages SimCC's vectors (or heat maps) of both views before they are "
            f"decoded, which a graph does inside, and {label} does not: write it with {how} "
            f"--flip-test; --flip-test without a preset averages the joints"
        )
    if worker.facts.calibration[0] == 0:
        raise InputError(
            f"--preset paper needs raw scores, and the confidence of {label} has no slope: it is "
            f"{worker.facts.calibration} whatever the score; export it uncalibrated"
        )


def _one_source(
    plan: Plan,
    dataset: KeypointDataset,
    models: Sequence[Run],
    source: str,
    boxes: Boxes | None,
    detected: Photos,
    record: dict[str, Any],
) -> list[Row]:
    """Rows of all models under one kind of boxes; a one-stage model runs under the first alone."""
    protocol, runs = plan.protocol, list[Run]()
    with ExitStack() as opened:
        for model in models:
            if model.worker.facts.one_stage and source != protocol.boxes[0]:
                continue
            own = boxes_for(model.worker, boxes, detected)
            store = None
            if plan.work is not None:
                key = _key(model.worker, source, own, plan, dataset)
                store = opened.enter_context(
                    closing(Store(plan.work, key, model.worker.facts.skeleton))
                )
            runs.append(model.under(box_label(source), own, store))
        run_rounds(runs, dataset, rounds=protocol.rounds, warmup=protocol.warmup)
    for run in runs:
        facts = run.worker.facts
        if source == "detector" and facts.needs_boxes and not facts.one_stage:
            add_detection(run, detected)
    note_boxes(source, boxes, runs, dataset, record)
    note_sizes(runs, dataset, record)
    record["taken_up"] = record.get("taken_up", 0) + sum(len(run.taken_up) for run in runs)
    return [
        row_of(
            run,
            dataset,
            protocol,
            oks_threshold=protocol.oks_nms(source),
            base=_base(runs),
            reference=_base(runs) if plan.reference is not None else None,
        )
        for run in runs
    ]


def _base(runs: Sequence[Run]) -> Run:
    """The run whose times the others' are divided by: the reference's, else the first."""
    return next((run for run in runs if run.is_reference), runs[0])


def _people(runs: Sequence[Run], dataset: KeypointDataset, protocol: Protocol) -> Mapping[str, Any]:
    """Times by number of people, on the photo with the most annotated ones, boxes repeated."""
    boxes = dataset.ground_truth_boxes()
    image_id = max(boxes, key=lambda i: len(boxes[i]))
    if protocol.repeats == 0 or len(boxes[image_id]) == 0:
        return {}
    return people_timings(
        [run for run in runs if not run.worker.facts.one_stage],
        dataset,
        image_id,
        boxes[image_id],
        sorted({*PEOPLE, *BATCHES}),
        repeats=protocol.repeats,
        warmup=protocol.warmup,
    )


def _with_people(row: Row, timed: Mapping[str, Any], runs: Sequence[Run]) -> Row:
    worker = next(run.worker for run in runs if run.label == row.model)
    more = with_people(timed.get(row.model, {}), worker.memory(), PEOPLE, BATCHES)
    return replace(row, **more)


def _labels(names: Sequence[ModelName]) -> list[str]:
    """Names for the report; those of equal file names are numbered."""
    labels: list[str] = []
    for name in names:
        copies = sum(other.split(" #")[0] == name.label for other in labels)
        labels.append(f"{name.label} #{copies + 1}" if copies else name.label)
    return labels


def _key(
    worker: Worker, source: str, boxes: Boxes | None, plan: Plan, dataset: KeypointDataset
) -> dict[str, Any]:
    """All that decides what a model predicts for a photo."""
    protocol, name = plan.protocol, worker.name
    finder = Path(protocol.detector) if protocol.detector else BUNDLED_FINDER
    shown = {} if boxes is None else {str(i): np.asarray(b).tolist() for i, b in boxes.items()}
    return {
        "cfpose": __version__,
        "model": digest(*name.files),
        "tuned": read_tuned(name.path).told if name.tuned else None,
        "adapter": None if name.adapter is None else digest(name.adapter),
        "boxes": digest_of(shown),
        "finder": digest(*files_of(finder)) if source == "detector" else None,
        "photos": digest_of({str(i): str(path.resolve()) for i, path in dataset.photos.items()}),
        "flip_test": protocol.flip_test and not worker.facts.flips_inside,
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
