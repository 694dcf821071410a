"""A student as it ships without a refiner: the artifact's spec, fitted on the held-out photos.

Tuned networks forget what the tuning photos do not show. Weights on the way back to the start keep
more of it and lose little: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.convert import initialise
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.checkpoints.starts import inherited
from cfpose_training.config import Recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.calibration import measured_spec
from cfpose_training.pose.train import check_student, deployed_spec, development_set

FINISHED_FILE = "finished.safetensors"


def finish_student(
    recipe: Recipe,
    student: Path,
    data: DataOptions,
    folder: Path,
    *,
    init: Path | None = None,
    init_share: float = 0.0,
) -> Path:
    """Write the student of stage 1 with the recipe's deployed margin, decoder and evidence.

    With `init`, which the student began from, its weights are mixed with those of the start, whose
    share is `init_share`. Confidence, covariance and figures are those on the held-out photos.
    Returns the checkpoint in `folder`. Raises TrainingError when the student has a refiner or is of
    another recipe, the file is there already, or the share is not of (0, 1) or without its file.
    """
    if not 0 <= init_share < 1 or (init is None) != (init_share == 0):
        raise TrainingError(
            f"the start's share is {init_share} and its file {init}; expected a share of (0, 1) "
            f"with a file, or neither"
        )
    target = folder / FINISHED_FILE
    if target.exists():
        raise TrainingError(f"{target} is there already; give another --out, or move it away")
    network, spec = load_pose(student)
    if isinstance(network, RefinedPoseNet):
        raise TrainingError(f"{student} has a refiner, and is finished; give one of stage 1")
    check_student(student, spec, recipe)
    if init is not None:
        _mix_with_start(network, spec, recipe, init, init_share)
    started = inherited([spec], recipe.started_from)
    deployed = dataclasses.replace(deployed_spec(recipe), started_from=started)
    measured = measured_spec(network, deployed, development_set(recipe, deployed, data))
    folder.mkdir(parents=True, exist_ok=True)
    save_pose(target, network, measured)
    return target


def _mix_with_start(
    network: PoseNet, spec: ModelSpec, recipe: Recipe, init: Path, share: float
) -> None:
    """Move the weights by `share` of the way to those that a run of the recipe begins with."""
    start = PoseNet(recipe.pose.backbone, spec, recipe.pose.head)
    drawn = initialise(start, init).fresh
    if drawn and recipe.pose.head != "marginal":  # whose other parts begin without chance
        raise TrainingError(
            f"{init} lacks {', '.join(drawn)}, and what is drawn at random has no way back; give "
            f"the whole network that the student began from"
        )
    began = start.state_dict()
    network.load_state_dict(
        {
            key: value + share * (began[key] - value) if value.is_floating_point() else value
            for key, value in network.state_dict().items()
        }
    )
