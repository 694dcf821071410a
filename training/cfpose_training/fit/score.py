"""AP of an artifact in the annotated boxes of development photos: before a run, and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.coco import bootstrap_difference, evaluate
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.config import Source
from cfpose_training.data.people import People, load_people
from cfpose_training.data.photo_cache import PhotoCache, cache_photos
from cfpose_training.skeletons import columns
from cfpose_training.sources import read_source


@dataclass(frozen=True)
class Score:
    """AP over some joints of the development people; None where the model knows none of them."""

    joints: int
    AP: float | None
    AP50: float | None


@dataclass(frozen=True)
class Judge:
    """Development photos of one source, for artifacts with other joints than the recipe's too."""

    source: Source
    root: Path
    cache: Path | None
    skeleton: Skeleton

    def score(self, model: Path, names: Sequence[str] = (), *, threads: int | None = None) -> Score:
        """AP of an artifact over the joints `names` that it knows; () all of the recipe's.

        People without any of these joints labelled do not count. Raises as PoseEstimator does.
        """
        skeleton, results = self._run(model, names, threads)
        if skeleton is None:
            return Score(0, None, None)
        truth, ids = self._truth(skeleton)
        found = evaluate(truth, results, skeleton=skeleton, image_ids=ids)
        return Score(len(skeleton), round(found.AP, 4), round(found.AP50, 4))

    def difference(
        self, before: Path, after: Path, names: Sequence[str], *, threads: int | None = None
    ) -> tuple[float, float, float]:
        """AP of `after` less that of `before` over joints `names`, which both know, and its 95 %
        interval, paired by photo.
        """
        skeleton, first = self._run(before, names, threads)
        _, second = self._run(after, names, threads)
        assert skeleton is not None
        truth, ids = self._truth(skeleton)
        change, low, high = bootstrap_difference(
            truth, first, second, skeleton=skeleton, image_ids=ids
        )
        return round(change, 4), round(low, 4), round(high, 4)

    def _run(
        self, model: Path, names: Sequence[str], threads: int | None
    ) -> tuple[Skeleton | None, list[Mapping[str, Any]]]:
        """Those of the joints that the model knows, and its poses; None when it knows none."""
        wanted = names or self.skeleton.keypoints
        with PoseEstimator(model, device="cpu", threads=threads) as estimator:
            own = estimator.spec.skeleton.keypoints
            shared = [name for name in wanted if columns([name], own)[0] is not None]
            shared = [n for n in shared if columns([n], self.skeleton.keypoints)[0] is not None]
            if not shared:
                return None, []
            skeleton = _part(self.skeleton, shared)
            people = load_people([self.source], self.root, skeleton, held_out=True)
            cache = cache_photos(people.photos, self.cache)
            places = [place for place in columns(shared, own) if place is not None]
            return skeleton, _results(estimator, people, cache, places)

    def _truth(self, skeleton: Skeleton) -> tuple[dict[str, Any], tuple[int, ...]]:
        people = load_people([self.source], self.root, skeleton, held_out=True)
        return read_source(self.source, self.root, skeleton), people.image_ids


def _part(skeleton: Skeleton, names: Sequence[str]) -> Skeleton:
    """Some of a skeleton's joints; limbs and pairs play no part in AP."""
    places = [place for place in columns(names, skeleton.keypoints) if place is not None]
    sigmas = tuple(skeleton.oks_sigmas[place] for place in places)
    return Skeleton(tuple(skeleton.keypoints[place] for place in places), (), (), sigmas)


def _results(
    estimator: PoseEstimator, people: People, cache: PhotoCache, places: Sequence[int]
) -> list[Mapping[str, Any]]:
    results: list[Mapping[str, Any]] = []
    for photo, image_id in enumerate(people.image_ids):
        here = np.flatnonzero(people.photo == photo)
        poses = estimator.predict(np.array(cache[photo]), people.boxes[here])
        for xy, confidence in zip(poses.xy, poses.confidence, strict=True):
            joints, sure = xy[list(places)], confidence[list(places)]
            flat = np.concatenate([joints, sure[:, None]], axis=1).ravel().tolist()
            results.append(
                {"image_id": image_id, "category_id": 1, "keypoints": flat,
                 "score": float(sure.mean())}
            )  # fmt: skip
    return results
