"""Person detectors as engines and in OpenVINO: the boxes of the .onnx file, the same refusals.

The engines run on the fake GPU; no detector engine of this project has run on hardware here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends.openvino import shared_core
from cfpose_sdk.backends.tensorrt.passport import passport_path
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.detectors.base import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.errors import ArtifactError, BackendError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import read_image
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY

IMAGE = np.zeros((128, 64, 3), np.uint8)  # letterboxed to 64 x 64 at scale 0.5
# in letterbox pixels: two people, a duplicate, a weak one, one without area
BOXES = np.array(
    [[4, 4, 20, 60], [30, 10, 50, 40], [5, 4, 21, 60], [0, 0, 9, 9], [60, 8, 60, 30]], np.float32
)
SCORES = np.array([0.9, 0.8, 0.7, 0.2, 0.95], np.float32)
# the picture is 32 letterbox pixels wide, so most of the second person is cut off
FOUND = np.array([[8, 8, 40, 120], [60, 20, 64, 80]], np.float32)
Write = Callable[..., Path]


@pytest.fixture
def write(gpu: Any, fake: ModuleType, tmp_path: Path) -> Write:
    """Write an engine that answers with constants: (name, outputs, metadata, input)."""

    def save(
        name: str,
        outputs: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
        given: tuple[str, str, tuple[int, ...]] = ("images", "uint8", (1, 64, 64, 3)),
        **changes: Any,
    ) -> Path:
        label, kind, shape = given
        network = fake.Network(
            inputs={label: (kind, [(shape,) * 3])},
            outputs={key: value.shape for key, value in outputs.items()},
            answer=lambda _: outputs,
        )
        gpu.trt.networks[name.encode()] = network
        return fake.write_engine(  # type: ignore[no-any-return]
            tmp_path / name, gpu.trt.trt, metadata,
            network=network, data=name.encode(), **changes,
        )  # fmt: skip

    return save


@pytest.fixture
def finder(write: Write, tiny: ModuleType) -> Path:
    """A finder's engine, with its spec in the passport."""
    outputs = {"boxes": BOXES[None], "scores": SCORES[None]}
    return write("finder.engine", outputs, {FINDER_KEY: tiny.FINDER.to_json()})


def test_the_finder_runs_as_an_engine(gpu: Any, finder: Path, tiny: ModuleType) -> None:
    with open_detector(finder) as detector:  # type: ignore[attr-defined]
        assert isinstance(detector, PersonFinder)
        assert detector.provider.startswith("TensorRT-RTX")
        assert detector.name == tiny.FINDER.name
        found = detector(IMAGE)
        np.testing.assert_array_equal(found.boxes, FOUND)
        np.testing.assert_array_equal(found.scores, SCORES[:2])
        detector(IMAGE)
        assert (gpu.count("device"), gpu.count("stream"), gpu.trt.counts["contexts"]) == (3, 1, 1)
    assert gpu.alive == {}
    with pytest.raises(BackendError, match="is closed"):
        detector(IMAGE)


@pytest.mark.parametrize("name", ["finder.engine", "finder.plan"])
def test_the_estimator_opens_and_closes_it(
    gpu: Any, fake: ModuleType, write: Write, tiny: ModuleType, tmp_path: Path, name: str
) -> None:
    outputs = {"boxes": BOXES[None], "scores": SCORES[None]}
    path = write(name, outputs, {FINDER_KEY: tiny.FINDER.to_json()})
    pose = fake.write_engine(tmp_path / "pose.engine", gpu.trt.trt, {SPEC_KEY: tiny.SPEC.to_json()})
    options = DetectorOptions(threshold=0.1)
    with PoseEstimator(pose, detector=path, detector_options=options) as estimator:
        poses = estimator.predict(IMAGE)
        assert f"({name}, TensorRT-RTX" in estimator.info.detector
        np.testing.assert_array_equal(poses.boxes, [*FOUND, BOXES[3] * 2])
    assert gpu.alive == {}


def test_its_passport_is_checked_first(gpu: Any, finder: Path, tiny: ModuleType) -> None:
    with pytest.raises(BackendError, match="runs on an NVIDIA GPU only"):
        open_detector(finder, device="cpu")
    finder.write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="is not the engine that its passport describes"):
        open_detector(finder)
    passport_path(finder).unlink()
    with pytest.raises(ArtifactError, match="has no passport"):
        PoseEstimator(detector=finder)


def test_a_pose_engine_is_no_detector(gpu: Any, fake: ModuleType, tiny: ModuleType,
                                      tmp_path: Path) -> None:  # fmt: skip
    metadata = {SPEC_KEY: tiny.SPEC.to_json()}
    path = fake.write_engine(tmp_path / "pose.engine", gpu.trt.trt, metadata)
    with pytest.raises(ArtifactError, match="is not a cfpose person finder"):
        open_detector(path)
    assert gpu.alive == {}


@pytest.mark.parametrize("failing", ["cudaMalloc", "execute", "cudaStreamSynchronize"])
def test_a_failure_while_finding_leaks_nothing(gpu: Any, finder: Path, failing: str) -> None:
    with open_detector(finder) as detector:  # type: ignore[attr-defined]
        gpu.fail[failing] = 1
        with pytest.raises(BackendError, match=r"finder\.engine failed to run"):
            detector(IMAGE)
        assert gpu.alive == {}
        np.testing.assert_array_equal(detector(IMAGE).boxes, FOUND)


ROWS = np.concatenate([BOXES, SCORES[:, None], np.zeros((5, 1), np.float32)], axis=1)[None]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_an_end_to_end_engine(gpu: Any, write: Write, kind: str) -> None:
    path = write("yolo.engine", {"output0": ROWS}, {}, ("images", kind, (1, 3, 64, 64)))
    with pytest.raises(ArtifactError, match="does not name its classes"):
        open_detector(path)
    assert gpu.alive == {}
    with open_detector(path, DetectorOptions(person_class=0)) as detector:  # type: ignore[attr-defined]
        assert detector.reading.layout == "end2end"
        # an end-to-end engine has suppressed duplicates itself, so this one stays
        np.testing.assert_array_equal(detector(IMAGE).boxes, [*FOUND, BOXES[2] * 2])
    assert gpu.alive == {}


def test_a_raw_yolo_engine_reads_names_from_the_passport(gpu: Any, write: Write) -> None:
    centres, sides = (BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]
    output = np.zeros((1, 6, 84), np.float32)  # 8 x 8 + 4 x 4 + 2 x 2 cells
    output[0, :2, :5], output[0, 2:4, :5] = centres.T, sides.T
    output[0, 5, :5] = SCORES
    metadata = {"names": "{0: 'cat', 1: 'person'}"}
    path = write("raw.engine", {"output0": output}, metadata, ("images", "float32", (1, 3, 64, 64)))
    with open_detector(path) as detector:  # type: ignore[attr-defined]
        assert (detector.reading.layout, detector.reading.person_class) == ("yolov8", 1)
        np.testing.assert_allclose(detector(IMAGE).boxes, FOUND)


def test_the_finder_in_openvino_finds_the_same(root: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    path = tmp_path / "finder.xml"
    openvino.serialize(shared_core().read_model(str(BUNDLED_FINDER)), str(path))
    with (
        PersonFinder(device="cpu") as plain,
        PersonFinder(device="openvino", threads=1) as asked,
        open_detector(path, threads=1) as own,  # type: ignore[attr-defined]
    ):
        assert asked.provider == own.provider == "OpenVINO CPU f32"
        people = 0
        for name in ("street.jpg", "basketball1.jpg"):
            image = read_image(root / "examples" / "photos" / name)
            expected = plain(image)
            for finder in (asked, own):
                found = finder(image)
                np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
                np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
            people += len(expected)
        assert people > 3
    with pytest.raises(InputError, match="layout cannot be chosen"):
        open_detector(path, DetectorOptions(layout="yolov8"))
