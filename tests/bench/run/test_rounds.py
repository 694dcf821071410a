"""Who runs when, what is warm-up, what times are compared, and which CPUs a worker gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench import measurement
from cfpose_bench.data.dataset import KeypointDataset
from cfpose_bench.measurement import cpus_for, physical_cores
from cfpose_bench.run.predictions import Store
from cfpose_bench.run.rounds import Run, people_timings, ratios, run_rounds
from cfpose_bench.run.session import add_detection
from cfpose_sdk.errors import InputError
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17


class Noted:
    """Writes down who was asked; photo n takes n milliseconds times `factor`."""

    def __init__(self, name: str, diary: list[str], factor: float = 1.0) -> None:
        self.name, self.diary, self.factor = name, diary, factor

    def predict(self, image: Path, /, boxes: Any = None) -> Poses:
        self.diary.append(f"{self.name}{image.stem}")
        people = 0 if boxes is None else len(boxes)
        spent = self.factor * (int(image.stem) + people)
        return Poses(
            xy=np.zeros((people, 17, 2), np.float32),
            confidence=np.zeros((people, 17), np.float32),
            boxes=np.tile(np.float32([0, 0, 9, 9]), (people, 1)),
            box_scores=np.ones(people, np.float32),
            skeleton=COCO_17,
            image_size_wh=(9, 9),
            speed_ms={"read": 1.0, "infer": spent, "total": spent + 1.0},
        )


@pytest.fixture
def dataset() -> KeypointDataset:
    truth = {"images": [{"id": i} for i in (1, 2, 3, 4)], "annotations": [], "categories": []}
    return KeypointDataset("d", truth, {i: Path(f"{i}.jpg") for i in (1, 2, 3, 4)})


def test_models_take_turns_in_turned_order(dataset: KeypointDataset) -> None:
    diary: list[str] = []
    entrants = [Run(n, Noted(n, diary), None) for n in "ab"]
    run_rounds(entrants, dataset, rounds=2, warmup=2)
    # photos 1 and 2, then 3 and 4; two runs of warm-up at first, one at a later turn
    assert diary == [
        "a1",
        "a1",
        "a1",
        "a2",
        "b1",
        "b1",
        "b1",
        "b2",
        "b3",
        "b3",
        "b4",
        "a3",
        "a3",
        "a4",
    ]
    assert list(entrants[0].photos) == [1, 2, 3, 4]
    assert entrants[1].turns == {1: 0, 2: 0, 3: 1, 4: 1}
    diary.clear()
    run_rounds([Run("c", Noted("c", diary), None)], dataset, rounds=9, warmup=0)
    assert diary == ["c1", "c2", "c3", "c4"]  # more rounds than photos


def test_ratios_are_of_the_same_photo(dataset: KeypointDataset) -> None:
    base, mine = Run("a", Noted("a", []), None), Run("b", Noted("b", [], 3.0), None)
    run_rounds([base, mine], dataset, rounds=2, warmup=0)
    found = ratios(mine, base)
    assert found is not None
    assert found["infer"] == pytest.approx(3.0)
    per_photo = [(3 * n + 1) / (n + 1) for n in (1, 2, 3, 4)]
    assert found["total"] == pytest.approx(np.median(per_photo))
    assert found["total_by_round"] == pytest.approx(
        [np.mean(per_photo[:2]), np.mean(per_photo[2:])]
    )
    assert ratios(mine, Run("c", Noted("c", []), None)) is None


def test_people_are_repeated_boxes_and_reading_is_not_counted(dataset: KeypointDataset) -> None:
    diary: list[str] = []
    entrants = [Run("a", Noted("a", diary), None)]
    boxes = np.array([[0.0, 0, 9, 9], [1, 1, 5, 5]])
    found = people_timings(entrants, dataset, 2, boxes, (1, 5), repeats=3, warmup=3)
    infer, total = found["a"][5]
    assert (infer.p50, total.p50, total.n) == (7.0, 7.0, 3)  # photo 2 and 5 people
    assert found["a"][1][1].p50 == 3.0
    assert len(diary) == 2 * (1 + 3)


def test_a_peers_time_has_the_finders_in_it(dataset: KeypointDataset) -> None:
    peer = Run("p", Noted("p", []), None)
    run_rounds([peer], dataset, rounds=1, warmup=0)
    finder = Noted("f", []).predict(Path("1.jpg"))
    found = {1: Poses(**{**vars(finder), "speed_ms": {"detect": 30.0}}), 2: None}
    add_detection(peer, found)
    first, second = peer.photos[1], peer.photos[2]
    assert first is not None
    assert second is not None
    assert (first.speed_ms["detect"], first.speed_ms["total"]) == (30.0, 32.0)
    assert "detect" not in second.speed_ms


def test_a_store_of_another_key_is_another_file(tmp_path: Path) -> None:
    stores = [Store(tmp_path / "w", {"model": n}, COCO_17) for n in (1, 1, 2)]
    assert stores[0].path == stores[1].path != stores[2].path
    stores[0].add(7, 2, None)
    for store in stores:
        store.close()
    again = Store(tmp_path / "w", {"model": 1}, COCO_17)
    assert again.done == {7: (2, None)}
    again.close()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        Store(tmp_path / "file" / "below", {}, COCO_17)


def test_workers_get_a_core_each_before_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [
        f"processor\t: {cpu}\nphysical id\t: {package}\ncore id\t: {core}"
        for cpu, package, core in ((0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 1, 0), (4, 1, 1))
    ]
    info = tmp_path / "cpuinfo"
    info.write_text("\n\n".join(blocks) + "\n")
    monkeypatch.setattr(measurement, "usable_cpus", lambda: (0, 1, 2, 3))
    assert physical_cores(info) == (0, 2, 3)  # 1 shares a core with 0, 4 is not ours
    assert physical_cores(tmp_path / "none") == (0, 1, 2, 3)
    monkeypatch.setattr(measurement, "physical_cores", lambda: (0, 2, 3))
    assert cpus_for(2) == (0, 2)
    assert cpus_for(4) == (0, 2, 3, 1)
