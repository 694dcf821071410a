"""What the paper prints: the rows of its tables that a plan trains and measures.

Source: arXiv 2508.11212, tables I, III and IV. Table III's header names the columns AP^M, AP^L and
AR; by the sources that it quotes they are AP easy, medium and hard, as they are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DatasetName = Literal["coco", "crowdpose"]
TEACHER = "teacher"
FIGURES = ("AP", "AP50", "AP75", "APM", "APL", "AP_easy", "AP_medium", "AP_hard", "AR")


@dataclass(frozen=True)
class Target:
    """One row of a table, in percent; no figures where the paper gives none."""

    key: str  # a scheme of Table IV, or the teacher
    title: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the paper that can be measured here."""

    number: int
    roman: str
    about: str
    targets: tuple[Target, ...]

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of Table IV that its rows need."""
        return tuple(target.key for target in self.targets if target.key != TEACHER)


def _row(key: str, title: str, ap: float, ap50: float, ap75: float, **more: float) -> Target:
    return Target(key, title, {"AP": ap, "AP50": ap50, "AP75": ap75, **more})


_NO_SCORE = Target(TEACHER, "teacher, SimCC-W48 (the paper gives no score)")
TABLES: Mapping[DatasetName, tuple[Table, ...]] = {
    "coco": (
        Table(
            1, "I", "COCO val2017, person boxes of 56.4 AP, flip test",
            (
                Target("baseline", "SimCC-W32", {"AP": 75.3, "AR": 80.8}),
                Target(TEACHER, "teacher, SimCC-W48", {"AP": 75.9, "AR": 81.2}),
                _row("6", "ours", 76.2, 90.8, 82.8, APM=72.0, APL=82.9, AR=81.1),
            ),
        ),
    ),
    "crowdpose": (
        Table(
            3, "III", "CrowdPose test, person boxes of YOLOv3, flip test",
            (
                _NO_SCORE,
                _row("baseline", "SimCC-W32", 66.7, 82.1, 72.0, AP_easy=74.1, AP_medium=67.8,
                     AP_hard=56.2),
                _row("6", "ours", 68.7, 86.7, 73.5, AP_easy=75.5, AP_medium=68.9, AP_hard=59.3),
            ),
        ),
        Table(
            4, "IV", "the ablation, on CrowdPose test",
            (
                _NO_SCORE,
                _row("baseline", "baseline", 66.7, 82.1, 72.0),
                _row("1", "1: refiner on labels", 67.6, 85.2, 72.7),
                _row("2", "2: features", 67.3, 84.1, 72.3),
                _row("3", "3: features, joints", 67.7, 84.8, 72.6),
                _row("4", "4: features, joints, limbs", 68.2, 86.3, 73.3),
                _row("5", "5: refiner on the teacher", 67.9, 85.8, 73.0),
                _row("6", "6: all, ours", 68.7, 86.7, 73.5),
            ),
        ),
    ),
}  # fmt: skip

# of the published checkpoints of SimCC at 256 x 192, by the width of their HRNet
OFFICIAL: Mapping[int, Target] = {
    32: Target("w32", "SimCC-W32, published weights", {"AP": 75.3, "AR": 80.8}),
    48: Target("w48", "SimCC-W48, published weights", {"AP": 75.9, "AR": 81.2}),
}
TEST_DEV = (
    "Table II, ours: 75.1 AP on COCO test-dev (SimCC-W32 74.3, SimCC-W48 75.4). Its labels are not "
    "public: only COCO's server measures it, so no step of this plan does"
)
