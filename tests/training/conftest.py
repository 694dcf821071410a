"""A data folder of a few drawn people and a recipe over it, for tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cfpose_sdk.skeleton import COCO_17, Skeleton

PHOTO_WH = (120, 100)


def write_tiny_data(
    root: Path,
    photos: int = 12,
    *,
    people_file: str = "people.json",
    folder: str = "images",
    skeleton: Skeleton = COCO_17,
) -> None:
    """`photos` pictures with one person each: `people_file` and `folder` below `root`.

    Each joint is a blob of its own colour at a random place in the person's box.
    """
    rng = np.random.default_rng(7)
    width, height = PHOTO_WH
    images, annotations = [], []
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / people_file).parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, photos + 1):
        picture = np.full((height, width, 3), 90, dtype=np.uint8)
        left, top = rng.uniform(5, 30), rng.uniform(5, 20)
        box = [left, top, 60.0, 70.0]
        joints = rng.uniform((left, top), (left + 60, top + 70), (len(skeleton), 2))
        for joint, (x, y) in enumerate(joints):
            colour = (joint * 15 % 256, 255 - joint * 15, (joint * 60) % 256)
            cv2.circle(picture, (round(x), round(y)), 3, colour, -1)
        cv2.imwrite(str(root / folder / f"{number:012d}.png"), picture)
        flat = np.column_stack([joints, np.full(len(joints), 2)]).ravel().tolist()
        images.append(
            {"id": number, "file_name": f"{number:012d}.png", "width": width, "height": height}
        )
        annotations.append(
            {
                "id": number, "image_id": number, "category_id": 1, "bbox": box, "area": 4200.0,
                "iscrowd": 0, "keypoints": flat, "num_keypoints": len(joints),
            }
        )  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": list(skeleton.keypoints)}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (root / people_file).write_text(json.dumps(record))


def write_red_movenet(path: Path, beside: np.ndarray, scores: np.ndarray, side: int = 256) -> None:
    """A MoveNet of known answers: joints beside the centre of what is red, whose shares of the
    crop's side (17, 2) and scores (17,) are given.
    """
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
    y, x = np.mgrid[:side, :side] / side
    constants = {
        "grid": np.stack([y, x], axis=-1)[None],
        "beside": beside[None, None, :, ::-1],
        "scores": scores[None, None, :, None],
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
        [helper.make_tensor_value_info("input", TensorProto.INT32, [1, side, side, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 17, 3])],
        tensors,
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))


def write_spotted_data(
    root: Path,
    photo_wh: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    spots: Mapping[int, np.ndarray],
) -> None:
    """Black photos with a red spot in each xywh box: `people.json`, nobody labelled, and `images`.

    `spots`: of each photo's id the (N, 2) centres. The annotations' ids are 10 x photo + box.
    """
    (root / "images").mkdir(parents=True)
    images, people = [], []
    width, height = photo_wh
    y, x = np.mgrid[:height, :width]
    for number, centres in spots.items():
        red = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 18) for cx, cy in centres)
        picture = np.zeros((height, width, 3), np.uint8)
        picture[..., 2] = (250 * red).round().clip(0, 255)
        cv2.imwrite(str(root / "images" / f"{number}.png"), picture)
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        )
        people += [
            {
                "id": 10 * number + index, "image_id": number, "category_id": 1,
                "bbox": list(box), "area": 0.53 * box[2] * box[3], "iscrowd": 0,
                "keypoints": [0] * 51, "num_keypoints": 0,
            }
            for index, box in enumerate(boxes)
        ]  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(COCO_17.keypoints)}
    record = {"images": images, "annotations": people, "categories": [category]}
    (root / "people.json").write_text(json.dumps(record))


RECIPE = """
skeleton = "coco-17"
trained_on = ["drawn people"]

[pose]
name = "tiny"
size_wh = [36, 48]
decode = "subbin"
hrnet = { width = 4, stem = 4, bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }

[labels]
kind = "gaussian"

[augment]
rotation_p = 0.2

[stage1]
epochs = 2
batch_size = 4
optimiser = "adamw"
lr = 3e-3
schedule = "cosine"
ema_decay = 0.9

[stage2]
node_channels = 8
joint_channels = [8, 8, 8]
output = "residual"

[stage2.optim]
epochs = 2
batch_size = 4
schedule = "cosine"
clip_norm = 1.0

[[sources]]
name = "people"
annotations = "people.json"
images = "images"
repeat = 2
holdout_every = 5

[finder]
name = "tiny-finder"
size_wh = [64, 64]
net = { channels = [8, 8, 8, 8, 8], blocks = [1, 1, 1, 1, 1], head_channels = 8 }

[finder.optim]
epochs = 2
batch_size = 2
optimiser = "adamw"

[[finder.sources]]
name = "people"
images = "images"
annotations = "people.json"
holdout_every = 5
"""


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """A data root with `people.json` and `images/`, 12 photos of one person each."""
    write_tiny_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def write_data() -> Callable[..., None]:
    """`write_tiny_data`, for a layout or skeleton of one's own."""
    return write_tiny_data


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe over `tiny_root` that trains in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def write_movenet() -> Callable[..., None]:
    """`write_red_movenet`."""
    return write_red_movenet


@pytest.fixture(scope="session")
def write_spotted() -> Callable[..., None]:
    """`write_spotted_data`."""
    return write_spotted_data
