"""One run of a pose stage: its people, its figures, its checkpoints, and its record for resume."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.files import save_pose
from cfpose_training.config import OptimConfig, Recipe
from cfpose_training.data.crop_dataset import CropDataset, DataOptions
from cfpose_training.data.loader import Batches, Shard, batches_per_epoch, epoch_batches
from cfpose_training.data.people import People, load_people
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.data.photo_sizes import other_sizes
from cfpose_training.nets.igp_gcn import IGPGCN
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.evaluation import DevelopmentSet
from cfpose_training.pose.pictures import BATCH_FILE, DEV_FILE, write_batch, write_development
from cfpose_training.processes import is_first_process
from cfpose_training.run.loop import RunOptions, fit
from cfpose_training.run.state import FREE_OPTIM_FIELDS, Record, recorded
from cfpose_training.skeletons import NAMED
from cfpose_training.stages.base import Stage
from cfpose_training.stages.stage1 import AlignedStudent

# They label the artifact, or say how it is used.
FREE_FIELDS = FREE_OPTIM_FIELDS | {
    "name", "deploy_box_scale", "evidence", "oks_window", "spread_temperature", "spread_isotropy",
}  # fmt: skip
# Of other commands, or labels too; the teacher counts by the content of its file.
FREE_TABLES = {
    "teacher", "finder", "trained_on", "license", "skeleton", "joints", "fit", "started_from",
    "start",
}  # fmt: skip
RECORDED = ("coco", "crowdpose")  # joints that records have always held by their name


@dataclass(frozen=True)
class PoseRun:
    """What a run of one pose stage reads and where it writes."""

    optim: OptimConfig
    spec: ModelSpec
    recipe: Recipe
    data: DataOptions
    options: RunOptions
    dev: DevelopmentSet | None

    def people(self) -> People:
        """All people to train on. Raises TrainingError when there are none."""
        recipe = self.recipe
        people = load_people(
            recipe.sources, self.data.root, self.spec.skeleton, arithmetic=recipe.pose.arithmetic
        )
        if not len(people):
            raise TrainingError("the recipe's sources hold no labelled person")
        return people

    def batches(self, people: People) -> Batches:
        """Augmented crops of `people`."""
        recipe, optim = self.recipe, self.optim
        cache = cache_photos(people.photos, self.data.cache)
        sizes_wh = people.sizes_wh or cache.sizes_wh  # people of one's own have none annotated
        problem = other_sizes(people.photos, sizes_wh, cache.sizes_wh)
        if problem and is_first_process():
            print(f"cfpose-train: warning: {problem}", file=sys.stderr)
        dataset = CropDataset(
            people, cache, self.spec, recipe.augment, recipe.labels, optim.seed,
            mild=recipe.mild_augment, mild_from=optim.epochs - optim.mild_epochs,
            arithmetic=recipe.pose.arithmetic,
        )  # fmt: skip
        return epoch_batches(dataset, people.repeat, optim, pin_memory=self.options.uses_cuda)

    def train(
        self, stage: Stage, network: PoseNet | RefinedPoseNet, people: People, record: Record
    ) -> PoseNet | RefinedPoseNet | None:
        """Train `network`, of which `stage` trains a part; None when time ran out first.

        Gives the network of the last epoch. Raises TrainingError as `fit` does.
        """

        def save_checkpoint(path: Path, module: nn.Module, metrics: Mapping[str, float]) -> None:
            spec = dataclasses.replace(self.spec, metrics=metrics)
            save_pose(path, self._assembled(network, module), spec)

        batches = self.batches(people)
        self._show_batch(batches)
        finished = fit(
            stage,
            batches,
            batches_per_epoch(people.repeat, self.optim),
            self.optim,
            self.options,
            after_epoch=lambda _, module: self._figures(self._assembled(network, module)),
            record=record | {"people": people_digest(people)},
            save_checkpoint=save_checkpoint,
        )
        if not finished:
            return None
        return self._assembled(network, stage.trainable)

    def _figures(self, network: PoseNet | RefinedPoseNet) -> dict[str, float]:
        if self.dev is None:
            return {}
        predictions = self.dev.predict(network)
        write_development(self.options.folder / DEV_FILE, self.dev, predictions)
        accuracy = self.dev.accuracy(predictions)
        return {"dev_AP": accuracy.AP, "dev_AP50": accuracy.AP50}

    def _show_batch(self, batches: Batches) -> None:
        """Draw the run's first batch, which the run then loads again."""
        picture = self.options.folder / BATCH_FILE
        if is_first_process() and not picture.exists():
            batch = next(iter(batches(0, 0, Shard())), None)
            if batch is not None:
                write_batch(picture, batch, self.spec.skeleton)

    def _assembled(
        self, network: PoseNet | RefinedPoseNet, trained: nn.Module
    ) -> PoseNet | RefinedPoseNet:
        """The whole network around the part that the loop trains, or around its average.

        A student trained on `softmax_beta` times its logits gets that factor into its head.
        """
        if isinstance(network, RefinedPoseNet):
            assert isinstance(trained, IGPGCN)
            return RefinedPoseNet(network.pose, trained, network.spec)
        student = trained.student if isinstance(trained, AlignedStudent) else trained
        assert isinstance(student, PoseNet)
        if self.recipe.labels.softmax_beta != 1:
            student = copy.deepcopy(student)
            student.head.scale_logits(self.recipe.labels.softmax_beta)
        return student


def stage1_record(recipe: Recipe, stage: str) -> Record:
    """The record of `stage`: the recipe's fields that decide stage 1, or the teacher's training."""
    return {"stage": stage, **_recipe_record(recipe, {"stage2"})}


def stage2_record(recipe: Recipe) -> Record:
    """The record of stage 2: the recipe's fields that decide its result."""
    window = {"pose.oks_window": repr(recipe.pose.oks_window)}  # its coarse poses are as they ship
    return {"stage": "stage2", **_recipe_record(recipe, {"stage1", "distill"}), **window}


def _recipe_record(recipe: Recipe, unused: set[str]) -> Record:
    """Every table but those of other commands, so that a new one is compared as well."""
    named = next((name for name in RECORDED if NAMED[name] == recipe.joints), None)
    record = recorded(recipe.joints, "joints") if named is None else {"skeleton": repr(named)}
    for field in dataclasses.fields(recipe):
        if field.name not in unused | FREE_TABLES:
            record |= recorded(getattr(recipe, field.name), field.name, FREE_FIELDS)
    return record


def people_digest(people: People) -> str:
    """A digest of the training people, their photos and their order; not of the pixels."""
    digest = hashlib.sha256("\n".join(path.name for path in people.photos).encode())
    weight = np.ones(len(people))  # of a person, which records of before hold
    for array in (people.photo, people.boxes, people.joints, weight, people.repeat):
        digest.update(np.ascontiguousarray(array).tobytes())
    if (people.joint_weight != 1).any():  # runs without such weights keep the digest they had
        digest.update(np.ascontiguousarray(people.joint_weight).tobytes())
    return f"{len(people)} people with SHA-256 {digest.hexdigest()[:16]}"
