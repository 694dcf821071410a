"""`cfpose-train init`: what it says of the data, and the recipe that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.errors import ArtifactError, DatasetError, InputError
from cfpose_sdk.skeleton import COCO_17, Skeleton
from cfpose_training.checkpoints.files import save_pose
from cfpose_training.checkpoints.initial import open_initial
from cfpose_training.cli import main
from cfpose_training.config import Recipe, Source, load_recipe
from cfpose_training.data.people import load_people
from cfpose_training.fit import facts
from cfpose_training.fit.estimate import network_cost, training_bytes
from cfpose_training.fit.facts import look_at, split
from cfpose_training.nets.movenet import MoveNetConfig
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.evaluation import Predictions
from cfpose_training.pose.train import deployed_spec, pose_spec
from tests.training.checkpoints.test_initial import spec_of

FIVE = Skeleton(
    ("nose", "left_wrist", "right_wrist", "left_ankle", "right_ankle"), (), ((1, 2), (3, 4)),
    (0.026, 0.062, 0.062, 0.089, 0.089),
)  # fmt: skip


def init(root: Path, *more: str) -> Recipe:
    arguments = ["--annotations", str(root / "people.json"), "--images", str(root / "images")]
    target = root / "mine.toml"
    assert main(["init", *arguments, "-o", str(target), "--no-estimate", *more]) == 0
    return load_recipe(target)


def test_the_recipe_carries_over_what_its_start_needs(
    tmp_path: Path, write_data: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, skeleton=FIVE)
    recipe = init(tmp_path)
    said = capsys.readouterr().out
    assert "12 people with labelled joints on 12 photos" in said
    assert "nose 12, left_wrist 12" in said
    assert "held out for development: 2 people, on the photos whose id 5 divides" in said
    assert "knows 5 of the 5 joints by name" in said
    assert f"cfpose-train fit --recipe {tmp_path / 'mine.toml'} --out runs/mine" in said
    start = open_initial(model_file("default"))
    assert start.spec is not None
    spec = deployed_spec(recipe)
    for name in ("size_wh", "split_ratio", "decode", "oks_window", "evidence", "box_scale",
                 "spread_temperature", "spread_isotropy", "mean_rgb", "std_rgb"):  # fmt: skip
        assert getattr(spec, name) == getattr(start.spec, name), name
    assert pose_spec(recipe).box_scale > spec.box_scale
    assert recipe.joints == FIVE
    assert set(start.spec.trained_on) < set(recipe.trained_on)
    assert recipe.pose.head == start.head
    assert recipe.fit.init == "cfpose-s"
    assert recipe.fit.init_share == 0.5
    assert recipe.fit.data_root == "."
    (source,) = recipe.sources
    assert (source.annotations, source.images, source.holdout_every) == ("people.json", "images", 5)
    # an epoch of few people has four batches, none of them too large
    assert source.repeat * 10 >= 4 * recipe.stage1.batch_size
    assert recipe.stage1.batch_size <= 10


def test_joints_that_the_start_does_not_know_get_a_longer_run_and_no_way_back(
    tmp_path: Path, write_data: Callable[..., None]
) -> None:
    write_data(tmp_path / "five", skeleton=FIVE)
    others = Skeleton(("nose", "tail"), (), (), (0.026, 0.067))
    write_data(tmp_path / "others", skeleton=others)
    known, fresh = init(tmp_path / "five"), init(tmp_path / "others")
    assert fresh.fit.init_share == 0
    assert fresh.stage1.epochs > known.stage1.epochs
    assert fresh.stage1.lr > known.stage1.lr
    assert fresh.joints == others


def test_a_start_on_movenets_trunk(tmp_path: Path, write_data: Callable[..., None]) -> None:
    write_data(tmp_path, skeleton=FIVE)
    network = PoseNet(MoveNetConfig("lightning", frozen=0), spec_of(COCO_17), "marginal")
    save_pose(tmp_path / "start.safetensors", network, spec_of(COCO_17))
    recipe = init(tmp_path, "--from", str(tmp_path / "start.safetensors"))
    assert recipe.pose.movenet == MoveNetConfig("lightning", frozen=4)
    assert recipe.pose.head == "marginal"
    assert recipe.fit.init == str(tmp_path / "start.safetensors")
    assert training_bytes(network_cost(recipe), recipe.stage1) > 4 * sum(
        p.numel() for p in network.parameters()
    )


def test_sizes_and_starts(tmp_path: Path, write_data: Callable[..., None]) -> None:
    write_data(tmp_path, skeleton=FIVE)
    large = init(tmp_path, "--size", "w32")
    assert large.pose.hrnet is not None
    assert large.pose.hrnet.width == 32
    assert large.fit.init == ""
    with pytest.raises(InputError, match=r"mine.toml is there already; give another -o"):
        init(tmp_path)
    (tmp_path / "mine.toml").unlink()
    with pytest.raises(ArtifactError, match="nothing is no bundled model"):
        init(tmp_path, "--from", "nothing")
    assert not (tmp_path / "mine.toml").exists()


def test_odd_data_are_noted(tmp_path: Path, write_data: Callable[..., None]) -> None:
    write_data(tmp_path, skeleton=FIVE)
    file = tmp_path / "people.json"
    record = json.loads(file.read_text())
    for person in record["annotations"]:
        person["keypoints"][3:6] = [0, 0, 0]
        del person["area"]
    picture = (tmp_path / "images" / "000000000005.png").read_bytes()
    (tmp_path / "images" / "000000000001.png").write_bytes(picture)
    file.write_text(json.dumps(record))
    text = look_at(file, tmp_path / "images").text
    assert "NOTE: never labelled, so the network cannot learn them: left_wrist" in text
    assert "NOTE: 12 people have no area (or 0); that of their box is taken" in text
    assert "000000000005.png of the development photos shows what 000000000001.png shows" in text
    assert "NOTE: 2 development people say little" in text
    (tmp_path / "images" / "000000000007.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 12 photos are missing .* as --images"):
        look_at(file, tmp_path / "images")


def test_the_split_leaves_people_on_both_sides() -> None:
    assert split(dict.fromkeys(range(1, 61), 1)) == (5, 12)
    assert split(dict.fromkeys(range(2, 200, 5), 1))[1] > 0  # none is divided by 5
    assert split({1: 1, 2: 9, 3: 1})[1] == 1
    with pytest.raises(DatasetError, match="cannot be split"):
        split({3: 2})


@pytest.mark.parametrize("swapped", [False, True])
def test_swapped_sides_are_noticed(
    tmp_path: Path, write_data: Callable[..., None], monkeypatch: pytest.MonkeyPatch, *,
    swapped: bool,
) -> None:  # fmt: skip
    """The start answers with the true joints; the file has left and right the other way round."""
    write_data(tmp_path)
    source = Source("own", "people.json", "images")
    truth = load_people([source], tmp_path, COCO_17).joints[..., :2]
    if swapped:
        record = json.loads((tmp_path / "people.json").read_text())
        for person in record["annotations"]:
            flat = np.array(person["keypoints"]).reshape(17, 3)[COCO_17.flip_order]
            person["keypoints"] = flat.ravel().tolist()
        (tmp_path / "people.json").write_text(json.dumps(record))
    monkeypatch.setattr(
        facts, "predict_people", lambda *_: Predictions(truth + 1.0, np.ones(truth.shape[:2]))
    )
    start = open_initial(model_file("default"))
    note = facts.swapped_note(start, tmp_path / "people.json", tmp_path / "images")
    assert note.startswith("left and right look swapped in 12 of 12 people") == swapped
    assert bool(note) == swapped
