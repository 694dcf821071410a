"""Let several models predict the same photos in turns, one at a time.

The photos are dealt into blocks; in each round every model runs one block, in an order that turns
round from block to block. What slows the machine down for a minute then slows all models down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cfpose_bench.data.dataset import Boxes, KeypointDataset
from cfpose_bench.measurement import Timing
from cfpose_bench.models.workers import Worker
from cfpose_bench.run.predictions import Store, predict_photo
from cfpose_sdk.commands import watched
from cfpose_sdk.results import Poses


@dataclass(frozen=True)
class Run:
    """A worker under one kind of boxes: what it is shown, and what it predicted."""

    label: str  # of the model, as in the report
    worker: Worker
    boxes: Boxes | None = None  # by photo; None where the worker detects the people
    source: str = ""  # where the boxes come from: gt, detector, or a file's name
    is_reference: bool = False  # whether the others' drift is measured from it
    store: Store | None = None  # finished photos, taken up and added to
    photos: dict[int, Poses | None] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)  # image id -> the round it ran in
    taken_up: set[int] = field(default_factory=set)  # photos that an earlier run finished

    def under(self, source: str, boxes: Boxes | None, store: Store | None) -> Run:
        """The same worker under boxes of `source`, with no photo predicted yet."""
        return Run(self.label, self.worker, boxes, source, self.is_reference, store)


def run_rounds(runs: Sequence[Run], dataset: KeypointDataset, *, rounds: int, warmup: int) -> None:
    """Fill in `photos` and `turns` of the runs.

    A model's first turn begins with `warmup` unmeasured runs, each later one with a single run.
    """
    blocks = [block.tolist() for block in np.array_split(np.array(dataset.image_ids), rounds)]
    fresh = set(range(len(runs)))
    total = len(dataset.photos) * len(runs)
    with tqdm(total=total, unit="photo", disable=not watched()) as bar:
        for turn, block in enumerate(blocks):
            order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
            for n in order:
                run = runs[n]
                bar.set_description(f"{run.label}, boxes: {run.source}")
                _take_up(run, block)
                todo = [image_id for image_id in block if image_id not in run.photos]
                if todo:
                    unmeasured = warmup if n in fresh else min(1, warmup)
                    fresh.discard(n)
                    for _ in range(unmeasured):
                        predict_photo(run.worker, dataset, todo[0], run.boxes)
                bar.update(len(block) - len(todo))
                for image_id in todo:
                    _predict(run, dataset, image_id, turn)
                    bar.update()
    for run in runs:  # in the dataset's order, resumed or not
        run.photos.update({i: run.photos.pop(i) for i in dataset.image_ids})


def _take_up(run: Run, block: Sequence[int]) -> None:
    if run.store is not None:
        for image_id in block:
            if image_id in run.store.done:
                turn, poses = run.store.done[image_id]
                run.photos[image_id], run.turns[image_id] = poses, turn
                run.taken_up.add(image_id)


def _predict(run: Run, dataset: KeypointDataset, image_id: int, turn: int) -> None:
    poses = predict_photo(run.worker, dataset, image_id, run.boxes)
    run.photos[image_id], run.turns[image_id] = poses, turn
    if run.store is not None:
        run.store.add(image_id, turn, poses)


def ratios(mine: Run, base: Run) -> dict[str, float | list[float]] | None:
    """How many times as long as `base` a photo takes: medians over photos that both have read.

    `infer` and `total`, and the total's median in each round, which shows how steady it is. None
    without a photo that both have timed.
    """
    record: dict[str, float | list[float]] = {}
    for stage in ("infer", "total"):
        pairs = {
            i: ours.speed_ms[stage] / theirs.speed_ms[stage]
            for i, ours in mine.photos.items()
            if ours is not None
            and (theirs := base.photos.get(i)) is not None
            and ours.speed_ms.get(stage, 0) > 0
            and theirs.speed_ms.get(stage, 0) > 0
        }
        if pairs:
            record[stage] = float(np.median(list(pairs.values())))
        if stage == "total" and pairs:
            by_round: dict[int, list[float]] = {}
            for i, ratio in pairs.items():
                by_round.setdefault(mine.turns[i], []).append(ratio)
            record["total_by_round"] = [float(np.median(by_round[r])) for r in sorted(by_round)]
    return record or None


def people_timings(
    runs: Sequence[Run],
    dataset: KeypointDataset,
    image_id: int,
    boxes: NDArray[np.float64],
    counts: Sequence[int],
    *,
    repeats: int,
    warmup: int,
) -> Mapping[str, dict[int, tuple[Timing, Timing]]]:
    """label -> people -> (infer, total) of one photo with that many boxes, models taking turns.

    The (N, 4) `boxes` are repeated until there are enough. Reading the photo is not in the total.
    """
    timings: dict[str, dict[int, tuple[Timing, Timing]]] = {run.label: {} for run in runs}
    for count in counts:
        given = {image_id: np.resize(boxes, (count, 4))}
        for run in runs:
            for _ in range(min(1, warmup)):
                predict_photo(run.worker, dataset, image_id, given)
            infer, total = [], []
            for _ in range(repeats):
                poses = predict_photo(run.worker, dataset, image_id, given)
                if poses is None:
                    break
                speed = poses.speed_ms
                infer.append(speed.get("infer", 0.0))
                total.append(speed.get("total", 0.0) - speed.get("read", 0.0))
            if infer:
                timings[run.label][count] = (Timing.of(infer), Timing.of(total))
    return timings
