"""Engines on the GPU that is here. Without one, or without TensorRT, each test says so."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_export.cli import main
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.engine import kernels_path
from cfpose_sdk.backends.tensorrt.library import installed_flavours
from cfpose_sdk.backends.tensorrt.passport import read_passport
from cfpose_sdk.errors import BackendError, MissingDependencyError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import read_image


@pytest.fixture(scope="module", params=["tensorrt", "rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    """A flavour that is installed and has a GPU."""
    name: Any = request.param
    if name not in installed_flavours():
        pytest.skip(f"{name} is not installed")
    try:
        open_memory("cuda-bindings", flavour=name, why="this test")
    except (BackendError, MissingDependencyError) as error:
        pytest.skip(f"no engine can run here: {error}")
    return str(name)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def engine(
    request: pytest.FixtureRequest, flavour: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundled pair. Building runs both engines beside their graphs."""
    path = tmp_path_factory.mktemp(flavour) / "new" / "cfpose.engine"
    line = ["engine", "default", "--precision", request.param, "--flavour", flavour]
    assert main([*line, "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def street(root: Path) -> np.ndarray:
    return read_image(root / "examples" / "photos" / "street.jpg")


def test_both_engines_were_run_beside_their_graphs(engine: Path) -> None:
    for path in (engine, engine.with_name("cfpose.finder.engine")):
        assert read_passport(path).proof["run"] is True


def test_check_passes(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (engine, engine.with_name("cfpose.finder.engine")):
        assert main(["check", str(path)]) == 0
        assert "candidate" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("size_wh", [(320, 240), (1920, 1080), (2160, 3840), (7680, 4320)])
def test_the_same_people_as_on_the_cpu(
    engine: Path, street: np.ndarray, size_wh: tuple[int, int]
) -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.asarray(cv2.resize(street, size_wh), np.uint8)
    with (
        warnings.catch_warnings(action="error"),
        PoseEstimator(engine) as gpu,
        PoseEstimator(device="cpu") as cpu,
    ):
        got, expected = gpu.predict(image), cpu.predict(image)
        assert abs(len(got) - len(expected)) <= 1  # a score near the threshold
        boxes = expected.boxes
        same, wanted = gpu.predict(image, boxes=boxes), cpu.predict(image, boxes=boxes)
        sure = wanted.confidence >= 0.5
        scale = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))[:, None]
        apart = (np.linalg.norm(same.xy - wanted.xy, axis=2) / scale)[sure]
        assert np.median(apart) < 0.01


def test_nothing_stays_on_the_device(engine: Path, street: np.ndarray) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")

    def use() -> int:
        with PoseEstimator(engine) as estimator:
            estimator.predict(street)
        free = runtime.cudaMemGetInfo()[1]
        return int(free)

    use()
    before = use()
    for _ in range(5):
        after = use()
    assert before - after < 8 << 20


def test_four_threads_give_what_one_gives(engine: Path, street: np.ndarray) -> None:
    wrong: list[BaseException] = []
    with PoseEstimator(engine) as estimator:
        expected = estimator.predict(street)

        def work() -> None:
            try:
                for _ in range(10):
                    np.testing.assert_allclose(estimator.predict(street).xy, expected.xy, atol=0.1)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_second_process_finds_its_kernels(engine: Path, flavour: str) -> None:
    if flavour != "rtx":
        pytest.skip("TensorRT compiles its kernels when it builds")
    with open_backend(engine) as backend:
        boxes = np.array([[10, 10, 60, 90]], np.float32)
        backend.run({"frame": np.zeros((240, 320, 3), np.uint8), "boxes": boxes})
    assert kernels_path(engine).stat().st_size > 0


@contextmanager
def _on_gpu(library: str, image: np.ndarray) -> Iterator[Any]:
    """The image as an array of a library, made on a stream that nobody has waited for."""
    package = pytest.importorskip(library)
    if library == "torch":
        if not package.cuda.is_available():
            pytest.skip("this PyTorch sees no GPU")
        with package.cuda.stream(package.cuda.Stream()):
            yield (package.from_numpy(image).cuda(non_blocking=True) + 1) - 1
    elif library == "cupy":
        with package.cuda.Stream(non_blocking=True):
            yield (package.asarray(image) + 1) - 1
    else:
        yield package.to_device(image, stream=package.stream())


@pytest.mark.parametrize("library", ["torch", "cupy", "numba.cuda"])
def test_images_in_the_gpus_memory_give_the_same(
    engine: Path, street: np.ndarray, library: str
) -> None:
    with warnings.catch_warnings(action="error"), PoseEstimator(engine) as estimator:
        expected = estimator.predict(street)
        for _ in range(20):
            with _on_gpu(library, street) as image:
                got = estimator.predict(image)
            assert got.image is None  # no copy was made of it
            np.testing.assert_allclose(got.xy, expected.xy, atol=0.1)
