"""How good labels are: precision and coverage on people with known keypoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cfpose_sdk.arrays import Bools, Float64
from cfpose_sdk.oks import joint_oks
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.labels.journal import Sight
from cfpose_training.labels.people import Target, given_joints, person_areas
from cfpose_training.labels.rules import Average, LabelRules, consensus, kept_joints

GOOD, FINE = 0.5, 0.85  # OKS of a single joint with its truth
SCORES = (0.0, 0.2, 0.3, 0.4, 0.5)
AGREEMENTS = (0.0, 0.5, 0.7, 0.8, 0.9)
SIDES = (32, 64, 128, 256)  # px, lower ends of the classes of longer box sides
FACE = 5  # COCO's first joints
GIVEN_OKS = (0.0, 0.5, 0.6, 0.7)


@dataclass(frozen=True, eq=False)
class Judged:
    """N people under one set of rules; (N, K) arrays but `side` and `body_oks` (N,)."""

    kept: Bools  # of people with enough kept joints
    labelled: Bools  # by the truth
    oks: Float64  # of each joint with its truth, where that is labelled
    side: Float64  # longer sides of the boxes, px
    body_oks: Float64  # mean OKS of the labelled joints but the face's

    def row(self, people: Bools | None = None, joints: slice = slice(None)) -> dict[str, float]:
        """Figures of some people and joints.

        `good`, `fine`: shares of the kept joints that the truth labels which lie within OKS 0.5 and
        0.85 of it; `coverage`: share of the truth's joints that are kept; `people`: share of them
        with any; `unjudged`: share of the kept joints that the truth does not label.
        """
        chosen = np.ones(len(self.kept), dtype=bool) if people is None else people
        kept, labelled = self.kept[chosen][:, joints], self.labelled[chosen][:, joints]
        both = kept & labelled
        oks = self.oks[chosen][:, joints][both]
        return {
            "good": _share((oks >= GOOD).sum(), both.sum()),
            "fine": _share((oks >= FINE).sum(), both.sum()),
            "coverage": _share(both.sum(), labelled.sum()),
            "people": _share(kept.any(axis=1).sum(), len(kept)),
            "unjudged": _share((kept & ~labelled).sum(), kept.sum()),
            "joints": int(both.sum()),
        }


def judge(
    targets: Sequence[Target],
    sights: Mapping[int, Sight],
    skeleton: Skeleton,
    rules: LabelRules,
    looks: Sequence[int] | None = None,
) -> Judged:
    """Labels under `rules`, from some of the looks (their indices), against the annotations."""
    rows: list[tuple[Bools, Bools, Float64, Float64, Float64]] = []
    for target in targets:
        sight = sights[target.image["id"]]
        areas = person_areas(target.people, sight.boxes)
        seen = sight.looks if looks is None else sight.looks[list(looks)]
        combined = consensus(seen, areas, skeleton.oks_sigmas, rules.average)
        kept = kept_joints(combined, sight.boxes, sight.size_wh, rules)
        kept &= kept.sum(axis=1, keepdims=True) >= rules.min_joints
        truth = given_joints(target.people or (), len(skeleton))
        labelled = truth[..., 2] > 0
        oks = joint_oks(combined.xy, truth[..., :2], areas, skeleton.oks_sigmas)
        body = labelled.copy()
        body[:, :FACE] = False
        side = (sight.boxes[:, 2:] - sight.boxes[:, :2]).max(axis=1)
        body_oks = (oks * body).sum(axis=1) / np.maximum(1, body.sum(axis=1))
        rows.append((kept, labelled, oks, side, body_oks))
    if not rows:
        none = np.zeros((0, len(skeleton)))
        return Judged(none > 0, none > 0, none, np.zeros(0), np.zeros(0))
    return Judged(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def measure(
    targets: Sequence[Target],
    sights: Mapping[int, Sight],
    skeleton: Skeleton,
    rules: LabelRules,
    views: int,
    labellers: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Tables: thresholds, numbers of views and ways to average, box sizes, face of filled people,
    and of several labellers each alone.

    Each varies one thing around `rules`. A row's figures are those of Judged.row.
    """

    def judged(rules: LabelRules, used: Sequence[int] | None = None) -> Judged:
        return judge(targets, sights, skeleton, rules, used)

    grid = [
        {"min_score": s, "min_agreement": a}
        | judged(replace(rules, min_score=s, min_agreement=a)).row()
        for s in SCORES
        for a in AGREEMENTS
    ]
    bare = replace(
        rules, min_score=0.0, min_agreement=0.0, min_joints=1, box_margin=10.0, max_offset=10.0
    )
    averages_of: tuple[Average, ...] = ("mean", "median")
    ways = [(n, average) for n in (1, 2, 4, 6) if n <= views for average in averages_of]
    averages = [
        {"views": count, "average": average}
        | judged(replace(bare, average=average), range(count * len(labellers))).row()
        for count, average in ways
    ]
    tables: dict[str, list[dict[str, Any]]]
    tables = {"thresholds": grid, "averages": averages, **_classes(judged(rules))}
    if len(labellers) > 1:
        total, step = views * len(labellers), len(labellers)
        tables["labellers"] = [
            {"labeller": name} | judged(bare, range(index, total, step)).row()
            for index, name in enumerate(labellers)
        ]
    return tables


def _classes(judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """Tables of box sizes, and of the face by how well the body agrees, under one set of rules."""
    ends = (*SIDES[1:], np.inf)
    sizes = [
        {"box_side": f"{low} to {high:g} px"}
        | judged.row((judged.side >= low) & (judged.side < high))
        for low, high in zip(SIDES, ends, strict=True)
    ]
    face = [
        {"given_oks": least} | judged.row(judged.body_oks >= least, slice(FACE))
        for least in GIVEN_OKS
    ]
    return {"sizes": sizes, "face": face}


def tables_text(tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """The tables as text, in columns."""
    lines: list[str] = []
    for name, rows in tables.items():
        lines.append(name)
        for number, row in enumerate(rows):
            if number == 0:
                lines.append("  " + "  ".join(f"{key:>13}" for key in row))
            cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
            lines.append("  " + "  ".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def _share(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 4) if whole else 0.0
