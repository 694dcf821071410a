"""The resampled AP against photos that are really copied, and against the binomial interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cfpose_bench.accuracy.coco import (
    Curves,
    _photos,
    _run,
    bootstrap_ap,
    bootstrap_difference,
    evaluate,
)
from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import COCO_17

Build = Callable[..., dict[str, Any]]
Records = list[dict[str, Any]]


def noisy_photos(person: Build, pose: Build, count: int, seed: int) -> tuple[Records, Records]:
    """One or two people a photo; found with some noise, missed, or invented; no equal scores."""
    rng = np.random.default_rng(seed)
    people, results = [], []
    for image_id in range(1, count + 1):
        for x in (0.0, 150.0)[: rng.integers(1, 3)]:
            people.append(person(image_id, x, labelled=int(rng.integers(0, 18))))
            if rng.random() < 0.8:
                found = person(image_id, x)
                results.append(pose(found, float(rng.random()), float(rng.exponential(8.0))))
        if rng.random() < 0.4:
            results.append(pose(person(image_id, 900.0), float(rng.random())))
    return people, results


def photos_of(truth: dict[str, Any], results: Records) -> list[Any]:
    checked = read_annotations(truth)
    poses = [{**r, "id": n, "area": 1e4} for n, r in enumerate(results, start=1)]
    return _photos(_run(checked, poses, sorted(i["id"] for i in checked["images"]), COCO_17))


@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_copies_of_photos(
    person: Build, annotate: Build, pose: Build, seed: int
) -> None:
    count = 12
    people, results = noisy_photos(person, pose, count, seed)
    curves = Curves.of(photos_of(annotate(people, photos=range(1, count + 1)), results))
    weights = np.random.default_rng(seed).integers(0, 4, size=count)

    def copied(records: Records) -> Records:
        return [
            {**r, "image_id": r["image_id"] * 100 + copy}
            for r in records
            for copy in range(weights[r["image_id"] - 1])
        ]

    photos = [i * 100 + copy for i in range(1, count + 1) for copy in range(weights[i - 1])]
    direct = evaluate(annotate(copied(people), photos=photos), copied(results))
    assert curves.ap(weights) == pytest.approx(direct.AP, abs=1e-12)


def test_all_photos_once_is_the_ap_itself(person: Build, annotate: Build, pose: Build) -> None:
    people, results = noisy_photos(person, pose, 30, seed=1)
    truth = annotate(people)
    curves = Curves.of(photos_of(truth, results))
    found = evaluate(truth, results, bootstrap=200)
    assert curves.ap(np.ones(30, dtype=np.intp)) == pytest.approx(found.AP, abs=1e-12)
    assert found.AP_ci95 is not None
    low, high = found.AP_ci95
    assert low < found.AP < high


def test_interval_is_binomial_when_photos_are_hit_or_missed(
    person: Build, annotate: Build, pose: Build
) -> None:
    people = [person(i) for i in range(1, 201)]
    results = [pose(p) for p in people[:100]]
    found = evaluate(annotate(people), results, bootstrap=2000)
    half_width = 1.96 * np.sqrt(0.25 / 200)
    assert found.AP_ci95 == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.015)


def test_same_seed_same_interval_and_no_photos_no_interval(
    person: Build, annotate: Build, pose: Build
) -> None:
    people, results = noisy_photos(person, pose, 20, seed=3)
    truth = annotate(people)
    first, again, other = (
        evaluate(truth, results, bootstrap=50, seed=seed).AP_ci95 for seed in (1, 1, 2)
    )
    assert first == again != other
    assert evaluate(truth, results).AP_ci95 is None
    assert bootstrap_ap([], 10, 0) is None
    assert bootstrap_ap([None, None], 10, 0) is None


def test_a_difference_is_paired_by_photo(person: Build, annotate: Build, pose: Build) -> None:
    """Of 200 photos the first model hits 100, the second the same and 20 more: 0.1 ± 0.042."""
    people = [person(i) for i in range(1, 201)]
    truth, poses = annotate(people), [pose(p) for p in people]
    change, low, high = bootstrap_difference(truth, poses[:100], poses[:120], resamples=500)
    whole = [evaluate(truth, poses[:count]).AP for count in (100, 120)]
    assert change == pytest.approx(whole[1] - whole[0])
    half_width = 1.96 * np.sqrt(0.1 * 0.9 / 200)
    assert (low, high) == pytest.approx((0.1 - half_width, 0.1 + half_width), abs=0.015)
    assert bootstrap_difference(truth, poses[:100], poses[:100], resamples=20) == (0.0, 0.0, 0.0)
    with pytest.raises(DatasetError, match="nobody is counted"):
        bootstrap_difference(annotate([], photos=[1]), [], [], resamples=5)
