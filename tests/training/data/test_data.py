"""Annotations and photos to crops: who is taken, where joints land, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cfpose_sdk.crops import transform_points
from cfpose_sdk.errors import DatasetError, ImageError, TrainingError
from cfpose_sdk.skeleton import COCO_17, Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import AugmentConfig, LabelConfig, OptimConfig, Source
from cfpose_training.data.crop_dataset import CropDataset, plain_crops
from cfpose_training.data.loader import EpochSampler, Shard, epoch_batches
from cfpose_training.data.people import load_people
from cfpose_training.data.photo_cache import cache_photos

SPEC = ModelSpec(name="t", skeleton=COCO_17, size_wh=(36, 48))
SOURCE = Source("people", "people.json", "images", repeat=2, holdout_every=5)


def dataset(root: Path, augment: AugmentConfig) -> CropDataset:
    people = load_people([SOURCE], root, COCO_17)
    cache = cache_photos(people.photos, root / "cache")
    return CropDataset(people, cache, SPEC, augment, LabelConfig(kind="gaussian"), seed=3)


def edit(root: Path, change: Any) -> None:
    record = json.loads((root / "people.json").read_text())
    change(record)
    (root / "people.json").write_text(json.dumps(record))


def test_development_photos_are_kept_out(tiny_root: Path) -> None:
    train = load_people([SOURCE], tiny_root, COCO_17)
    held_out = load_people([SOURCE], tiny_root, COCO_17, held_out=True)
    assert set(held_out.image_ids) == {5, 10}
    assert set(train.image_ids) == set(range(1, 13)) - {5, 10}
    assert not set(train.photos) & set(held_out.photos)


def test_crowds_and_people_without_joints_are_left_out(tiny_root: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["annotations"][0]["iscrowd"] = 1
        record["annotations"][1]["keypoints"] = [0] * 51
        record["annotations"][1]["num_keypoints"] = 0
        record["annotations"][2]["bbox"] = [500.0, 500.0, 20.0, 20.0]  # outside the photo

    edit(tiny_root, change)
    assert not {1, 2, 3} & set(load_people([SOURCE], tiny_root, COCO_17).image_ids)


def test_unlabelled_joints_have_no_weight_and_labelled_ones_one(tiny_root: Path) -> None:
    edit(tiny_root, lambda record: record["annotations"][0]["keypoints"].__setitem__(5, 0))
    item = dataset(tiny_root, AugmentConfig(0, 0, 0, 0, 0))[(0, 0, 0)]
    assert item["weight"].tolist() == [1.0, 0.0] + [1.0] * 15


def test_joints_weigh_as_their_annotation_says_and_swap_when_mirrored(tiny_root: Path) -> None:
    weights = [0.25, 1.0, 0.5, *[1.0] * 13, 0.0]
    edit(tiny_root, lambda record: record["annotations"][0].update(joint_weights=weights))
    plain = dataset(tiny_root, AugmentConfig(0, 0, 0, 0, 0))
    mirrored = dataset(tiny_root, AugmentConfig(1, 0, 0, 0, 0))
    assert plain[(0, 0, 0)]["weight"].tolist() == weights
    swapped = [0.25, 0.5, *[1.0] * 13, 0.0, 1.0]
    assert mirrored[(0, 0, 0)]["weight"].tolist() == swapped
    assert plain[(0, 1, 0)]["weight"].tolist() == [1.0] * 17


@pytest.mark.parametrize("weights", [[1.0] * 16, [1.0] * 16 + [1.5], [1.0] * 16 + [None], 0.5])
def test_wrong_joint_weights_are_refused(tiny_root: Path, weights: object) -> None:
    edit(tiny_root, lambda record: record["annotations"][0].update(joint_weights=weights))
    with pytest.raises(DatasetError, match="annotation 1 needs 17 numbers"):
        load_people([SOURCE], tiny_root, COCO_17)


def test_mirrored_crops_swap_left_and_right(tiny_root: Path) -> None:
    plain = dataset(tiny_root, AugmentConfig(0, 0, 0, 0, 0))[(0, 0, 0)]
    mirrored = dataset(tiny_root, AugmentConfig(1, 0, 0, 0, 0))[(0, 0, 0)]
    expected = plain["xy"][COCO_17.flip_order.tolist()].clone()
    expected[:, 0] = 35 - expected[:, 0]
    torch.testing.assert_close(mirrored["xy"], expected)


def test_joints_land_on_their_colours(tiny_root: Path) -> None:
    """The right joint, not its mirror twin: blobs differ in colour."""
    data = dataset(tiny_root, AugmentConfig(1, 0, 0, 0, 0))
    hits = 0
    for person in range(len(data.people)):
        item = data[(0, person, 0)]
        for joint, (x, y) in enumerate(item["xy"].round().long().tolist()):
            source = int(COCO_17.flip_order[joint])
            colour = np.array([source * 15 % 256, 255 - source * 15, (source * 60) % 256])
            hits += bool(np.abs(item["crops"][y, x].numpy().astype(int) - colour).max() < 40)
    assert hits > 0.5 * 17 * len(data.people)  # the rest is hidden by later blobs


def test_items_depend_on_their_address_alone(tiny_root: Path) -> None:
    first, second = (dataset(tiny_root, AugmentConfig()) for _ in range(2))
    _ = second[(0, 1, 0)]
    for key, value in first[(4, 2, 1)].items():
        assert torch.equal(value, second[(4, 2, 1)][key])
    assert not torch.equal(first[(4, 2, 1)]["xy"], first[(5, 2, 1)]["xy"])


def test_epochs_visit_everybody_as_often_as_asked_and_can_be_entered_midway() -> None:
    repeat = np.array([1, 3, 2])
    visits = list(EpochSampler(repeat, seed=1, epoch=4))
    assert sorted(visits) == [(4, 0, 0), (4, 1, 0), (4, 1, 1), (4, 1, 2), (4, 2, 0), (4, 2, 1)]
    assert list(EpochSampler(repeat, seed=1, epoch=4, start=2)) == visits[2:]
    assert [v[1:] for v in EpochSampler(repeat, seed=1, epoch=5)] != [v[1:] for v in visits]


def test_shards_take_disjoint_parts_of_the_same_whole_batches() -> None:
    repeat = np.array([3, 3, 3, 2])  # 11 visits: two batches of 4, and 3 left over
    whole = list(EpochSampler(repeat, seed=1, epoch=0))
    parts = [
        list(EpochSampler(repeat, seed=1, epoch=0, start=4, multiple=4, shard=Shard(rank, 2)))
        for rank in range(2)
    ]
    assert [len(part) for part in parts] == [2, 2]
    assert sorted(parts[0] + parts[1]) == sorted(whole[4:8])


def test_a_batch_that_does_not_divide_is_refused(tiny_root: Path) -> None:
    data = dataset(tiny_root, AugmentConfig())
    batches = epoch_batches(data, data.people.repeat, OptimConfig(epochs=1, batch_size=5))
    with pytest.raises(TrainingError, match="batch_size 5 does not divide among 2"):
        batches(0, 0, Shard(0, 2))


def test_plain_crops_carry_their_maps(tiny_root: Path) -> None:
    people = load_people([SOURCE], tiny_root, COCO_17)
    cache = cache_photos(people.photos, tiny_root / "cache")
    crops, transforms = plain_crops(people, cache, SPEC, [0, 3])
    assert crops.shape == (2, 48, 36, 3)
    centre = (people.boxes[[0, 3], :2] + people.boxes[[0, 3], 2:]) / 2
    np.testing.assert_allclose(transform_points(transforms, centre[:, None])[:, 0], [[18, 24]] * 2)


def test_other_keypoints_are_refused(tiny_root: Path) -> None:
    others = Skeleton(("tail", "snout"), (), (), (0.1, 0.1))
    with pytest.raises(DatasetError, match="none of the recipe's 2"):
        load_people([SOURCE], tiny_root, others)


def test_missing_photos_are_named(tiny_root: Path) -> None:
    (tiny_root / "images" / "000000000003.png").unlink()
    people = load_people([SOURCE], tiny_root, COCO_17)
    with pytest.raises(DatasetError, match=r"1 of 10 photos are missing.*000000000003"):
        cache_photos(people.photos, tiny_root / "cache")


def test_a_broken_photo_leaves_no_cache_behind(tiny_root: Path) -> None:
    photo = tiny_root / "images" / "000000000003.png"
    good = photo.read_bytes()
    photo.write_bytes(good[:50])
    people = load_people([SOURCE], tiny_root, COCO_17)
    with pytest.raises(ImageError):
        cache_photos(people.photos, tiny_root / "cache")
    assert not any((tiny_root / "cache").glob("*.json"))
    photo.write_bytes(good)
    assert len(cache_photos(people.photos, tiny_root / "cache")) == 10


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_batches_do_not_depend_on_the_loaders_processes(tiny_root: Path) -> None:
    data = dataset(tiny_root, AugmentConfig())
    torch.manual_seed(4)
    state = torch.get_rng_state()
    loaded = []
    for workers in (0, 1, 2):
        optim = OptimConfig(epochs=1, batch_size=4, workers=workers)
        loaded.append(list(epoch_batches(data, data.people.repeat, optim)(3, 1, Shard())))
    assert len(loaded[0]) == 4  # 20 visits, without the first batch
    for other in loaded[1:]:
        for expected, found in zip(loaded[0], other, strict=True):
            assert expected.keys() == found.keys()
            assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert torch.equal(torch.get_rng_state(), state)  # a resumed run restores it before loading


def test_memory_is_pinned_for_cuda_alone(tiny_root: Path) -> None:
    data, optim = dataset(tiny_root, AugmentConfig()), OptimConfig(epochs=1, batch_size=4)
    for pin in (False, True):
        loader: Any = epoch_batches(data, data.people.repeat, optim, pin_memory=pin)(0, 0, Shard())
        assert loader.pin_memory is pin


def test_a_loader_process_maps_the_photos_instead_of_copying_them(tiny_root: Path) -> None:
    people = load_people([SOURCE], tiny_root, COCO_17)
    cache = cache_photos(people.photos, tiny_root / "cache")
    packed = pickle.dumps(cache)
    assert len(packed) < cache[0].nbytes / 10
    copy = pickle.loads(packed)
    assert len(copy) == len(cache)
    assert all(np.array_equal(copy[index], cache[index]) for index in range(len(cache)))


def test_the_last_epochs_are_augmented_mildly(tiny_root: Path) -> None:
    strong = AugmentConfig(0, 0, 0, 0, 0, dropout_p=1.0, dropout_side=(1.0, 1.0))
    still = AugmentConfig(0, 0, 0, 0, 0)
    people = load_people([SOURCE], tiny_root, COCO_17)
    cache = cache_photos(people.photos, tiny_root / "cache")
    data = CropDataset(
        people, cache, SPEC, strong, LabelConfig(kind="gaussian"), 3, mild=still, mild_from=2
    )
    black = [bool((data[(epoch, 0, 0)]["crops"] == 0).all()) for epoch in range(4)]
    assert black == [True, True, False, False]
    plain = dataset(tiny_root, still)[(3, 0, 0)]
    for key, value in data[(3, 0, 0)].items():
        assert torch.equal(value, plain[key])
    assert torch.equal(data[(0, 0, 0)]["xy"], plain["xy"])  # a hole hides joints, it moves none
    assert torch.equal(data[(0, 0, 0)]["weight"], plain["weight"])
