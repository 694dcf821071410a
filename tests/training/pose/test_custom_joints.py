"""Sets of one's own joints through stage 1 and the finish: from one joint to a hand's 21."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.finish import finish_student
from cfpose_training.pose.run import stage1_record
from cfpose_training.pose.train import train_stage1
from cfpose_training.run.loop import RunOptions
from cfpose_training.skeletons import skeleton_of
from cfpose_training.sources import with_joints

LSP_12 = Skeleton(  # the labelled joints of LSP-Extended: COCO's without the face
    COCO_17.keypoints[5:],
    (),
    tuple((a - 5, b - 5) for a, b in COCO_17.flip_pairs if a >= 5),
    COCO_17.oks_sigmas[5:],
)
FINGERS = ("thumb", "index", "middle", "ring", "little")
HAND_21 = skeleton_of(
    {
        "keypoints": ["wrist", *(f"{finger} {n}" for finger in FINGERS for n in range(4))],
        "skeleton": [
            [1 if n == 0 else 1 + 4 * f + n, 2 + 4 * f + n] for f in range(5) for n in range(4)
        ],
    },
    "hand",
)
TIP = Skeleton(("tip",), (), (), (0.067,))


@pytest.mark.parametrize(
    ("skeleton", "flips"), [(LSP_12, 6), (CROWDPOSE_14, 6), (HAND_21, 0), (TIP, 0)]
)
def test_a_set_of_joints_trains_and_is_finished(
    tiny_recipe: Path, tmp_path: Path, write_data: Callable[..., None], skeleton: Skeleton,
    flips: int,
) -> None:  # fmt: skip
    write_data(tmp_path / "data", skeleton=skeleton)
    text = tiny_recipe.read_text().replace('skeleton = "coco-17"\n', "", 1)
    tiny_recipe.write_text(text.replace("epochs = 2", "epochs = 1"))
    recipe = load_recipe(tiny_recipe)
    data = DataOptions(tmp_path / "data", tmp_path / "cache")
    student = train_stage1(recipe, data, RunOptions(tmp_path / "run", accelerator="cpu", threads=1))
    assert student is not None
    finished = finish_student(recipe, student, data, tmp_path / "out")
    spec = load_pose(finished)[1]
    assert spec.skeleton.keypoints == skeleton.keypoints
    assert len(spec.skeleton.flip_pairs) == flips
    assert spec.calibrated
    assert not load_pose(student)[1].calibrated
    picture = cv2.imread(str(tmp_path / "run" / "batch0.jpg"))
    assert picture.std() > 10


def test_records_name_known_sets_and_spell_out_others(tiny_recipe: Path, tiny_root: Path) -> None:
    recipe = with_joints(load_recipe(tiny_recipe), tiny_root)
    assert stage1_record(recipe, "stage1")["skeleton"] == "'coco'"
    tiny_recipe.write_text(
        tiny_recipe.read_text().replace(
            'skeleton = "coco-17"',
            'joints = { keypoints = ["a"], limbs = [], flip_pairs = [], oks_sigmas = [0.1] }',
        )
    )
    record = stage1_record(load_recipe(tiny_recipe), "stage1")
    assert record["joints.keypoints"] == "('a',)"
    assert "skeleton" not in record


def test_a_hand_has_a_limb_to_every_joint_but_its_root() -> None:
    assert len(HAND_21.limbs) == 20
    assert {b for _, b in HAND_21.limbs} == set(range(1, 21))
    assert np.unique(HAND_21.oks_sigmas).tolist() == [0.067]
