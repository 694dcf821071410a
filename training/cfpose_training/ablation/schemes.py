"""The schemes of the paper's Table IV, as changes of a recipe."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from cfpose_sdk.errors import TrainingError
from cfpose_training.config import GcnTarget, Recipe

SchemeName = Literal["baseline", "1", "2", "3", "4", "5", "6"]


class Switches(NamedTuple):
    """The switches that a scheme sets; it changes nothing else."""

    kd_fea: bool
    kd_l1: bool
    kd_cst: bool
    gcn: GcnTarget


# The table leaves the L1 column blank for 4 and 6. Limb lengths alone cannot place a pose, and
# eq. (2) holds both terms, so both are on.
SCHEMES: dict[SchemeName, Switches] = {
    "baseline": Switches(kd_fea=False, kd_l1=False, kd_cst=False, gcn="off"),
    "1": Switches(kd_fea=False, kd_l1=False, kd_cst=False, gcn="gt"),
    "2": Switches(kd_fea=True, kd_l1=False, kd_cst=False, gcn="off"),
    "3": Switches(kd_fea=True, kd_l1=True, kd_cst=False, gcn="off"),
    "4": Switches(kd_fea=True, kd_l1=True, kd_cst=True, gcn="off"),
    "5": Switches(kd_fea=False, kd_l1=False, kd_cst=False, gcn="teacher"),
    "6": Switches(kd_fea=True, kd_l1=True, kd_cst=True, gcn="teacher"),
}


def scheme(recipe: Recipe, name: str) -> Recipe:
    """`recipe` with kd_fea, kd_l1, kd_cst and gcn as Table IV has them; nothing else changes.

    kd_logit is not in the table, so it stays as the recipe has it in every scheme: off in the paper
    profiles; on in the improved one, whose baseline then learns the teacher's bins. Raises
    TrainingError for a name that the table does not have.
    """
    switches = next((value for key, value in SCHEMES.items() if key == name), None)
    if switches is None:
        raise TrainingError(f"there is no scheme {name!r}; the schemes are {', '.join(SCHEMES)}")
    distill = dataclasses.replace(
        recipe.distill,
        kd_fea=switches.kd_fea,
        kd_l1=switches.kd_l1,
        kd_cst=switches.kd_cst,
    )
    stage2 = dataclasses.replace(recipe.stage2, gcn=switches.gcn)
    return dataclasses.replace(recipe, distill=distill, stage2=stage2)


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """`recipe` with this seed for both stages of the student."""
    optim = dataclasses.replace(recipe.stage2.optim, seed=seed)
    return dataclasses.replace(
        recipe,
        stage1=dataclasses.replace(recipe.stage1, seed=seed),
        stage2=dataclasses.replace(recipe.stage2, optim=optim),
    )
