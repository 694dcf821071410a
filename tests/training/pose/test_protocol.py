"""The paper's evaluation of a network against its parts, written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.accuracy.oks import oks_nms, padded_area
from cfpose_sdk.crops import crop_transforms, invert_transforms, transform_points
from cfpose_sdk.errors import DatasetError, TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_training import cli
from cfpose_training.ablation.run import RESULT_FILE
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions, plain_crops
from cfpose_training.nets.flip import flip_test
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import Normalise, PoseNet
from cfpose_training.pose.protocol import PaperPhotos, Protocol
from cfpose_training.pose.train import development_set, pose_spec

HRNET = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)


@pytest.fixture
def boxes(tiny_root: Path) -> Path:
    """Two boxes for each person of photo 10, of which the second repeats the first; none of 5.

    The photos 5 and 10 are held out; the boxes of photo 1 are of a training photo.
    """
    truth = json.loads((tiny_root / "people.json").read_text())
    rows = []
    for person in truth["annotations"]:
        if person["image_id"] in (1, 10):
            x, y, w, h = person["bbox"]
            shared: dict[str, Any] = {"image_id": person["image_id"], "category_id": 1}
            rows.append({**shared, "bbox": [x, y, w, h], "score": 0.5})
            rows.append({**shared, "bbox": [x, y, w, h], "score": 0.25})
            rows.append({**shared, "bbox": [x + 20, y, w, h - 30], "score": 0.9})
    path = tiny_root / "boxes.json"
    path.write_text(json.dumps(rows))
    return path


def network_of(recipe: Path) -> nn.Module:
    torch.manual_seed(3)
    network = PoseNet(HRNET, pose_spec(load_recipe(recipe)))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # else every map is all but 0, and every score the same
            nn.init.kaiming_normal_(layer.weight)
    return network.eval()


def test_it_is_flip_test_rescoring_and_suppression(
    tiny_recipe: Path,
    tiny_root: Path,
    tmp_path: Path,
    boxes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, network = load_recipe(tiny_recipe), network_of(tiny_recipe)
    data, spec = DataOptions(tiny_root, tmp_path / "cache"), pose_spec(recipe)
    dev = development_set(recipe, spec, data)
    assert dev is not None
    photos = PaperPhotos(dev, boxes, data)
    assert (len(photos.people), photos.image_ids) == (3, [5, 10])
    assert "not for people" in photos.note  # COCO's are known, and these are others
    predictions = photos.predict(network)
    rule = float(np.median(predictions.score))  # no score of so few bins is below 0.01
    monkeypatch.setattr("cfpose_training.pose.protocol.SIMCC_JOINT_THRESHOLD", rule)
    found = photos.accuracy(predictions)
    # written out
    rows = [row for row in json.loads(boxes.read_text()) if row["image_id"] == 10]
    xyxy = np.array([[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)])
    crops, _ = plain_crops(photos.people, photos.cache, spec, range(3))
    with torch.no_grad():
        xy, score = flip_test(network, Normalise()(torch.from_numpy(crops)), spec)
    back = invert_transforms(crop_transforms(xyxy, spec.size_wh, spec.box_scale))
    points, raw = transform_points(back, xy.numpy()), score.numpy().astype(np.float64)
    counted = raw > rule
    assert 0 < counted.sum() < counted.size
    means = (raw * counted).sum(axis=1) / counted.sum(axis=1)
    scores = means * [row["score"] for row in rows]
    areas = padded_area(xyxy[:, 2:] - xyxy[:, :2], spec.size_wh, spec.box_scale)
    kept = oks_nms(points, scores, areas, COCO_17.oks_sigmas)
    assert 1 not in kept  # it repeats a better one
    results = [
        {
            "image_id": 10, "score": scores[n],
            "keypoints": np.column_stack([points[n], raw[n]]).ravel().tolist(),
        }
        for n in kept
    ]  # fmt: skip
    expected = evaluate(tiny_root / "people.json", results, image_ids=[5, 10])
    assert (found.AP, found.poses, found.images) == (expected.AP, len(kept), 2)
    np.testing.assert_allclose(predictions.xy, points, atol=1e-4)


def test_annotated_boxes_and_boxes_of_other_photos(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path, boxes: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    data = DataOptions(tiny_root, tmp_path / "cache")
    dev = development_set(recipe, pose_spec(recipe), data)
    assert dev is not None
    own = PaperPhotos(dev, None, data)
    network = network_of(tiny_recipe)
    np.testing.assert_array_equal(own.predict(network).xy, dev.predict(network, flipped=True).xy)
    rows = [row for row in json.loads(boxes.read_text()) if row["image_id"] != 10]
    boxes.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match="none of its boxes is of a photo"):
        PaperPhotos(dev, boxes, data)


def test_options_that_do_not_fit() -> None:
    with pytest.raises(TrainingError, match="needs the published boxes"):
        Protocol.of("paper", None)
    with pytest.raises(TrainingError, match="--boxes are those of --preset paper"):
        Protocol.of(None, "boxes.json")
    assert Protocol.of(None, None) == Protocol()
    assert Protocol.of("paper", "gt") == Protocol(paper=True)


def test_the_ablation_measures_by_it_and_does_not_mix(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path, boxes: Path
) -> None:
    out = tmp_path / "out"
    common = ["ablation", "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    common += ["--out", str(out), "--schemes", "baseline", "--seeds", "1", "--threads", "1"]
    common += ["--resume"]
    assert cli.main(common) == 0
    plain = (out / "ablation.md").read_text()
    assert plain.endswith("Measured in annotated boxes, without flip test and OKS-NMS.\n")
    stored = next(out.rglob(RESULT_FILE))
    assert "protocol" not in json.loads(stored.read_text())
    assert cli.main([*common, "--preset", "paper", "--boxes", str(boxes)]) == 0
    paper = (out / "ablation.md").read_text()
    assert paper.endswith(
        "Measured in the boxes of boxes.json, with SimCC's flip test, joints above a score of "
        "0.01, and OKS-NMS.\n"
    )
    marked = json.loads(stored.read_text())
    assert marked["protocol"]["preset"] == "paper"
    assert cli.main(common) == 0  # measured anew, not taken from the other
    assert (out / "ablation.md").read_text() == plain
