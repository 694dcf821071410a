"""Confidence intervals: of AP, photos resampled, their matches kept; of the median of rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def bootstrap_ap(
    photos: Sequence[Mapping[str, Any] | None], resamples: int, seed: int
) -> tuple[float, float] | None:
    """95 % interval of AP over resampled photos (percentile bootstrap).

    `photos` holds pycocotools' matches (`evalImgs`) of each photo, None where it has neither people
    nor poses. The matching inside a photo does not depend on the other photos, so it is done once;
    a resample only weights each photo by how often it was drawn. 200 resamples of 340 photos take
    well under a second. None when no resample has people.
    """
    total = len(photos)
    filled = [photo for photo in photos if photo is not None]
    if not filled:
        return None
    curves = Curves.of(filled)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(total, size=total), minlength=total)[: len(filled)]
        if (curves.people * weights).sum() > 0:
            values.append(curves.ap(weights))
    if not values:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_median(
    values: Sequence[float], resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the median of at least one value (percentile bootstrap)."""
    drawn = np.random.default_rng(seed).choice(np.array(values), (resamples, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Curves:
    """All poses of all photos, sorted by score, as pycocotools accumulates them."""

    photo: NDArray[np.intp]  # (D,) which photo a pose is in
    right: NDArray[np.bool_]  # (T, D) matched to somebody who counts
    wrong: NDArray[np.bool_]  # (T, D) matched to nobody
    people: NDArray[np.intp]  # (photos,) people who count
    recalls: Float64  # (R,)

    @classmethod
    def of(cls, photos: Sequence[Mapping[str, Any]]) -> Curves:
        scores = np.concatenate([photo["dtScores"] for photo in photos])
        order = np.argsort(-scores, kind="stable")
        matched = np.concatenate([p["dtMatches"] > 0 for p in photos], axis=1)[:, order]
        ignored = np.concatenate([p["dtIgnore"] > 0 for p in photos], axis=1)[:, order]
        sizes = [len(photo["dtScores"]) for photo in photos]
        return cls(
            photo=np.repeat(np.arange(len(photos)), sizes)[order],
            right=matched & ~ignored,
            wrong=~matched & ~ignored,
            people=np.array([(np.asarray(p["gtIgnore"]) == 0).sum() for p in photos]),
            recalls=np.linspace(0.0, 1.0, 101),
        )

    def ap(self, weights: NDArray[np.intp]) -> float:
        """AP when photo i occurs weights[i] times; some counted person must remain.

        Repeated copies of a photo act as one block of equal scores. That is exact: inside a block
        of hits precision only rises, and a block of misses does not move recall.
        """
        weight = weights[self.photo]
        hits = np.cumsum(self.right * weight, axis=1, dtype=np.float64)
        misses = np.cumsum(self.wrong * weight, axis=1, dtype=np.float64)
        recall = hits / (self.people * weights).sum()
        precision = hits / (hits + misses + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(envelope, ((0, 0), (0, 1)))  # beyond the last recall: 0
        rows = [p[np.searchsorted(r, self.recalls)] for p, r in zip(padded, recall, strict=True)]
        return float(np.mean(rows))
