"""The HTTP application, without a socket: answers, limits, metrics, OpenAPI."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import InputError, PoseEstimator
from cfpose_sdk.serving.app import ServeOptions, make_app
from cfpose_sdk.serving.decoders import DecoderOptions

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx2", reason="httpx2, of the extra dev, is not installed")
from starlette.testclient import TestClient

FAST = DecoderOptions(processes=1)


@pytest.fixture(scope="module")
def estimator(pose_model: Path, finder_model: Path) -> Iterator[PoseEstimator]:
    with PoseEstimator(pose_model, detector=finder_model, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(estimator: PoseEstimator) -> Iterator[TestClient]:
    options = ServeOptions(max_bytes=200_000, body_s=5, decoder=FAST)
    with TestClient(make_app(estimator, options)) as opened:
        yield opened


@pytest.fixture(scope="module")
def photo() -> bytes:
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def _expected(estimator: PoseEstimator, photo: bytes) -> Any:
    image = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    return estimator.predict(np.asarray(image, np.uint8))


def test_json_is_to_dict(client: TestClient, estimator: PoseEstimator, photo: bytes) -> None:
    answer = client.post("/predict", params={"name": "a.png"}, content=photo)
    assert answer.status_code == 200
    said, expected = answer.json(), _expected(estimator, photo).to_dict()
    assert len(said["people"]) == 2
    assert said["image"] == "a.png"
    assert {**said, "image": None, "speed_ms": {}} == {**expected, "speed_ms": {}}


def test_coco_is_to_coco(client: TestClient, estimator: PoseEstimator, photo: bytes) -> None:
    answer = client.post("/predict?format=coco&name=000000000139.jpg", content=photo)
    assert answer.json() == _expected(estimator, photo).to_coco(139)


def test_a_name_is_never_opened(client: TestClient, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(photo)
    for name in (str(tmp_path / "secret.png"), "file:///etc/passwd", "http://127.0.0.1:1/a.jpg"):
        assert client.post("/predict", params={"name": name}, content=b"").status_code == 400
        answer = client.post("/predict", params={"name": name}, content=name.encode())
        assert answer.status_code == 422


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"", {}, 400, "empty"),
        (b"x" * 200_001, {}, 413, "200000"),
        (b"no photo", {}, 422, "not an image"),
        (b"x", {"content-encoding": "gzip"}, 415, "compressed"),
        (b"x", {"content-type": "multipart/form-data; boundary=x"}, 415, "--data-binary @FILE"),
    ],
)
def test_refusals(
    client: TestClient, content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    answer = client.post("/predict", content=content, headers=headers)
    assert answer.status_code == status
    assert said in answer.json()["detail"]


def test_a_body_of_unknown_length_is_counted_as_it_comes(client: TestClient) -> None:
    answer = client.post("/predict", content=iter([b"x" * 150_000] * 2))
    assert answer.status_code == 413


def test_wrong_options_and_methods(client: TestClient, photo: bytes) -> None:
    wrong = client.post("/predict?format=xml", content=photo)
    assert wrong.status_code == 422
    assert wrong.json() == {"detail": "format: Input should be 'json' or 'coco'"}
    assert client.get("/predict").status_code == 405
    assert client.get("/docs").status_code == 404  # it would fetch scripts from elsewhere


def test_health_metrics_and_openapi(client: TestClient, photo: bytes) -> None:
    assert client.post("/predict", content=photo).status_code == 200
    health = client.get("/healthz").json()
    assert (health["status"], health["model"], health["decoders"]) == ("ok", "brightest", 1)
    assert (health["provider"], health["tuned"]) == ("CPUExecutionProvider", "")
    text = client.get("/metrics").text
    assert 'cfpose_answers_total{status="200"}' in text
    assert 'cfpose_step_seconds_count{step="infer"}' in text
    assert "cfpose_batch_images_count" in text
    schema = client.get("/openapi.json").json()
    post = schema["paths"]["/predict"]["post"]
    assert set(post["requestBody"]["content"]) == {"image/*", "application/octet-stream"}
    assert {"200", "400", "408", "413", "415", "422", "429", "503"} <= set(post["responses"])


class _Held:
    """A detector that waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()

    def __call__(self, image: Any) -> list[list[float]]:
        self.begun.set()
        self.go.wait(20)
        return [[4, 4, 20, 60]]


def test_full_is_429_and_late_is_503(pose_model: Path, photo: bytes) -> None:
    held = _Held()
    options = ServeOptions(queue=2, batch=1, deadline_s=1.5, decoder=FAST)
    with (
        PoseEstimator(pose_model, detector=held, device="cpu") as slow,
        TestClient(make_app(slow, options)) as client,
        ThreadPoolExecutor(4) as callers,
    ):

        def post(_: int) -> tuple[int, str | None]:
            answer = client.post("/predict", content=photo)
            return answer.status_code, answer.headers.get("retry-after")

        answers = list(callers.map(post, range(4)))
        assert sorted(answers) == [(429, "1"), (429, "1"), (503, "1"), (503, "1")]
        held.go.set()
        assert post(0) == (200, None)  # the late ones hold nothing up


def test_an_error_of_the_model_is_500(pose_model: Path, photo: bytes) -> None:
    def broken(image: Any) -> list[list[float]]:
        raise ZeroDivisionError("a detector of somebody's own")

    with PoseEstimator(pose_model, detector=broken, device="cpu") as opened:
        app = make_app(opened, ServeOptions(decoder=FAST))
        with TestClient(app, raise_server_exceptions=False) as client:
            assert client.post("/predict", content=photo).status_code == 500
            assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("options", [{"queue": 0}, {"deadline_s": -1.0}, {"max_bytes": 0}])
def test_limits_have_ranges(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        ServeOptions(**options)


def test_decoder_limits_have_ranges() -> None:
    with pytest.raises(InputError, match="seconds must be above 0"):
        ServeOptions(decoder=DecoderOptions(seconds=0))


def test_the_answer_is_json_without_nan(client: TestClient, photo: bytes) -> None:
    text = client.post("/predict", content=photo).text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
