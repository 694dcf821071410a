"""Labels from a model asked several times: closed forms on stand-ins whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.config import Source
from cfpose_training.data.people import load_people
from cfpose_training.labels.labeller import VIEWS, Labeller, LabellerFile
from cfpose_training.labels.rules import LabelRules
from cfpose_training.labels.run import run_labelling
from tests.training.label_cases import adopted, edit, options

PHOTO_WH = (240, 120)
REGION = 1.1 * 80  # px of its crop around a box of 60 x 80
BOXES = ((10.0, 20.0, 60.0, 80.0), (150.0, 20.0, 60.0, 80.0))  # xywh, far from each other
AREA = 0.53 * 60 * 80
SIGMAS = np.array(COCO_17.oks_sigmas)

# The stand-in sees the centre of what is red and puts each joint beside it, by a share of the crop.
# Left joints lie to the right of it and right ones to the left: mirroring and swapping changes
# nothing. The ankles both lie on one side, so the mirrored view contradicts the plain one.
BESIDE = np.zeros((17, 2))
for _left, _right in COCO_17.flip_pairs:
    BESIDE[_left], BESIDE[_right] = (0.02 + 0.005 * _left, 0.1), (-0.02 - 0.005 * _left, 0.1)
BESIDE[[15, 16]] = 0.06, 0.0
SCORES = np.full(17, 0.9)
SCORES[[3, 4]] = 0.1  # the ears
SCORES[5] = 0.8  # a shoulder; of the mirrored photo it is the other one
KEPT = [joint not in (3, 4, 15, 16) for joint in range(17)]


def beside_px() -> np.ndarray:
    """(17, 2) px from the red spot, of what all views agree on; the ankles' mean is the spot."""
    shift = BESIDE * REGION
    shift[[15, 16]] = 0
    return shift


def detector_stand_in(path: Path, scores: tuple[float, float]) -> Path:
    """A YOLOX that finds BOXES in every photo of PHOTO_WH, with these scores."""
    answer = np.zeros((1, 3549, 85), np.float32)
    scale = 416 / PHOTO_WH[0]
    for (x, y, w, h), score in zip(BOXES, scores, strict=True):
        centre = np.array([x + w / 2, y + h / 2]) * scale / 8  # on stride 8
        cell_x, cell_y = centre.astype(int)
        span = np.log(np.array([w, h]) * scale / 8)
        answer[0, cell_y * 52 + cell_x, :6] = *(centre - (cell_x, cell_y)), *span, 1.0, score
    nodes = [
        helper.make_node("ReduceMin", ["images"], ["low"], keepdims=0),
        helper.make_node("Mul", ["low", "zero"], ["none"]),
        helper.make_node("Add", ["answer", "none"], ["output"]),
    ]
    tensors = [
        helper.make_tensor("answer", TensorProto.FLOAT, answer.shape, answer.ravel()),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 416, 416])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, list(answer.shape))
    graph = helper.make_graph(nodes, "yolox", [images], [output], tensors)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def spots(number: int) -> np.ndarray:
    """(2, 2) where the red spots of a photo are, one in each box."""
    return np.array([[38.3 + number, 61.2], [181.7 - number, 58.4 + number]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, write_movenet: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_movenet(folder / "foreign.onnx", BESIDE, SCORES)
    adopted(folder / "foreign.onnx", folder / "tiny_thunder.onnx", "movenet")
    detector_stand_in(folder / "tiny_yolox.onnx", (0.8, 0.45))
    return folder


@pytest.fixture
def data_root(tmp_path: Path, write_spotted: Callable[..., None]) -> Path:
    """Six photos of two people each, nobody labelled: people.json and images/."""
    write_spotted(tmp_path / "data", PHOTO_WH, BOXES, {n: spots(n) for n in range(1, 7)})
    return tmp_path / "data"


def truth(number: int, index: int) -> np.ndarray:
    return spots(number)[index] + beside_px()


def labelled(number: int, index: int, joints: list[bool]) -> dict[str, Any]:
    """Keypoints as the stand-in gives them, of some joints."""
    flat = np.column_stack([truth(number, index), np.full(17, 2)])
    flat[~np.array(joints)] = 0
    return {"keypoints": flat.ravel().tolist(), "num_keypoints": sum(joints)}


@pytest.mark.parametrize("index", range(len(VIEWS)))
def test_every_view_maps_back_to_the_photo(models: Path, data_root: Path, index: int) -> None:
    image = cv2.imread(str(data_root / "images/2.png"))
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in BOXES])
    with Labeller(LabellerFile(models / "tiny_thunder.onnx"), threads=1) as labeller:
        (seen,) = labeller.look(image, boxes, [VIEWS[index]])
    # the nose lies on the spot itself, in whatever crop
    np.testing.assert_allclose(seen[:, 0, :2], spots(2), atol=0.1)
    expected = spots(2)[:, None] + BESIDE[:15] * REGION * VIEWS[index].scale
    np.testing.assert_allclose(seen[:, :15, :2], expected, atol=0.1)
    score = SCORES[COCO_17.flip_order] if VIEWS[index].mirrored else SCORES
    np.testing.assert_allclose(seen[..., 2], [score, score], atol=1e-6)


def test_labels_are_in_photo_pixels_and_say_where_they_come_from(
    models: Path, data_root: Path
) -> None:
    content = run_labelling(options(data_root, models, weight=0.25, licence="free"))
    assert content is not None
    people = read_annotations(data_root / "labels.json")["annotations"]
    assert [person["id"] for person in people] == [10 * n + i for n in range(1, 7) for i in (0, 1)]
    apart = 2 * BESIDE[15, 0] * REGION
    contradiction = np.exp(-(apart**2) / (2 * AREA * (2 * SIGMAS[15]) ** 2))
    assert contradiction < LabelRules().min_agreement
    for person in people:
        joints = np.array(person["keypoints"]).reshape(17, 3)
        expected = truth(person["image_id"], person["id"] % 10)
        np.testing.assert_allclose(joints[KEPT, :2], expected[KEPT], atol=0.1)
        assert joints[:, 2].tolist() == [2 * kept for kept in KEPT]
        assert not joints[~np.array(KEPT)].any()
        assert person["num_keypoints"] == sum(KEPT)
        assert person["joint_weights"] == [0.25 * kept for kept in KEPT]
        origin = person["origin"]
        assert origin["joints"] == ["tiny_thunder" if kept else None for kept in KEPT]
        assert origin["score"][5:7] == [0.85, 0.85]
        assert origin["score"][:5] + origin["score"][7:15] == [0.9] * 3 + [None] * 2 + [0.9] * 8
        assert origin["box"] == "ground truth"
    info = content["info"]
    assert (info["people"], info["joints"], info["license"]) == (12, 12 * sum(KEPT), "free")
    assert set(info["files"]) == {"labeller", "annotations"}
    assert all(len(facts["sha256"]) == 64 for facts in info["files"].values())
    # with looser rules the ankles, on which the views disagree, come at their mean: the spot
    loose = LabelRules(min_agreement=float(contradiction) - 0.02)
    again = run_labelling(options(data_root, models, rules=loose, resume=True))
    assert again is not None
    first = np.array(again["annotations"][0]["keypoints"]).reshape(17, 3)
    np.testing.assert_allclose(first[[15, 16]], [[*spots(1)[0], 2]] * 2, atol=0.1)
    assert again["annotations"][0]["origin"]["agreement"][15] == pytest.approx(
        contradiction, abs=0.01
    )


def test_the_trainer_reads_the_labels_with_their_weights(models: Path, data_root: Path) -> None:
    run_labelling(options(data_root, models, weight=0.25))
    people = load_people([Source("labels", "labels.json", "images")], data_root, COCO_17)
    assert len(people) == 12
    np.testing.assert_array_equal(people.joint_weight[:, KEPT], 0.25)


def test_only_people_without_joints_are_labelled_and_of_them_not_all(
    models: Path, data_root: Path
) -> None:
    def change(record: dict[str, Any]) -> None:
        people = record["annotations"]
        people[0].update(labelled(1, 0, [True] * 17))
        people[1]["iscrowd"] = 1
        people[2]["bbox"] = [10, 20, 25, 31.5]  # too small
        people[4]["bbox"] = [500, 500, 60, 80]  # outside the photo

    edit(data_root, change)
    content = run_labelling(options(data_root, models, holdout_every=3))
    assert content is not None
    assert [person["id"] for person in content["annotations"]] == [21, 40, 41, 50, 51]
    assert [image["id"] for image in content["images"]] == [2, 4, 5]


def test_a_pose_that_is_a_neighbours_is_no_label(models: Path, data_root: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["annotations"][0].update(labelled(1, 0, [True] * 17))
        record["annotations"][1]["bbox"] = [12.0, 20.0, 60.0, 80.0]  # on the first one's spot
        record["annotations"][3]["bbox"] = [12.0, 20.0, 60.0, 80.0]  # nobody is labelled there

    edit(data_root, change)
    content = run_labelling(options(data_root, models))
    assert content is not None
    assert [person["id"] for person in content["annotations"]][:2] == [20, 30]


def test_filling_adds_missing_joints_and_touches_nothing_else(
    models: Path, data_root: Path
) -> None:
    body = [joint >= 5 for joint in range(17)]

    def change(record: dict[str, Any]) -> None:
        for person in record["annotations"]:
            person.update(labelled(person["image_id"], person["id"] % 10, body))
        record["annotations"][3]["keypoints"][27] = 0.125  # one given joint, far away
        for joint in range(5, 17):  # a person of whom the labeller sees something else
            record["annotations"][5]["keypoints"][3 * joint] += 60.0
        record["annotations"][7]["keypoints"][15:18] = [0, 0, 0]  # absent, not unknown

    edit(data_root, change)
    given = {p["id"]: p for p in read_annotations(data_root / "people.json")["annotations"]}
    content = run_labelling(options(data_root, models, who="fill"))
    assert content is not None
    assert content["images"] == read_annotations(data_root / "people.json")["images"]
    assert [person["id"] for person in content["annotations"]] == list(given)
    for person in content["annotations"]:
        before = given[person["id"]]
        assert person["keypoints"][15:] == before["keypoints"][15:]
        if person["id"] == 31:
            assert person == before
            continue
        face = np.array(person["keypoints"][:15]).reshape(5, 3)
        expected = truth(person["image_id"], person["id"] % 10)[:3]
        np.testing.assert_allclose(face[:3, :2], expected, atol=0.1)
        assert face[:, 2].tolist() == [2, 2, 2, 0, 0]
        assert person["num_keypoints"] == before["num_keypoints"] + 3
        own = [v > 0 for v in before["keypoints"][2::3]]
        assert person["joint_weights"] == [
            1.0 if mine else 0.5 if joint < 3 else 0.0 for joint, mine in enumerate(own)
        ]
        assert person["origin"]["joints"] == [
            "ground truth" if mine else "tiny_thunder" if joint < 3 else None
            for joint, mine in enumerate(own)
        ]
    assert content["info"]["joints"] == 33


def test_people_are_found_where_nobody_annotated_them(models: Path, data_root: Path) -> None:
    plain = options(
        data_root, models, annotations=None, detector=models / "tiny_yolox.onnx", box_score=0.5
    )
    content = run_labelling(plain)
    assert content is not None
    assert len(content["annotations"]) == 6  # one of the two boxes has a score of 0.45
    for number, person in enumerate(content["annotations"], start=1):
        assert (person["id"], person["image_id"]) == (number, number)
        np.testing.assert_allclose(person["bbox"], BOXES[0], atol=0.05)
        assert person["area"] == pytest.approx(AREA, rel=0.01)
        nose = person["keypoints"][:2]
        np.testing.assert_allclose(nose, spots(number)[0], atol=0.1)
        assert person["origin"]["box"] == "tiny_yolox"
        assert person["origin"]["box_score"] == pytest.approx(0.8, abs=1e-3)
    assert len(load_people([Source("found", "labels.json", "images")], data_root, COCO_17)) == 6


def test_figures_are_those_of_known_answers(models: Path, data_root: Path) -> None:
    """The truth is what the stand-in says, but for one joint of four of the people."""

    def change(record: dict[str, Any]) -> None:
        for person in record["annotations"]:
            person.update(labelled(person["image_id"], person["id"] % 10, [True] * 16 + [False]))
        for person in record["annotations"][:4]:
            person["keypoints"][3 * 9] += 40.0  # a wrist

    edit(data_root, change)
    content = run_labelling(options(data_root, models, who="measure"))
    assert content is not None
    rows = {(row["min_score"], row["min_agreement"]): row for row in content["thresholds"]}
    chosen = rows[0.3, 0.8]
    assert chosen["joints"] == 12 * 13  # of 16 labelled ones; ears and an ankle are not kept
    assert chosen["good"] == chosen["fine"] == pytest.approx(1 - 4 / (12 * 13), abs=1e-4)
    assert chosen["coverage"] == pytest.approx(13 / 16)
    assert chosen["people"] == 1
    assert chosen["unjudged"] == 0
    everything = rows[0.0, 0.0]
    assert everything["coverage"] == 1
    assert everything["unjudged"] == pytest.approx(1 / 17, abs=1e-4)
    assert content["face"][0]["coverage"] == pytest.approx(3 / 5)
    assert [row["joints"] for row in content["sizes"]] == [0, 156, 0, 0]
    assert content["info"]["people"] == 12
