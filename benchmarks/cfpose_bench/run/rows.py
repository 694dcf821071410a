"""From a run's predictions to its row of the report: accuracy, drift, cost, calibration."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.coco import Accuracy, evaluate
from cfpose_bench.accuracy.crowdpose import evaluate_crowdpose
from cfpose_bench.accuracy.reliability import Judged, calibration, coverage, judge
from cfpose_bench.data.annotations import is_crowdpose
from cfpose_bench.data.dataset import KeypointDataset, Photos
from cfpose_bench.measurement import stage_timings
from cfpose_bench.models.base import Facts
from cfpose_bench.report.graph_cost import GraphCost, graph_cost
from cfpose_bench.report.report import Row
from cfpose_bench.run.predictions import Predictions, join_photos
from cfpose_bench.run.protocol import Protocol
from cfpose_bench.run.rounds import Run, ratios
from cfpose_sdk.errors import ArtifactError, DatasetError, MissingDependencyError
from cfpose_sdk.files import digest
from cfpose_sdk.skeleton import CROWDPOSE_14, Skeleton

SURE = 0.3  # the reference's confidence from which a joint counts as seen, as `Poses.visible`


def drift(photos: Photos, reference: Photos) -> dict[str, float | int] | None:
    """Distances in pixels of the photo over all joints of all people: max, p99, mean.

    `sure_` figures are over joints that the reference is sure of: an unsure joint may jump from one
    flat peak to another by rounding alone. Poses are paired by their boxes. None
    where no photo has a pose. Raises DatasetError when a photo has different boxes.
    """
    distances, confident = [], []
    for image_id, theirs in reference.items():
        ours = photos.get(image_id)
        if ours is None or theirs is None:
            continue
        if len(ours) != len(theirs) or not np.allclose(ours.boxes, theirs.boxes, atol=0.5):
            raise DatasetError(
                f"photo {image_id}: the model and its reference saw different boxes "
                f"({len(ours)} and {len(theirs)}); drift needs the same ones, such as --boxes gt"
            )
        apart = np.linalg.norm(ours.xy.astype(np.float64) - theirs.xy, axis=-1)
        distances.append(apart.ravel())
        confident.append((theirs.confidence >= SURE).ravel())
    if not distances or not sum(map(len, distances)):
        return None
    apart, seen = np.concatenate(distances), np.concatenate(confident)
    record: dict[str, float | int] = {
        "max_px": float(apart.max()),
        "p99_px": float(np.percentile(apart, 99)),
        "mean_px": float(apart.mean()),
        "joints": int(apart.size),
        "sure_joints": int(seen.sum()),
    }
    if seen.any():
        record["sure_max_px"] = float(apart[seen].max())
        record["sure_p99_px"] = float(np.percentile(apart[seen], 99))
    return record


def delta_ap(ap: float, reference_ap: float) -> float | None:
    """AP minus the reference's; None where either is undefined."""
    return None if math.isnan(ap) or math.isnan(reference_ap) else ap - reference_ap


WORST = 6  # people shown on the page
OWN = "own"  # boxes of a model that detects the people itself


def row_of(
    run: Run,
    dataset: KeypointDataset,
    protocol: Protocol,
    *,
    oks_threshold: float | None,
    base: Run,
    reference: Run | None,
) -> Row:
    """The report's row of a run. Its times are compared with those of `base`."""
    facts, name = run.worker.facts, run.worker.name
    done = _join(run.photos, facts, dataset, protocol, oks_threshold)
    accuracy = accuracy_of(dataset, done.results, facts.skeleton, protocol)
    distance: Mapping[str, Any] | None = None
    if reference is not None and not run.is_reference and not facts.one_stage:
        other = _join(reference.photos, facts, dataset, protocol, oks_threshold)
        point = replace(protocol, bootstrap=0)
        exact = accuracy_of(dataset, other.results, facts.skeleton, point)
        distance = _drift_and_ap(run.photos, reference.photos, delta_ap(accuracy.AP, exact.AP))
    people = judge(run.photos, dataset, facts.skeleton)
    cost = cost_of(name.path)
    return Row(
        model=run.label,
        boxes=OWN if facts.one_stage else run.source,
        precision=facts.precision,
        provider=facts.provider,
        bytes=sum(file.stat().st_size for file in name.files),
        sha256=digest(*name.files),
        params=cost.params if cost else None,
        macs=cost.macs if cost else None,
        versions=facts.versions,
        accuracy=accuracy,
        latency_ms=stage_timings(done.speed_ms),
        is_peer=facts.is_peer,
        unreadable=done.unreadable,
        drift=distance,
        ratio=None if run is base else ratios(run, base),
        calibration=calibration(people),
        coverage=coverage(people),
        reference=run.is_reference or None,
        details=_details(done, people, facts.skeleton),
    )


def _join(
    photos: Photos,
    facts: Facts,
    dataset: KeypointDataset,
    protocol: Protocol,
    oks_threshold: float | None,
) -> Predictions:
    return join_photos(
        photos,
        dataset,
        facts.skeleton,
        joint_threshold=protocol.joint_threshold,
        oks_threshold=oks_threshold,
        padded_to=(facts.size_wh or (192, 256)) if protocol.padded_oks else None,
        calibration=facts.calibration if protocol.raw_scores else (1.0, 0.0),
    )


def _drift_and_ap(
    photos: Photos, reference: Photos, change: float | None
) -> Mapping[str, Any] | None:
    """The drift, with the change of AP where it is defined."""
    distance = drift(photos, reference)
    if distance is None or change is None:
        return distance
    return {**distance, "delta_ap": change}


def _details(done: Predictions, people: list[Judged], skeleton: Skeleton) -> dict[str, Any]:
    """What the HTML page shows beside the figures."""
    return {
        "total_ms": [speed["total"] for speed in done.speed_ms if "total" in speed],
        "worst": sorted(people, key=lambda person: person.oks)[:WORST],
        "skeleton": skeleton,
    }


def accuracy_of(
    dataset: KeypointDataset,
    results: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    protocol: Protocol,
) -> Accuracy:
    """CrowdPose's protocol for its annotations, COCO's for all others.

    Raises DatasetError where OPEC-Net's evaluator is asked for and the photos are not CrowdPose's.
    """
    shared: dict[str, Any] = {
        "image_ids": dataset.image_ids,
        "bootstrap": protocol.bootstrap,
        "seed": protocol.seed,
    }
    if is_crowdpose(dataset.annotations) and skeleton == CROWDPOSE_14:
        evaluator = protocol.evaluator
        return evaluate_crowdpose(dataset.annotations, results, evaluator=evaluator, **shared)
    return evaluate(dataset.annotations, results, skeleton=skeleton, **shared)


def cost_of(path: Path) -> GraphCost | None:
    """Parameters and MACs of one person; None, with the reason on stderr, where not countable."""
    if path.suffix != ".onnx":
        return None
    try:
        return graph_cost(path)
    except (ArtifactError, MissingDependencyError) as error:
        print(f"cfpose-bench: {path.name}: no MACs ({error})", file=sys.stderr)
        return None


def with_people(
    timed: Mapping[int, Any],
    memory: Mapping[str, float | None],
    people: Sequence[int],
    batches: Sequence[int],
) -> dict[str, Any]:
    """The fields `people_curve`, `throughput` and `memory_mb` of a row."""
    curve = [
        {"people": n, "p50": timed[n][1].p50, "p90": timed[n][1].p90, "infer_p50": timed[n][0].p50}
        for n in people
        if n in timed
    ]
    through = [
        {"batch": n, "people_per_s": 1e3 * n / timed[n][0].p50, "p50": timed[n][0].p50}
        for n in batches
        if n in timed and timed[n][0].p50 > 0
    ]
    return {"people_curve": curve, "throughput": through, "memory_mb": memory}
