"""Labels from a model asked several times: closed forms on stand-ins whose answers are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cfpose_bench.annotations import read_annotations
from cfpose_sdk.errors import ArtifactError, DatasetError, InputError, TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.cli import main
from cfpose_training.config import Source
from cfpose_training.data import load_people
from cfpose_training.label_run import LabelOptions, run_labelling
from cfpose_training.labellers import VIEWS, Labeller
from cfpose_training.labelling import LabelRules, chosen_people, consensus, kept_joints

PHOTO_WH = (240, 120)
SIDE = 256  # of Thunder's input
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


def stand_in(path: Path) -> Path:
    """A MoveNet of known answers: joints beside the centroid of the red channel."""
    nodes = [
        helper.make_node("Cast", ["input"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["pixels", "zero", "one", "last"], ["red"]),
        helper.make_node("ReduceSum", ["red"], ["mass"], keepdims=1),
        helper.make_node("Max", ["mass", "least"], ["some"]),
        helper.make_node("Mul", ["red", "grid"], ["moment"]),  # (1, S, S, 2)
        helper.make_node("ReduceSum", ["moment", "plane"], ["moments"], keepdims=1),
        helper.make_node("Div", ["moments", "some"], ["centre"]),
        helper.make_node("Add", ["centre", "beside"], ["yx"]),
        helper.make_node("Concat", ["yx", "scores"], ["output"], axis=3),
    ]
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    constants = {
        "grid": np.stack([y, x], axis=-1)[None],
        "beside": BESIDE[None, None, :, ::-1],
        "scores": SCORES[None, None, :, None],
        "least": np.full((1, 1, 1, 1), 1.0),
    }
    integers = {"zero": [0], "one": [1], "last": [3], "plane": [1, 2]}
    tensors = [
        helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.astype(np.float32).ravel())
        for name, value in constants.items()
    ]
    tensors += [
        helper.make_tensor(name, TensorProto.INT64, [len(value)], value)
        for name, value in integers.items()
    ]
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info("input", TensorProto.INT32, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 17, 3])],
        tensors,
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


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
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    stand_in(folder / "tiny_thunder.onnx")
    detector_stand_in(folder / "tiny_yolox.onnx", (0.8, 0.45))
    return folder


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Six photos of two people each, nobody labelled: people.json and images/."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    images, people = [], []
    width, height = PHOTO_WH
    y, x = np.mgrid[:height, :width]
    for number in range(1, 7):
        red = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 18) for cx, cy in spots(number))
        picture = np.zeros((height, width, 3), np.uint8)
        picture[..., 2] = (250 * red).round().clip(0, 255)
        cv2.imwrite(str(root / "images" / f"{number}.png"), picture)
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        )
        people += [
            {
                "id": 10 * number + index, "image_id": number, "category_id": 1,
                "bbox": list(box), "area": AREA, "iscrowd": 0, "keypoints": [0] * 51,
                "num_keypoints": 0,
            }
            for index, box in enumerate(BOXES)
        ]  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(COCO_17.keypoints)}
    record = {"images": images, "annotations": people, "categories": [category]}
    (root / "people.json").write_text(json.dumps(record))
    return root


def edit(root: Path, change: Any) -> None:
    record = json.loads((root / "people.json").read_text())
    change(record)
    (root / "people.json").write_text(json.dumps(record))


def truth(number: int, index: int) -> np.ndarray:
    return spots(number)[index] + beside_px()


def labelled(number: int, index: int, joints: list[bool]) -> dict[str, Any]:
    """Keypoints as the stand-in gives them, of some joints."""
    flat = np.column_stack([truth(number, index), np.full(17, 2)])
    flat[~np.array(joints)] = 0
    return {"keypoints": flat.ravel().tolist(), "num_keypoints": sum(joints)}


def options(root: Path, models: Path, **changes: Any) -> LabelOptions:
    plain = LabelOptions(
        out=root / "labels.json",
        images=root / "images",
        labeller=models / "tiny_thunder.onnx",
        annotations=root / "people.json",
        views=2,
        threads=1,
    )
    return dataclasses.replace(plain, **changes)


@given(
    distance=st.floats(0, 60),
    scores=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    area=st.floats(100, 1e5),
)
def test_two_views_agree_as_their_distance_says(
    distance: float, scores: tuple[float, float], area: float
) -> None:
    views = np.zeros((2, 1, 17, 3))
    views[1, ..., 0] = distance
    views[:, 0, :, 2] = np.array(scores)[:, None]
    found = consensus(views, np.array([area]), COCO_17.oks_sigmas, "mean")
    place = distance * scores[1] / sum(scores)
    np.testing.assert_allclose(found.xy[0], [[place, 0]] * 17, atol=1e-9)
    np.testing.assert_allclose(found.score[0], sum(scores) / 2)
    variance = area * (2 * SIGMAS) ** 2
    np.testing.assert_allclose(found.agreement[0], np.exp(-(distance**2) / (2 * variance)))
    rms = np.sqrt((place**2 + (distance - place) ** 2) / 2)
    np.testing.assert_allclose(found.spread[0], rms / np.sqrt(variance), atol=1e-9)


def test_the_median_leaves_a_stray_view_aside_and_one_view_agrees_with_itself() -> None:
    views = np.zeros((5, 1, 17, 3))
    views[4, ..., :2] = 900
    found = consensus(views, np.array([1000.0]), COCO_17.oks_sigmas)  # the median
    assert not found.xy.any()
    np.testing.assert_allclose(found.agreement, 6 / 10)  # of ten pairs, those without the stray one
    single = consensus(views[4:], np.array([1000.0]), COCO_17.oks_sigmas, "mean")
    np.testing.assert_allclose(single.xy, 900)  # though it has no score
    assert (single.agreement == 1).all()
    assert not single.spread.any()


@pytest.mark.parametrize("index", range(len(VIEWS)))
def test_every_view_maps_back_to_the_photo(models: Path, data_root: Path, index: int) -> None:
    image = cv2.imread(str(data_root / "images/2.png"))
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in BOXES])
    with Labeller(models / "tiny_thunder.onnx", threads=1) as labeller:
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


def test_of_two_equal_poses_the_surer_one_stays() -> None:
    views = np.zeros((1, 3, 17, 3))
    views[0, :, :, 0] = np.arange(17) * 10
    views[0, :, :, 2] = [[0.5], [0.9], [0.7]]
    views[0, 2, :, 1] = 300
    areas, nobody = np.full(3, 4000.0), np.zeros((0, 17, 3))
    found, rules = (
        consensus(views, areas, COCO_17.oks_sigmas),
        LabelRules(box_margin=0, max_offset=1),
    )
    boxes = np.array([[0, 0, 400, 400.0]] * 3)
    kept = kept_joints(found, boxes, (400, 400), rules)
    assert kept.all()
    assert chosen_people(found, kept, areas, nobody, COCO_17.oks_sigmas, rules) == [1, 2]
    kept[1, 4:] = False  # too few joints to be anybody
    assert chosen_people(found, kept, areas, nobody, COCO_17.oks_sigmas, rules) == [0, 2]
    boxes[:, 2] = 100
    outside = ~kept_joints(found, boxes, (400, 400), LabelRules(max_offset=1))[0]
    assert outside.tolist() == [10 * joint >= 140 for joint in range(17)]
    assert not kept_joints(found, boxes, (50, 400), rules)[0, 5:].any()  # outside the photo


def test_a_pose_off_the_middle_of_its_box_is_somebody_elses() -> None:
    views = np.zeros((1, 1, 17, 3))
    views[0, 0, :, 0] = np.linspace(30, 70, 17)
    views[0, 0, :, 1] = np.linspace(45, 55, 17)
    views[0, 0, :, 2] = 0.9
    views[0, 0, 0, 2] = 0.1  # not kept, so its place does not count
    views[0, 0, 0, :2] = 200
    found = consensus(views, np.array([5000.0]), COCO_17.oks_sigmas)
    middle = (32.5 + 70) / 2  # of the kept ones, in a box 100 wide
    for left, kept in ((middle - 74, True), (middle - 76, False), (middle - 26, True)):
        boxes = np.array([[left, 0, left + 100, 100.0]])
        assert kept_joints(found, boxes, (999, 999), LabelRules()).sum() == 16 * kept


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


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    models: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_labelling(options(data_root, models))
    whole = (data_root / "labels.json").read_bytes()
    stopped = options(data_root, models, out=data_root / "stopped.json")
    look, calls = Labeller.look, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return look(*arguments)

    monkeypatch.setattr(Labeller, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_labelling(stopped)
    assert not stopped.out.exists()
    journal = data_root / "stopped.json.journal"
    assert len(journal.read_bytes().splitlines()) == 4  # what was asked, and three photos
    with journal.open("ab") as file:
        file.write(b'{"image_id":4,"size_wh":[2' + b" " * 100_000)  # a line half written
    resumed = dataclasses.replace(stopped, resume=True)
    assert run_labelling(dataclasses.replace(resumed, max_minutes=0)) is None  # no time
    run_labelling(resumed)
    assert stopped.out.read_bytes() == whole
    assert journal.read_bytes() == (data_root / "labels.json.journal").read_bytes()
    assert len(calls) == 7  # the three that were done were not looked at again
    run_labelling(resumed)
    assert len(calls) == 7


def test_another_run_is_not_gone_on_with(models: Path, data_root: Path) -> None:
    run_labelling(options(data_root, models))
    with pytest.raises(TrainingError, match=r"6 photos; go on with --resume"):
        run_labelling(options(data_root, models))
    with pytest.raises(TrainingError, match=r"views\[2\]\.scale was not there, now 1.15"):
        run_labelling(options(data_root, models, views=3, resume=True))
    with pytest.raises(TrainingError, match=r"min_side was 32.0, now 40.0"):
        run_labelling(options(data_root, models, min_side=40.0, resume=True))
    edit(data_root, lambda record: record["annotations"].pop())
    with pytest.raises(TrainingError, match="annotations was a file with SHA-256"):
        run_labelling(options(data_root, models, resume=True))
    (data_root / "labels.json.journal").write_text("[]\n")
    with pytest.raises(TrainingError, match="is no journal"):
        run_labelling(options(data_root, models, resume=True))


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


def test_nothing_to_label_gives_an_empty_file(models: Path, data_root: Path) -> None:
    edit(data_root, lambda record: record["annotations"].clear())
    for who in ("unlabelled", "fill", "measure"):
        out = data_root / f"{who}.json"
        assert run_labelling(options(data_root, models, who=who, out=out)) is not None  # type: ignore[arg-type]
    assert read_annotations(data_root / "unlabelled.json")["annotations"] == []
    assert len(json.loads((data_root / "fill.json").read_text())["images"]) == 6


def test_what_cannot_be_used_is_named(models: Path, data_root: Path) -> None:
    with pytest.raises(DatasetError, match="either annotations"):
        options(data_root, models, annotations=None)
    with pytest.raises(DatasetError, match="weight must lie"):
        options(data_root, models, weight=1.5)
    with pytest.raises(InputError, match="min_score must lie"):
        LabelRules(min_score=1.5)
    with pytest.raises(InputError, match="1 to 6, got 7"):
        run_labelling(options(data_root, models, views=7))
    with pytest.raises(ArtifactError, match="cannot be read"):
        run_labelling(options(data_root, models, labeller=data_root / "no_thunder.onnx"))
    with pytest.raises(DatasetError, match="is no folder"):
        run_labelling(
            options(
                data_root, models, annotations=None, images=data_root / "none",
                detector=models / "tiny_yolox.onnx",
            )
        )  # fmt: skip
    edit(data_root, lambda record: record["images"][1].update(width=300))
    with pytest.raises(DatasetError, match="its annotations say 300 x 120"):
        run_labelling(options(data_root, models, out=data_root / "other.json"))
    (data_root / "images/3.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 6 photos are missing.*3\.png"):
        run_labelling(options(data_root, models))
    edit(data_root, lambda record: record["annotations"][0].update(labelled(1, 0, [True] * 17)))
    with pytest.raises(DatasetError, match="nothing to fill"):
        run_labelling(options(data_root, models, who="fill", holdout_every=1))
    edit(data_root, lambda record: record["categories"][0]["keypoints"].reverse())
    with pytest.raises(DatasetError, match="the labeller knows the 17"):
        run_labelling(options(data_root, models))


def test_the_command_labels_and_measures(
    models: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["label", "--data-root", str(data_root), "--images", "images", "--threads", "1"]
    common += ["--labeller", str(models / "tiny_thunder.onnx"), "--views", "2"]
    annotated = [*common, "--annotations", "people.json", "--limit", "4"]
    assert main([*annotated, "--only-unlabelled", "--out", str(data_root / "new.json")]) == 0
    assert "52 joints of 4 people, 4 looked at" in capsys.readouterr().out
    assert main([*annotated, "--measure", "--out", str(data_root / "m.json")]) == 0
    assert "0 people in 0 photos" in capsys.readouterr().out
    late = [*annotated, "--only-unlabelled", "--max-minutes", "0"]
    assert main([*late, "--out", str(data_root / "late.json")]) == 0
    assert "--resume" in capsys.readouterr().out
    for wrong in (common, [*common, "--only-unlabelled"], annotated):
        with pytest.raises(InputError):
            main([*wrong, "--out", str(data_root / "wrong.json")])
