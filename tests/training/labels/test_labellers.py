"""Models that label: what opens as one, and several whose looks are put together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cfpose_sdk.backends.foreign import CACHE_VARIABLE
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.files import save_pose
from cfpose_training.cli import main
from cfpose_training.labels.labeller import VIEWS, Labeller, LabellerFile
from cfpose_training.labels.run import run_labelling
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet
from tests.training.label_cases import adopted, edit, options

BOXES = ((10.0, 20.0, 60.0, 80.0), (150.0, 20.0, 60.0, 80.0))  # xywh
XYXY = np.array([[x, y, x + w, y + h] for x, y, w, h in BOXES])
REGION = 1.1 * 80  # px of a crop around a box of 60 x 80
TINY = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, write_movenet: Callable[..., None]) -> Path:
    """Labellers that put every joint on the red spot, or beside it by a share of the crop."""
    folder = tmp_path_factory.mktemp("models")
    for name, beside, score in (("spot", 0.0, 0.9), ("low", 0.05, 0.6)):
        shift = np.tile([0.0, beside], (17, 1))
        write_movenet(folder / f"foreign_{name}.onnx", shift, np.full(17, score))
        adopted(folder / f"foreign_{name}.onnx", folder / f"{name}.onnx", "movenet")
    return folder


@pytest.fixture
def data_root(tmp_path: Path, write_spotted: Callable[..., None]) -> Path:
    spots = {n: np.array([[38.0 + n, 61.0], [181.0 - n, 58.0]]) for n in range(1, 3)}
    write_spotted(tmp_path / "data", (240, 120), BOXES, spots)
    return tmp_path / "data"


def files(models: Path, *names: str) -> tuple[LabellerFile, ...]:
    return tuple(LabellerFile(models / f"{name}.onnx") for name in names)


def test_looks_come_view_by_view_of_each_model(models: Path, data_root: Path) -> None:
    image = cv2.imread(str(data_root / "images/1.png"))
    with Labeller(*files(models, "spot", "low"), threads=1) as labeller:
        looks = labeller.look(image, XYXY, VIEWS[:2])
        assert labeller.look(image, XYXY[:0], VIEWS[:2]).shape == (4, 0, 17, 4)
    assert looks.shape == (4, 2, 17, 4)
    for first in (0, 2):  # mirrored too: what lies below the spot lies below it
        spot, low = looks[first], looks[first + 1]
        below = np.tile([0, 0.05 * REGION], (2, 17, 1))
        np.testing.assert_allclose(low[..., :2] - spot[..., :2], below, atol=0.1)
        np.testing.assert_allclose(spot[..., 2], 0.9, atol=1e-6)
        np.testing.assert_allclose(low[..., 2], 0.6, atol=1e-6)
    # all joints on one spot: the least area of a person, what OKS forgives of it
    sigmas = np.broadcast_to(COCO_17.oks_sigmas, (4, 2, 17))
    np.testing.assert_allclose(
        looks[..., 3] / looks[..., :1, 3], sigmas / sigmas[0, 0, 0], rtol=1e-4
    )


def test_labellers_are_averaged_and_their_agreement_filters(models: Path, data_root: Path) -> None:
    apart = 0.05 * REGION
    both = options(data_root, models, labellers=files(models, "spot", "low"))
    content = run_labelling(both)
    assert content is not None
    assert {name for p in content["annotations"] for name in p["origin"]["joints"] if name} == {
        "spot + low"
    }
    assert set(content["info"]["files"]) == {"labeller", "labeller 2", "annotations"}
    person = content["annotations"][0]
    area, sigmas = 0.53 * 60 * 80, np.array(COCO_17.oks_sigmas)
    between = np.exp(-(apart**2) / (2 * area * (2 * sigmas) ** 2))
    agreement = (2 + 4 * between) / 6  # of six pairs of looks, four are of two models
    kept = np.array(person["joint_weights"]) > 0
    np.testing.assert_array_equal(kept, agreement >= 0.8)
    assert 0 < kept.sum() < 17
    found = np.array(person["keypoints"]).reshape(17, 3)
    np.testing.assert_allclose(found[kept, :2], [[39.0, 61.0 + apart / 2]] * kept.sum(), atol=0.1)
    assert person["origin"]["score"][10] == pytest.approx(0.75)


def test_a_measure_tells_the_labellers_apart(models: Path, data_root: Path) -> None:
    def change(record: dict[str, list[dict[str, object]]]) -> None:
        for person in record["annotations"]:
            number, index = divmod(int(str(person["id"])), 10)
            x, y = [(38.0 + number, 61.0), (181.0 - number, 58.0)][index]
            person.update(keypoints=[x, y, 2] * 17, num_keypoints=17)

    edit(data_root, change)
    both = files(models, "spot", "low")
    content = run_labelling(options(data_root, models, labellers=both, who="measure"))
    assert content is not None
    spot, low = content["labellers"]
    assert (spot["labeller"], low["labeller"]) == ("spot", "low")
    assert spot["fine"] == 1.0
    assert low["fine"] < spot["fine"]
    assert [row["views"] for row in content["averages"]] == [1, 1, 2, 2]
    alone = run_labelling(
        options(data_root, models, who="measure", labellers=both[:1], out=data_root / "one.json")
    )
    assert alone is not None
    assert "labellers" not in alone
    assert alone["averages"][0]["fine"] == 1.0


def test_a_bundled_model_and_a_checkpoint_label(models: Path, data_root: Path) -> None:
    torch.manual_seed(0)
    spec = ModelSpec("tiny", COCO_17, (36, 48))
    save_pose(data_root / "tiny.safetensors", PoseNet(TINY, spec).eval(), spec)
    image = cv2.imread(str(data_root / "images/1.png"))
    chosen = [LabellerFile.of(name) for name in ("default", str(data_root / "tiny.safetensors"))]
    assert chosen[0].path == BUNDLED_MODEL
    with Labeller(*chosen, threads=1) as labeller:
        looks = labeller.look(image, XYXY, VIEWS[:1])
    assert looks.shape == (2, 2, 17, 4)
    assert np.isfinite(looks).all()
    assert (looks[..., 3] > 0).all()


def test_labellers_of_other_joints_are_refused(models: Path, tmp_path: Path) -> None:
    spec = ModelSpec("crowd", CROWDPOSE_14, (36, 48))
    save_pose(tmp_path / "crowd.safetensors", PoseNet(TINY, spec).eval(), spec)
    with pytest.raises(ArtifactError, match=r"crowd.safetensors has the 14 joints.*spot.onnx the"):
        Labeller(*files(models, "spot"), LabellerFile(tmp_path / "crowd.safetensors"))


def test_a_foreign_file_labels_with_its_preset(
    models: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(data_root / "cache"))
    words = ["label", "--data-root", str(data_root), "--images", "images", "--threads", "1"]
    words += ["--annotations", "people.json", "--only-unlabelled", "--views", "2", "--license", "F"]
    raw, out = models / "foreign_spot.onnx", data_root / "l.json"
    command = re.escape(f"cfpose-export adopt {raw} --preset move")
    with pytest.raises(ArtifactError, match=command):
        main([*words, "--labeller", str(raw), "--out", str(out)])
    assert main([*words, "--labeller", f"movenet:{raw}", "--out", str(out)]) == 0
    said = json.loads(out.read_text())
    assert said["info"]["files"]["labeller"]["preset"] == "movenet"
    assert said["info"]["license"] == "F"
    assert len(said["annotations"]) == 4
    again = data_root / "again.json"
    words[-2] = "--licence"
    assert main([*words, "--labeller", str(models / "spot.onnx"), "--out", str(again)]) == 0
    assert [p["keypoints"] for p in json.loads(again.read_text())["annotations"]] == [
        p["keypoints"] for p in said["annotations"]
    ]
