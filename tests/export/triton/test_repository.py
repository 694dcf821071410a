"""The Triton repository: its configs in Triton's own schema, its models on a stand-in server."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cfpose_export.cli import main
from cfpose_export.triton.repository import write_repository
from cfpose_sdk import ExportError, InputError, PoseEstimator
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, BUNDLED_MODEL
from cfpose_sdk.detectors.base import PersonFinder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    assert main(["triton", "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def configs(repository: Path) -> dict[str, Any]:
    """Model → its config, read by the schema of Triton's own client."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed: pip install --no-deps tritonclient")
    schema = Path(next(iter(found.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    module = _load(schema, "model_config_pb2")  # by its path: its package wants grpcio
    from google.protobuf import json_format, text_format

    return {
        file.parent.name: json_format.MessageToDict(
            text_format.Parse(file.read_text(), module.ModelConfig()),
            preserving_proto_field_name=True,
        )
        for file in repository.glob("*/config.pbtxt")
    }


def _sides() -> list[str]:
    with PoseEstimator(device="cpu") as estimator:
        width, height = estimator.spec.size_wh
    return [str(height), str(width)]


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configs_fit_tritons_schema(repository: Path, configs: dict[str, Any]) -> None:
    assert set(configs) == {"cfpose", "cfpose_pose", "cfpose_finder"}
    for name, config in configs.items():
        assert config["name"] == name
        file = "model.py" if config["backend"] == "python" else "model.onnx"
        assert (repository / name / "1" / file).is_file()
    pose = configs["cfpose_pose"]
    assert pose["max_batch_size"] == 32
    assert pose["input"] == [{"name": "crops", "data_type": "TYPE_UINT8", "dims": [*_sides(), "3"]}]
    assert {each["name"]: each["dims"] for each in pose["output"]} == {
        "keypoints": ["17", "2"], "confidence": ["17"], "covariance": ["17", "2", "2"],
        "coarse": ["17", "2"],
    }  # fmt: skip
    assert configs["cfpose"]["input"][0]["dims"] == ["-1", "-1", "3"]


def test_the_configs_fit_the_graphs(repository: Path, configs: dict[str, Any]) -> None:
    for name in ("cfpose_pose", "cfpose_finder"):
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        for said, real in (
            (configs[name]["input"], session.get_inputs()),
            (configs[name]["output"], session.get_outputs()),
        ):
            assert [each["name"] for each in said] == [each.name for each in real]
            shapes = [[int(side) for side in each["dims"]] for each in said]
            assert shapes == [list(each.shape[1:]) for each in real]
        assert isinstance(session.get_inputs()[0].shape[0], str)  # any batch


class Server:
    """The graphs of the repository, run by onnxruntime."""

    def __init__(self, repository: Path, configs: dict[str, Any]) -> None:
        self.configs = configs
        self._sessions = {
            name: onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
            for name in ("cfpose_pose", "cfpose_finder")
        }

    def run(self, name: str, feeds: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
        assert all(len(array) <= self.configs[name]["max_batch_size"] for array in feeds.values())
        return dict(zip(outputs, self._sessions[name].run(outputs, feeds), strict=True))


@pytest.fixture(scope="module")
def server(repository: Path, configs: dict[str, Any]) -> Server:
    return Server(repository, configs)


@pytest.fixture
def backend(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`triton_python_backend_utils`, which exists inside Triton alone."""

    class Tensor:
        def __init__(self, name: str, array: Any) -> None:
            self.name, self._array = name, array

        def as_numpy(self) -> Any:
            return self._array

    class Response:
        def __init__(self, tensors: list[Tensor], error: Any = None) -> None:
            self.tensors, self._error = tensors, error

        def has_error(self) -> bool:
            return self._error is not None

        def error(self) -> Any:
            return self._error

    class Request:
        def __init__(self, **said: Any) -> None:
            self.said = said

        def exec(self) -> Response:
            feeds = {tensor.name: tensor.as_numpy() for tensor in self.said["inputs"]}
            names = self.said["requested_output_names"]
            try:
                answer = server.run(self.said["model_name"], feeds, names)
            except Exception as error:
                text = str(error)
                return Response([], SimpleNamespace(message=lambda: text))
            return Response([Tensor(name, array) for name, array in answer.items()])

    def by_name(holder: Any, name: str) -> Tensor:
        return next(tensor for tensor in holder.tensors if tensor.name == name)

    utils = SimpleNamespace(
        Tensor=Tensor, InferenceRequest=Request, InferenceResponse=Response,
        TritonError=lambda text: SimpleNamespace(message=lambda: text),
        get_input_tensor_by_name=by_name, get_output_tensor_by_name=by_name,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)


def test_the_python_model_answers_as_the_estimator_does(
    root: Path, repository: Path, configs: dict[str, Any], backend: None
) -> None:
    from cfpose_sdk.media.image import read_image

    utils: Any = sys.modules["triton_python_backend_utils"]
    model = _load(repository / "cfpose" / "1" / "model.py", "model").TritonPythonModel()
    model.initialize({"model_config": json.dumps(configs["cfpose"])})
    frame = read_image(root / "examples" / "photos" / "street.jpg")
    requests = [
        SimpleNamespace(tensors=[utils.Tensor("frame", each)])
        for each in (frame, np.zeros((40, 40, 7), np.uint8))
    ]
    answer, refused = model.execute(requests)
    model.finalize()
    finder = repository / "cfpose_finder" / "1" / "model.onnx"  # for whole letterboxes
    with PoseEstimator(device="cpu", detector=PersonFinder(finder, device="cpu")) as estimator:
        expected = estimator.predict(frame)
    assert len(expected) >= 2
    said = {tensor.name: tensor.as_numpy() for tensor in answer.tensors}
    assert set(said) == {each["name"] for each in configs["cfpose"]["output"]}
    np.testing.assert_allclose(said["keypoints"], expected.xy, atol=0.01)
    np.testing.assert_allclose(said["boxes"], expected.boxes, atol=0.01)
    assert "shape (H, W, 3)" in refused.error().message()


def test_the_client_answers_as_the_estimator_does(
    root: Path, repository: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InferInput:
        def __init__(self, name: str, shape: list[int], kind: str) -> None:
            self.name, self.shape, self.kind = name, shape, kind

        def set_data_from_numpy(self, array: Any) -> None:
            kinds = {"UINT8": np.uint8, "FP32": np.float32}
            assert (list(array.shape), array.dtype) == (self.shape, kinds[self.kind])
            self.array = array

    class Client:
        def __init__(self, address: str) -> None:
            assert address == "localhost:8000"

        def get_model_config(self, name: str) -> Any:
            return server.configs[name]

        def infer(self, name: str, inputs: list[Any], outputs: list[str]) -> Any:
            answer = server.run(name, {each.name: each.array for each in inputs}, outputs)
            return SimpleNamespace(as_numpy=answer.__getitem__)

    http: Any = ModuleType("tritonclient.http")
    http.InferInput, http.InferRequestedOutput = InferInput, str
    http.InferenceServerClient = Client
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    monkeypatch.setattr(sys.modules["tritonclient"], "http", http, raising=False)
    client = _load(root / "examples" / "triton" / "client.py", "client")
    photo = root / "examples" / "photos" / "street.jpg"
    connection = Client("localhost:8000")
    finder = client.PersonFinder(client.TritonBackend(connection, "cfpose_finder"))
    pose = client.TritonBackend(connection, "cfpose_pose")
    poses = PoseEstimator(pose, detector=finder).predict(photo)
    whole = PersonFinder(repository / "cfpose_finder" / "1" / "model.onnx", device="cpu")
    with PoseEstimator(device="cpu", detector=whole) as estimator:
        np.testing.assert_allclose(poses.xy, estimator.predict(photo).xy, atol=0.01)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "theirs.txt").touch()
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.txt"]


def test_a_folder_that_holds_something_is_refused(filled: Path) -> None:
    with pytest.raises(InputError, match="new or an empty folder"):
        write_repository(BUNDLED_MODEL, BUNDLED_FINDER, filled)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not a cfpose pose model"):
        write_repository(BUNDLED_FINDER, BUNDLED_FINDER, tmp_path / "r")
    with pytest.raises(InputError, match="no cfpose finder"):
        write_repository(BUNDLED_MODEL, BUNDLED_MODEL, tmp_path / "r")
    with pytest.raises(InputError, match="max_batch"):
        write_repository(BUNDLED_MODEL, BUNDLED_FINDER, tmp_path / "r", 0)
    assert not (tmp_path / "r").exists()
