"""A pose engine and its finder on strict fake GPUs, against the same graphs on the CPU."""

from __future__ import annotations

import dataclasses
import random
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.frame_input import frame_graph
from cfpose_sdk.backends import RuntimeOptions
from cfpose_sdk.backends.tensorrt.passport import Companion, passport_path
from cfpose_sdk.detectors import DetectorOptions
from cfpose_sdk.errors import ArtifactError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.results import Poses

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

PEOPLE = 70
LEAST, BEST, MOST = (32, 32, 3), (60, 80, 3), (400, 400, 3)


@pytest.fixture(scope="module")
def graphs(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tiny models on frames: a pose model, and a finder whose boxes depend on the picture."""
    folder = tmp_path_factory.mktemp("graphs")
    spread = np.random.default_rng(0).uniform(2, 60, (PEOPLE, 2))
    boxes = np.concatenate([spread - 2, spread + 2], axis=1)
    scores = np.linspace(0.99, 0.1, PEOPLE)
    paths = {
        "pose": tiny.save_pose_model(folder / "pose.crops.onnx"),
        "finder": tiny.save_finder(folder / "finder.boxes.onnx", boxes.tolist(), scores.tolist()),
    }
    finder = onnx.load(str(paths["finder"]))
    _follow_the_picture(finder)
    found = {"pose": frame_graph(onnx.load(str(paths["pose"]))), "finder": frame_finder(finder)}
    for name, model in found.items():
        onnx.save(model, str(folder / f"{name}.onnx"))
    return {name: folder / f"{name}.onnx" for name in found}


def _follow_the_picture(finder: onnx.ModelProto) -> None:
    """Scores fall with the mean of the letterbox, so that another picture has other people."""
    node, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    kept = [n for n in finder.graph.node if n.output[0] == "boxes"]
    del finder.graph.node[:]
    finder.graph.node.extend(
        [
            *kept,
            node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
            node("ReduceMean", ["pixels", "all_axes"], ["grey"], keepdims=0),
            node("Div", ["grey", "white"], ["share"]),
            node("Mul", ["all_scores", "share"], ["scores"]),
        ]
    )
    white = np.array(255, np.float32)
    finder.graph.initializer.extend([constant(np.arange(4), "all_axes"), constant(white, "white")])


@pytest.fixture
def pair(
    gpu: Any, fake: ModuleType, graphs: Mapping[str, Path], tmp_path: Path
) -> Callable[..., Path]:
    """Write `tiny.engine`, with `tiny.finder.engine` unless `along` is False."""

    def write(*, along: bool = True, **changes: Any) -> Path:
        names = {"pose": "tiny.engine", "finder": "tiny.finder.engine"}
        for role, name in names.items() if along else [("pose", "tiny.engine")]:
            other = "finder" if role == "pose" else "pose"
            companion = Companion(other, names[other], other) if along else None  # type: ignore[arg-type]
            gpu.trt.networks[role.encode()] = network = _network(fake, graphs[role])
            metadata = {p.key: p.value for p in onnx.load(str(graphs[role])).metadata_props}
            fake.write_engine(
                tmp_path / name, trt, metadata, network=network, data=role.encode(), key=role,
                companion=companion, **changes,
            )  # fmt: skip
        return tmp_path / "tiny.engine"

    return write


def _network(fake: ModuleType, path: Path) -> Any:
    """An engine that gives what onnxruntime gives on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]

    def answer(given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(given)), strict=True))

    ranges = {"frame": [(LEAST, BEST, MOST)] * 3}
    if len(session.get_inputs()) > 1:
        ranges["boxes"] = [((1, 4), (n, 4), (n, 4)) for n in (1, 8, 32)]
    kinds = {"frame": "uint8", "boxes": "float32"}
    shapes = {
        o.name: [s if isinstance(s, int) else -1 for s in o.shape] for o in session.get_outputs()
    }
    return fake.Network({n: (kinds[n], r) for n, r in ranges.items()}, shapes, answer)


def _same(got: Poses, expected: Poses) -> None:
    for name in ("xy", "confidence", "boxes", "box_scores"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def _picture(rng: random.Random) -> np.ndarray:
    size = (rng.randint(32, 90), rng.randint(32, 90), 3)
    bright = rng.choice([40, 140, 256])
    return np.random.default_rng(rng.random().__hash__() % 2**32).integers(
        0, bright, size, np.uint8
    )


def _frames(gpu: Any) -> list[int]:
    """Bytes of the uploads that are larger than any list of boxes."""
    return [size for way, size in gpu.copied if way == "up" and size >= 32 * 32 * 3]


def test_the_finder_beside_an_engine_is_used(
    gpu: Any, pair: Callable[..., Path], graphs: Mapping[str, Path]
) -> None:
    engine = pair()
    image = np.full((60, 80, 3), 200, np.uint8)
    image[20:30, 20:30] = 255
    options = DetectorOptions(threshold=0.3, nms_iou=1.0)
    with (
        warnings.catch_warnings(action="error"),
        PoseEstimator(engine, detector_options=options) as estimator,
        PoseEstimator(
            graphs["pose"], detector=graphs["finder"], detector_options=options, device="cpu"
        ) as plain,
    ):
        assert "(tiny.finder.engine, TensorRT-RTX" in estimator.info.detector
        poses = estimator.predict(image)
        assert len(poses) > 32  # more than one run takes
        _same(poses, plain.predict(image))
        assert _frames(gpu) == [image.nbytes]
    assert gpu.alive == {}


def test_without_one_it_says_that_people_are_found_on_the_cpu(
    gpu: Any, pair: Callable[..., Path], finder_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", finder_model)
    monkeypatch.setattr("cfpose_sdk.detectors.lazy.BUNDLED_FINDER", finder_model)
    engine = pair(along=False)
    image = np.full((60, 80, 3), 200, np.uint8)
    with PoseEstimator(engine, device="cuda") as estimator:
        assert "tiny.engine was built without a finder" in estimator.info.detector
        with warnings.catch_warnings(action="error"):
            estimator.predict(image, boxes=[[1, 1, 9, 9]])  # finds nobody itself
        with pytest.warns(RuntimeWarning, match="found on the CPU: tiny.engine was built without"):
            assert len(estimator.predict(image)) == 2
        with warnings.catch_warnings(action="error"):
            estimator.predict(image)
        assert "built without a finder" in estimator.info.detector
        assert "CPUExecutionProvider" in estimator.info.detector


def test_a_pair_that_does_not_belong_together(gpu: Any, pair: Callable[..., Path]) -> None:
    engine = pair()
    with pytest.raises(InputError, match="cannot be chosen for the finder of an engine"):
        PoseEstimator(engine, detector_options=DetectorOptions(layout="yolox"))
    assert gpu.alive == {}
    finder = engine.with_name("tiny.finder.engine")
    text = passport_path(finder).read_text()
    passport_path(finder).write_text(text.replace('"key": "finder"', '"key": "other"'))
    with pytest.raises(ArtifactError, match="is not the finder that"):
        PoseEstimator(engine)
    finder.unlink()
    with pytest.raises(ArtifactError, match="which is not there"):
        PoseEstimator(engine)


@pytest.mark.parametrize("shape", [(3, 80, 3), (60, 20, 3), (1, 1, 3), (400, 33, 3)])
def test_small_and_narrow_frames(
    gpu: Any, pair: Callable[..., Path], shape: tuple[int, int, int]
) -> None:
    """Below the profile a frame gets a black border."""
    image = np.full(shape, 255, np.uint8)
    options = DetectorOptions(threshold=0.0, nms_iou=1.0)
    with PoseEstimator(pair(), detector_options=options) as estimator:
        poses = estimator.predict(image)
        assert len(poses) > 0 or shape[:2] == (1, 1)
        assert len(estimator.predict(image, boxes=[[0, 0, 1, 1]])) == 1
        assert (poses.boxes <= [shape[1], shape[0], shape[1], shape[0]]).all()


def test_streams_hold_frames_for_the_length_of_their_way(
    gpu: Any, pair: Callable[..., Path]
) -> None:
    rng = random.Random(5)
    images = [_picture(rng) for _ in range(12)]
    options = DetectorOptions(threshold=0.2)
    with PoseEstimator(pair(), detector_options=options) as estimator:
        expected = [estimator.predict(image) for image in images]
        gpu.copied.clear()
        with estimator.stream(images, prefetch=2) as stream:
            for got, wanted in zip(stream, expected, strict=True):
                _same(got, wanted)
        # nobody in a picture: the pose engine has nothing to run, the finder had the frame
        assert _frames(gpu) == [image.nbytes for image in images]
        stream = estimator.stream(images, prefetch=2)
        next(stream)
        del stream  # half-way
    assert gpu.alive == {}


CALLS = 80  # as many as a test may last; 1,000 ran as well


def test_random_calls_give_what_the_cpu_gives(
    gpu: Any, pair: Callable[..., Path], graphs: Mapping[str, Path]
) -> None:
    """0 to 70 people, changing sizes, two devices, four threads, streams dropped half-way."""
    gpu.devices, engine, wrong = 2, pair(), list[BaseException]()
    options = DetectorOptions(threshold=0.3, nms_iou=1.0)
    shared: dict[str, Any] = {"detector_options": options}
    plain = PoseEstimator(
        graphs["pose"], detector=graphs["finder"], device="cpu", threads=1, **shared
    )
    estimators = [
        PoseEstimator(engine, device=f"cuda:{n}", options=RuntimeOptions(workers=1 + n), **shared)
        for n in range(2)
    ]
    counts = [0, 0, 0]  # people, frames, streams

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            gpu.set_current(seed % 2)
            for _ in range(CALLS // 4):
                _one_call(rng, estimators[rng.randrange(2)], plain, counts)
                assert gpu.current == seed % 2
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert gpu.violations == []
    assert counts[0] > CALLS
    assert counts[2] > 0
    for estimator in estimators:
        estimator.close()
    assert gpu.alive == {}


def _one_call(
    rng: random.Random, estimator: PoseEstimator, plain: PoseEstimator, counts: list[int]
) -> None:
    image = _picture(rng)
    kind = rng.random()
    if kind < 0.04:
        images = [_picture(rng) for _ in range(3)]
        stream = estimator.stream(images, prefetch=1)
        for picture in images[: rng.randrange(4)]:
            _same(next(stream), plain.predict(picture))
        del stream
        counts[2] += 1
        return
    if kind < 0.5:
        _same(estimator.predict(image), wanted := plain.predict(image))
    else:
        corners = np.random.default_rng(rng.randrange(1 << 30)).uniform(
            0, 30, (rng.randint(0, 70), 2)
        )
        boxes = np.concatenate([corners, corners + 12], axis=1)
        _same(estimator.predict(image, boxes=boxes), wanted := plain.predict(image, boxes=boxes))
    counts[0] += len(wanted)
    counts[1] += 1


def test_the_passports_know_each_other(pair: Callable[..., Path]) -> None:
    from cfpose_sdk.backends.tensorrt.passport import read_passport

    engine = pair()
    pose = read_passport(engine)
    finder = read_passport(engine.with_name("tiny.finder.engine"))
    assert pose.companion == Companion("finder", "tiny.finder.engine", finder.key)
    assert finder.companion == Companion("pose", "tiny.engine", pose.key)
    assert dataclasses.replace(pose, companion=None).companion is None
