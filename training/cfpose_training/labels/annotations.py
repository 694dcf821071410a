"""A labeller's predictions and the rules → COCO annotations, with the origin of each joint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Bools
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.labels.journal import PIXEL_DIGITS, SCORE_DIGITS, Sight
from cfpose_training.labels.people import Target, given_joints, person_areas
from cfpose_training.labels.rules import (
    Consensus,
    LabelRules,
    chosen_people,
    consensus,
    kept_joints,
    shared_oks,
)

GIVEN = "ground truth"
Annotation = dict[str, Any]


class LabelWriter:
    """Annotations under one set of rules; `weight` is that of a labeller's joint in the loss."""

    def __init__(
        self, skeleton: Skeleton, rules: LabelRules, labeller: str, detector: str, weight: float
    ) -> None:
        self.skeleton, self.rules = skeleton, rules
        self.labeller, self.detector, self.weight = labeller, detector, weight

    def new_people(
        self, targets: Sequence[Target], sights: Mapping[int, Sight]
    ) -> dict[str, list[Annotation]]:
        """The photos and people that the labeller labelled, and no others."""
        images: list[Annotation] = []
        annotations: list[Annotation] = []
        for target in targets:
            sight = sights[target.image["id"]]
            if not len(sight.boxes):
                continue
            areas = person_areas(target.people, sight.boxes)
            combined = consensus(sight.looks, areas, self.skeleton.oks_sigmas, self.rules.average)
            kept = kept_joints(combined, sight.boxes, sight.size_wh, self.rules)
            neighbours = given_joints(target.neighbours, len(self.skeleton))
            chosen = chosen_people(
                combined, kept, areas, neighbours, self.skeleton.oks_sigmas, self.rules
            )
            for person in chosen:
                given = None if target.people is None else target.people[person]
                number = len(annotations) + 1 if given is None else int(given["id"])
                annotations.append(
                    {
                        "id": number,
                        "image_id": target.image["id"],
                        "category_id": 1 if given is None else given["category_id"],
                        "bbox": _xywh(sight, person) if given is None else given["bbox"],
                        "area": round(float(areas[person]), 1),
                        **self._labels(combined, kept, person),
                    }
                )
                annotations[-1]["origin"]["box"] = self.detector if given is None else GIVEN
                if given is None:
                    annotations[-1]["origin"]["box_score"] = float(sight.box_scores[person])
            if chosen:
                width, height = sight.size_wh
                images.append({**target.image, "width": width, "height": height})
        return {"images": images, "annotations": annotations}

    def filled_people(
        self, record: Mapping[str, Any], targets: Sequence[Target], sights: Mapping[int, Sight],
        joints: Sequence[int],
    ) -> dict[str, list[Annotation]]:  # fmt: skip
        """All people of `record`; `joints` are added where the labeller agrees with the given ones.

        Given joints do not change at all.
        """
        people = {person["id"]: copy.deepcopy(person) for person in record["annotations"]}
        wanted = np.zeros(len(self.skeleton), dtype=bool)
        wanted[list(joints)] = True
        for target in targets:
            sight = sights[target.image["id"]]
            areas = person_areas(target.people, sight.boxes)
            combined = consensus(sight.looks, areas, self.skeleton.oks_sigmas, self.rules.average)
            kept = kept_joints(combined, sight.boxes, sight.size_wh, self.rules) & wanted
            for index, person in enumerate(target.people or ()):
                oks = self._oks_with_given(combined, index, person, float(areas[index]))
                if oks >= self.rules.given_oks and kept[index].any():
                    self._fill(people[person["id"]], combined, kept, index, oks)
        return {"images": list(record["images"]), "annotations": list(people.values())}

    def _oks_with_given(
        self, combined: Consensus, index: int, person: Annotation, area: float
    ) -> float:
        given = given_joints([person], len(self.skeleton))
        everywhere = np.ones(len(self.skeleton), dtype=bool)
        return float(
            shared_oks(
                combined.xy[index], everywhere, given[..., :2], given[..., 2] > 0, area,
                self.skeleton.oks_sigmas,
            )[0]
        )  # fmt: skip

    def _fill(
        self, person: Annotation, combined: Consensus, kept: Bools, index: int, oks: float
    ) -> None:
        labels = self._labels(combined, kept, index)
        given = [v > 0 for v in person["keypoints"][2::3]]
        for joint in np.flatnonzero(kept[index]).tolist():
            part = slice(3 * joint, 3 * joint + 3)
            person["keypoints"][part] = labels["keypoints"][part]
        person["num_keypoints"] += labels["num_keypoints"]
        person["joint_weights"] = [
            1.0 if own else weight
            for own, weight in zip(given, labels["joint_weights"], strict=True)
        ]
        person["origin"] = labels["origin"] | {"box": GIVEN, "given_oks": round(oks, SCORE_DIGITS)}
        person["origin"]["joints"] = [
            GIVEN if own else name
            for own, name in zip(given, labels["origin"]["joints"], strict=True)
        ]

    def _labels(self, combined: Consensus, kept: Bools, person: int) -> Annotation:
        """Keypoints, weights and origin of the joints that are kept; zeros and None elsewhere."""
        shown = kept[person].tolist()
        flat: list[float] = []
        for (x, y), is_kept in zip(
            combined.xy[person].round(PIXEL_DIGITS).tolist(), shown, strict=True
        ):
            flat += [x, y, 2] if is_kept else [0.0, 0.0, 0]

        def figures(values: NDArray[np.float64]) -> list[float | None]:
            rounded = values[person].round(SCORE_DIGITS).tolist()
            return [v if is_kept else None for v, is_kept in zip(rounded, shown, strict=True)]

        return {
            "iscrowd": 0,
            "keypoints": flat,
            "num_keypoints": sum(shown),
            "joint_weights": [self.weight if is_kept else 0.0 for is_kept in shown],
            "origin": {
                "joints": [self.labeller if is_kept else None for is_kept in shown],
                "score": figures(combined.score),
                "agreement": figures(combined.agreement),
                "spread": figures(combined.spread),
            },
        }


def _xywh(sight: Sight, person: int) -> list[float]:
    x1, y1, x2, y2 = sight.boxes[person].tolist()
    return [x1, y1, round(x2 - x1, PIXEL_DIGITS), round(y2 - y1, PIXEL_DIGITS)]
