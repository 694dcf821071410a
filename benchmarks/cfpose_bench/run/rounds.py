"""Several models over the same photos, taking turns, one working at a time.

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
from cfpose_bench.models.base import PoseModel
from cfpose_bench.run.predictions import Store, predict_photo
from cfpose_sdk.results import Poses


@dataclass(frozen=True)
class Entrant:
    """One model in the rounds; its boxes by photo, or None where it finds the people."""

    label: str
    model: PoseModel
    boxes: Boxes | None
    store: Store | None = None  # finished photos, taken up and added to
    photos: dict[int, Poses | None] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)  # image id -> the round it ran in
    taken_up: set[int] = field(default_factory=set)  # photos that an earlier run finished


def run_rounds(
    entrants: Sequence[Entrant], dataset: KeypointDataset, *, rounds: int, warmup: int
) -> None:
    """Fill in `photos` and `turns` of the entrants.

    A model's first turn begins with `warmup` unmeasured runs, each later one with a single run.
    """
    blocks = [block.tolist() for block in np.array_split(np.array(dataset.image_ids), rounds)]
    fresh = set(range(len(entrants)))
    total = len(dataset.photos) * len(entrants)
    # disable=None: a progress bar on a terminal, nothing when piped
    with tqdm(total=total, unit="photo", disable=None) as bar:
        for turn, block in enumerate(blocks):
            order = range(len(entrants)) if turn % 2 == 0 else reversed(range(len(entrants)))
            for n in order:
                entrant = entrants[n]
                bar.set_description(entrant.label)
                _take_up(entrant, block)
                todo = [image_id for image_id in block if image_id not in entrant.photos]
                if todo:
                    runs = warmup if n in fresh else min(1, warmup)
                    fresh.discard(n)
                    for _ in range(runs):
                        predict_photo(entrant.model, dataset, todo[0], entrant.boxes)
                bar.update(len(block) - len(todo))
                for image_id in todo:
                    _run(entrant, dataset, image_id, turn)
                    bar.update()
    for entrant in entrants:  # in the dataset's order, resumed or not
        entrant.photos.update({i: entrant.photos.pop(i) for i in dataset.image_ids})


def _take_up(entrant: Entrant, block: Sequence[int]) -> None:
    if entrant.store is not None:
        for image_id in block:
            if image_id in entrant.store.done:
                turn, poses = entrant.store.done[image_id]
                entrant.photos[image_id], entrant.turns[image_id] = poses, turn
                entrant.taken_up.add(image_id)


def _run(entrant: Entrant, dataset: KeypointDataset, image_id: int, turn: int) -> None:
    poses = predict_photo(entrant.model, dataset, image_id, entrant.boxes)
    entrant.photos[image_id], entrant.turns[image_id] = poses, turn
    if entrant.store is not None:
        entrant.store.add(image_id, turn, poses)


def ratios(mine: Entrant, base: Entrant) -> dict[str, float | list[float]] | None:
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
    entrants: Sequence[Entrant],
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
    found: dict[str, dict[int, tuple[Timing, Timing]]] = {e.label: {} for e in entrants}
    for count in counts:
        given = {image_id: np.resize(boxes, (count, 4))}
        for entrant in entrants:
            for _ in range(min(1, warmup)):
                predict_photo(entrant.model, dataset, image_id, given)
            infer, total = [], []
            for _ in range(repeats):
                poses = predict_photo(entrant.model, dataset, image_id, given)
                if poses is None:
                    break
                speed = poses.speed_ms
                infer.append(speed.get("infer", 0.0))
                total.append(speed.get("total", 0.0) - speed.get("read", 0.0))
            if infer:
                found[entrant.label][count] = (Timing.of(infer), Timing.of(total))
    return found
