"""The person finder's parts against slow formulas, and the whole way on drawn people."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cfpose_sdk.boxes import letterbox
from cfpose_sdk.errors import ArtifactError, DatasetError, TrainingError
from cfpose_training.checkpoints.files import load_finder, load_tensors, save_tensors
from cfpose_training.config import (
    FinderAugmentConfig,
    FinderConfig,
    OptimConfig,
    PhotoSource,
    load_recipe,
)
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.finder.boxes import LabelledPhoto, label_photos, list_photos
from cfpose_training.finder.data import (
    PAD_VALUE,
    FinderDataset,
    edges_to_centres,
    finder_targets,
    random_view,
    render_view,
)
from cfpose_training.finder.stage import FinderStage, focal_loss, giou
from cfpose_training.finder.train import finder_spec, train_finder
from cfpose_training.nets.finder import (
    FinderNet,
    FinderNetConfig,
    FinderOutput,
    pick_people,
    sides_to_boxes,
)
from cfpose_training.run.loop import RunOptions
from tests.training.yolox_cases import row, yolox_file

TINY = FinderNetConfig(channels=(8, 8, 8, 8, 8), blocks=(1, 1, 1, 1, 1), head_channels=8)
SIZE_WH = (128, 64)


def test_labels_keep_ground_truth_and_add_what_it_lacks(tiny_root: Path, tmp_path: Path) -> None:
    # the 120 x 100 photos fill the 416 letterbox at scale 416 / 120
    s = 416 / 120
    sources = (PhotoSource("people", "images", "people.json"),)
    config = FinderConfig("f", OptimConfig(1), sources, label_score=0.4, ignore_score=0.1)
    photos = list_photos(sources[0], tiny_root)
    x1, y1, x2, y2 = photos[0].people[0]
    labeller = yolox_file(
        tmp_path / "labeller.onnx",
        {
            0: row(0, 8, (x1 * s, y1 * s, x2 * s, y2 * s), 0.9),  # annotated already
            1: row(1, 8, (95 * s, 5 * s, 118 * s, 95 * s), 0.6),  # a new person
            2: row(2, 8, (0, 85 * s, 20 * s, 99 * s), 0.2),  # unsure
        },
    )
    cache = cache_photos([photo.path for photo in photos], tmp_path / "cache")
    first = label_photos(photos, cache, labeller, config, tmp_path / "labels")[0]
    np.testing.assert_allclose(first.people, [[x1, y1, x2, y2], [95, 5, 118, 95]], atol=1e-3)
    np.testing.assert_allclose(first.ignored, [[0, 85, 20, 99]], atol=1e-3)


def test_held_out_photos_and_folders(tiny_root: Path) -> None:
    annotated = PhotoSource("p", "images", "people.json", holdout_every=5)
    plain = PhotoSource("p", "images", holdout_every=4)
    assert [p.path.stem[-2:] for p in list_photos(annotated, tiny_root, held_out=True)] == [
        "05",
        "10",
    ]
    assert len(list_photos(annotated, tiny_root)) == 10
    assert len(list_photos(plain, tiny_root, held_out=True)) == 3  # photos 0, 4, 8 of 12
    with pytest.raises(DatasetError, match="holds no photos"):
        list_photos(PhotoSource("p", "nowhere"), tiny_root)


def test_targets_put_each_person_on_their_own_cells() -> None:
    large, small = np.array([8.0, 0.0, 120.0, 64.0]), np.array([60.0, 24.0, 76.0, 40.0])
    target = finder_targets(np.stack([small, large]), np.array([[0.0, 0.0, 16.0, 64.0]]), SIZE_WH)
    heat, box = target["heat"].numpy(), target["box"].numpy()
    assert heat.shape == (8, 16)
    # both centres lie near (64, 32) and (68, 32): cells (4, 8)
    assert heat[4, 8] == 1
    np.testing.assert_allclose(box[:, 4, 8], small)
    np.testing.assert_allclose(box[:, 4, 5], large)
    is_small = (box == small[:, None, None]).all(axis=0)
    weight = target["box_weight"].numpy()
    assert weight[is_small].sum() == pytest.approx(1)
    assert 0.2 < weight[~is_small].sum() < 1  # the small person stands before the large one
    assert target["heat_weight"][0, :2].tolist() == [0, 0]
    assert target["heat_weight"][0, 2] == 1


def test_picked_boxes_are_the_local_maxima() -> None:
    logits = torch.full((1, 8, 16), -6.0)
    logits[0, 2, 3], logits[0, 2, 4], logits[0, 6, 10] = 2.0, 1.0, 0.5
    sides = torch.ones(1, 4, 8, 16) * torch.tensor([10.0, 12.0, 14.0, 16.0]).reshape(1, 4, 1, 1)
    boxes, scores = pick_people(FinderOutput(logits, sides, sides), top_k=5)
    assert scores[0, :2].tolist() == pytest.approx(
        [(1 / (1 + math.exp(-2))) ** 0.25, (1 / (1 + math.exp(-0.5))) ** 0.25]
    )
    # the neighbour of a maximum is none itself; a plateau of background is all maxima, and low
    assert scores[0, 2].item() < 0.24
    np.testing.assert_allclose(boxes[0, 0], [24.5 - 10, 16.5 - 12, 24.5 + 14, 16.5 + 16])
    np.testing.assert_allclose(boxes[0, 1], [80.5 - 10, 48.5 - 12, 80.5 + 14, 48.5 + 16])


def test_giou_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (2, 40, 2))
    pair = np.concatenate([low, low + rng.uniform(1, 40, (2, 40, 2))], axis=2)
    expected = []
    for a, b in zip(*pair, strict=True):
        w = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        expected.append(w / union - (hull - union) / hull)
    first, second = (torch.from_numpy(x.T.reshape(1, 4, 5, 8)) for x in pair)
    np.testing.assert_allclose(giou(first, second).ravel(), expected, rtol=1e-9)


def test_focal_loss_equals_its_formula_and_skips_ignored_cells() -> None:
    logits, heat = torch.tensor([[[2.0, -1.0, 0.5]]]), torch.tensor([[[1.0, 0.5, 0.0]]])
    p = torch.sigmoid(logits).flatten().tolist()
    terms = [
        -((1 - p[0]) ** 2) * math.log(p[0]),
        -(p[1] ** 2) * 0.5**4 * math.log(1 - p[1]),
        -(p[2] ** 2) * math.log(1 - p[2]),
    ]
    assert focal_loss(logits, heat, torch.ones(1, 1, 3)).item() == pytest.approx(sum(terms))
    weight = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert focal_loss(logits, heat, weight).item() == pytest.approx(sum(terms[:2]))


@pytest.mark.parametrize("seed", range(20))
def test_views_move_boxes_with_their_pixels(tmp_path: Path, seed: int) -> None:
    """A white person on black, seen at random: the target box is where the white is."""
    x1, y1, x2, y2 = 70, 40, 130, 160
    picture = np.zeros((200, 240, 3), dtype=np.uint8)
    picture[y1:y2, x1:x2] = 255
    cv2.imwrite(str(tmp_path / "photo.png"), picture)
    path = tmp_path / "photo.png"
    person = np.array([[x1, y1, x2, y2]], dtype=float)
    labelled = [LabelledPhoto(path, people=person, ignored=np.zeros((0, 4)))]
    cache = cache_photos([path], tmp_path / "cache")
    augment = FinderAugmentConfig(contrast=0, brightness=0)
    item = FinderDataset(labelled, cache, (128, 128), augment, seed)[(0, 0, 0)]
    # grey is the margin beside the photo
    white = item["image"].numpy()[..., 0].astype(float) > 190
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    box = item["box"][:, item["heat"] == 1][:, 0]
    np.testing.assert_allclose(box, seen, atol=1.0)


def test_a_mosaic_holds_four_photos_and_their_boxes(tmp_path: Path) -> None:
    """White people on black: every box is white inside, and white outside boxes is ignored."""
    x1, y1, x2, y2 = 70, 40, 130, 160
    picture = np.zeros((200, 240, 3), dtype=np.uint8)
    picture[y1:y2, x1:x2] = 255
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for path in paths:
        cv2.imwrite(str(path), picture)
    person = np.array([[x1, y1, x2, y2]], dtype=float)
    labelled = [LabelledPhoto(path, people=person, ignored=np.zeros((0, 4))) for path in paths]
    cache = cache_photos(paths, tmp_path / "cache")
    found = []
    for seed in range(20):
        augment = FinderAugmentConfig(contrast=0, brightness=0, mosaic_p=1.0)
        item = FinderDataset(labelled, cache, (256, 256), augment, seed)[(0, 0, 0)]
        white = item["image"].numpy()[..., 0] > 190
        boxes = item["box"][:, item["heat"] == 1].T.numpy()
        found.append(len(boxes))
        for left, top, right, bottom in np.rint(boxes).astype(int):
            assert white[top + 2 : bottom - 2, left + 2 : right - 2].all()
            white[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
        rows, columns = np.nonzero(white)  # of people too small or too hidden
        weight = item["heat_weight"].numpy()[np.minimum(rows + 4, 255) // 8, columns // 8]
        assert (weight == 0).sum() >= 0.7 * len(rows)
    assert max(found) == 4
    assert np.mean(found) > 2


def test_views_zoom_within_their_range_and_keep_edges() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        view = random_view((100, 120), (320, 320), FinderAugmentConfig(), rng)
        assert 0.6 * 320 / 120 <= abs(view[0, 0]) <= 1.8 * 320 / 120
    still = edges_to_centres(np.array([[2.0, 0, 0], [0, 2.0, 0]]))
    np.testing.assert_allclose(still[:, 2], [0.5, 0.5])  # pixel 0 becomes pixels 0 and 1


def test_finder_overfits_one_photo(tiny_root: Path, tmp_path: Path) -> None:
    photos = list_photos(PhotoSource("p", "images", "people.json"), tiny_root)[:1]
    cache = cache_photos([photo.path for photo in photos], tmp_path / "cache")
    labeller = yolox_file(tmp_path / "labeller.onnx", {})
    config = FinderConfig("f", OptimConfig(1), ())
    labelled = label_photos(photos, cache, labeller, config, tmp_path / "labels")
    still = FinderAugmentConfig(flip_p=0, zoom=(1.0, 1.0), contrast=0, brightness=0)
    item = FinderDataset(labelled, cache, (128, 128), still, seed=0)[(0, 0, 0)]
    batch = {key: value.unsqueeze(0) for key, value in item.items()}
    torch.manual_seed(0)
    network = FinderNet(TINY)
    stage = FinderStage(network).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        loss = stage(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():  # batch statistics: one photo is the whole population
        output = network(stage.normalise(batch["image"]))
        boxes, scores = pick_people(output, top_k=3)
    target = batch["box"][0][:, batch["heat"][0] == 1][:, 0]
    assert scores[0, 0] > 0.5 > scores[0, 1]
    assert giou(boxes[0, :1].reshape(1, 4, 1, 1), target.reshape(1, 4, 1, 1)).item() > 0.7
    assert sides_to_boxes(output.sides).shape == (1, 4, 16, 16)


def test_a_second_look_joins_a_trained_finder(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    """What the first checkpoint lacks starts anew; a checkpoint that has it gives all."""
    labeller = yolox_file(tmp_path / "labeller.onnx", {})
    data = DataOptions(tiny_root, tmp_path / "cache")
    recipe = load_recipe(tiny_recipe)
    assert recipe.finder is not None
    first = train_finder(recipe, labeller, data, RunOptions(tmp_path / "a", accelerator="cpu"))
    assert first is not None
    net = dataclasses.replace(recipe.finder.net, box_grid=3)
    finder = dataclasses.replace(recipe.finder, net=net)
    options = RunOptions(tmp_path / "b", accelerator="cpu")
    again = dataclasses.replace(recipe, finder=finder)
    second = train_finder(again, labeller, data, options, init=first)
    assert second is not None
    network, _ = load_finder(second)
    assert network.box_refiner is not None
    assert network.box_refiner.sides.weight.abs().sum() > 0
    tensors, metadata = load_tensors(second)
    del tensors["box_refiner.sides.bias"]
    save_tensors(tmp_path / "half.safetensors", tensors, metadata)
    options = RunOptions(tmp_path / "e", accelerator="cpu")
    with pytest.raises(ArtifactError, match=r"missing box_refiner\.sides\.bias"):
        train_finder(again, labeller, data, options, init=tmp_path / "half.safetensors")
    options = RunOptions(tmp_path / "c", accelerator="cpu")
    assert train_finder(again, labeller, data, options, init=second) is not None
    with pytest.raises(ArtifactError, match="unexpected box_refiner"):
        train_finder(recipe, labeller, data, RunOptions(tmp_path / "d"), init=second)


def test_finder_trains_from_a_recipe(tiny_recipe: Path, tiny_root: Path, tmp_path: Path) -> None:
    labeller = yolox_file(tmp_path / "labeller.onnx", {})
    data = DataOptions(tiny_root, tmp_path / "cache")
    options = RunOptions(tmp_path / "run", accelerator="cpu")
    recipe = load_recipe(tiny_recipe)
    checkpoint = train_finder(recipe, labeller, data, options)
    assert checkpoint is not None
    assert checkpoint.is_file()
    with pytest.raises(ArtifactError, match="labelling detector"):
        train_finder(recipe, tmp_path / "absent.onnx", data, RunOptions(tmp_path / "other"))


def test_a_batch_larger_than_the_photos_is_refused(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    assert recipe.finder is not None
    optim = dataclasses.replace(recipe.finder.optim, batch_size=64)
    large = dataclasses.replace(recipe, finder=dataclasses.replace(recipe.finder, optim=optim))
    labeller = yolox_file(tmp_path / "labeller.onnx", {})
    data = DataOptions(tiny_root, tmp_path / "cache")
    with pytest.raises(TrainingError, match="batch_size 64 exceeds the epoch's 10"):
        train_finder(large, labeller, data, RunOptions(tmp_path / "run", accelerator="cpu"))


def test_an_unmoved_view_is_the_letterbox_of_inference() -> None:
    """Scaled down by an integer, where both averages are exact, and up."""
    rng = np.random.default_rng(0)
    for shape_hw, scale in [((128, 256), 0.5), ((32, 64), 2.0)]:
        pixels = rng.integers(0, 256, (*shape_hw, 3), dtype=np.uint8)
        transform = edges_to_centres(np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]]))
        view = render_view(pixels, transform, SIZE_WH)
        expected, found = letterbox(pixels, SIZE_WH, PAD_VALUE)
        assert found == scale
        # OpenCV's warp and resize round their linear weights differently
        assert np.abs(view.astype(int) - expected)[1:-1, 1:-1].max() <= (0 if scale < 1 else 2)


def test_a_finder_without_a_body_to_start_refuses_weights(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    with pytest.raises(TrainingError, match=r"finder\.net\.body"):
        train_finder(
            load_recipe(tiny_recipe),
            yolox_file(tmp_path / "yolox.onnx", {}),
            data,
            RunOptions(tmp_path / "run"),
            init=tmp_path / "weights.pth",
        )


def test_an_artifact_may_have_a_letterbox_of_its_own() -> None:
    """The spec names the artifact's; training keeps its own."""
    plain = FinderConfig("f", OptimConfig(1), (), size_wh=(320, 256))
    assert finder_spec(plain).size_wh == (320, 256)
    larger = dataclasses.replace(plain, deploy_size_wh=(480, 416))
    assert finder_spec(larger).size_wh == (480, 416)
    assert larger.size_wh == (320, 256)
