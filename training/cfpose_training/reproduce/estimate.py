"""What a plan costs, by arithmetic: hours on named cards, memory of a GPU, disk.

Nothing here was measured. Hours are multiply-adds of the networks, counted, over a card's peak from
its data sheet times a share of it that a training of this kind may reach; the share is a guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cfpose_bench.data.annotations import is_counted
from cfpose_training.config import Recipe, teacher_recipe
from cfpose_training.fit.estimate import FLOAT_BYTES, NetworkCost, network_cost, training_bytes
from cfpose_training.reproduce.plan import Plan, Step
from cfpose_training.reproduce.targets import DatasetName

# peak TFLOP/s of dense matrix products in TF32, as PyTorch multiplies in convolutions by default;
# float32 where a card has no TF32. From NVIDIA's data sheets.
CARDS: Mapping[str, float] = {
    "V100": 15.7,
    "RTX 3090": 35.6,
    "RTX 4090": 82.6,
    "A100": 156.0,
    "H100 SXM": 494.0,
}
SHARE = 0.25  # of the peak
REFINER_MACS = 0.34e9  # of the refiner, a person
FORWARD_AND_BACK = 3  # times a forward pass
# people that are trained on and measured; photos. COCO: of the annotations. CrowdPose's paper has
# about 80,000 people on 20,000 photos, 12,000 of which are trainval and 8,000 test.
PEOPLE: Mapping[DatasetName, tuple[int, int]] = {
    "coco": (149_813, 6_352),
    "crowdpose": (48_000, 32_000),
}
PHOTOS = 57_000 + 2_346  # of COCO 2017 with labelled people: train (HRNet's paper), val
PHOTO_BYTES = 3 * 275_700  # mean over 298 photos of val2017
STATE_COPIES = 4  # weights, Adam's two moments, the checkpoint


@dataclass(frozen=True)
class Cost:
    """Of one step: floating-point operations of a training, bytes of a GPU's memory."""

    step: str
    flop: float
    memory: float | None  # None: less than stage 1's

    def hours(self, tflops: float) -> float:
        """At so many TFLOP/s sustained."""
        return self.flop / (tflops * 1e12) / 3600


def people_of(recipe: Recipe, root: Path, dataset: DatasetName) -> tuple[int, int, bool]:
    """People to train on and to measure on; counted where the annotations are, which is said."""
    counts = []
    for source in recipe.sources:
        try:
            record = json.loads((root / source.annotations).read_bytes())
            counts.append(sum(is_counted(person) for person in record["annotations"]))
        except (OSError, ValueError, KeyError, TypeError):
            return *PEOPLE[dataset], False
    return counts[0], counts[1], True


@dataclass(frozen=True)
class Networks:
    """Of the two networks of a plan's recipes, which are the same in all of them."""

    student: NetworkCost
    teacher: NetworkCost

    @staticmethod
    def of(recipe: Recipe) -> Networks:
        """Count both."""
        return Networks(network_cost(recipe), network_cost(teacher_recipe(recipe)))


def costs(plan: Plan, networks: Networks, people: tuple[int, int]) -> list[Cost]:
    """Of every step that trains."""
    steps = [step for step in plan.steps if step.recipe is not None]
    return [_cost(step, step.recipe, networks, people) for step in steps if step.recipe is not None]


def _cost(step: Step, recipe: Recipe, networks: Networks, people: tuple[int, int]) -> Cost:
    student, teacher = networks.student, networks.teacher
    memory: float | None = None
    if step.kind == "teacher":
        optim = teacher_recipe(recipe).stage1
        epochs, seen, memory = optim.epochs, teacher.macs, training_bytes(teacher, optim)
        learnt = float(FORWARD_AND_BACK * teacher.macs)
    elif step.kind == "stage1":
        epochs, seen, memory = (
            recipe.stage1.epochs,
            student.macs,
            training_bytes(student, recipe.stage1),
        )
        memory += FLOAT_BYTES * teacher.params if step.taught else 0
        learnt = FORWARD_AND_BACK * student.macs
    else:
        epochs, seen = recipe.stage2.optim.epochs, round(student.macs + REFINER_MACS)
        learnt = student.macs + FORWARD_AND_BACK * REFINER_MACS
    learnt += teacher.macs if step.taught else 0
    train, dev = people
    return Cost(step.name, 2 * epochs * (train * learnt + dev * seen), memory)


def decoded_bytes(recipe: Recipe, root: Path, dataset: DatasetName) -> float | None:
    """Of the cache of decoded photos, by the annotations; without them COCO's by its mean size."""
    total = 0
    for source in recipe.sources:
        try:
            record = json.loads((root / source.annotations).read_bytes())
            counted = {p["image_id"] for p in record["annotations"] if is_counted(p)}
            total += sum(
                3 * image["width"] * image["height"]
                for image in record["images"]
                if image["id"] in counted
            )
        except (OSError, ValueError, KeyError, TypeError):
            return PHOTOS * PHOTO_BYTES if dataset == "coco" else None
    return float(total)


def kept_bytes(plan: Plan, networks: Networks) -> float:
    """Of the plan's folder: states and checkpoints of its runs, and the graphs."""
    total = 0.0
    for step in plan.steps:
        if step.recipe is not None:
            network = networks.teacher if step.kind == "teacher" else networks.student
            weights = FLOAT_BYTES * network.params
            total += weights * (STATE_COPIES + (2 if step.kind != "stage2" else 0) + 1)
    return total
