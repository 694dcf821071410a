"""The HTTP application: POST a photo to `/predict`; `/healthz`, `/metrics`, `/openapi.json`.

It takes bytes alone: no path and no address that a caller names is ever opened.
"""

# no `from __future__ import annotations`: FastAPI reads the annotations of functions whose types
# are imported here inside a function, because the SDK itself needs no FastAPI

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import cfpose_sdk
from cfpose_sdk.errors import InputError, require
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.formats import coco_image_id
from cfpose_sdk.media.image import Image
from cfpose_sdk.results import Poses
from cfpose_sdk.serving.batches import Batches
from cfpose_sdk.serving.decoders import DecoderOptions, Decoders, RefusedError
from cfpose_sdk.serving.metrics import Metrics

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "the photo's file as it is: JPEG, PNG, WebP, BMP, TIFF, …",
        "content": {"image/*": _BINARY, "application/octet-stream": _BINARY},
    }
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the people, as `Poses.to_dict` or as COCO keypoint results"},
    400: {"description": "an empty body"},
    408: {"description": "the body did not arrive in time"},
    413: {"description": "too many bytes or pixels"},
    415: {"description": "a compressed body, or a form"},
    422: {"description": "a damaged photo, one that is too small, or no photo; a wrong option"},
    429: {"description": "too many requests wait; try again later"},
    503: {"description": "not answered by the deadline; try again later"},
}
_LATER = {"Retry-After": "1"}
_NAME_LETTERS = 200
_LINGER_S = 1.0


@dataclass(frozen=True)
class ServeOptions:
    """Limits of a server.

    At most `queue` requests send their body at the same time, and as many wait for an answer; more
    get 429. An answer is there within `deadline_s` of the body, or it is 503; the body itself has
    `body_s`. At most `batch` images go through the model together, and twice as many are held as
    pixels.
    """

    queue: int = 64
    batch: int = 8
    deadline_s: float = 10.0
    body_s: float = 10.0
    max_bytes: int = 20_000_000
    decoder: DecoderOptions = field(default_factory=DecoderOptions)

    def __post_init__(self) -> None:
        flat = {**dataclasses.asdict(self), **dataclasses.asdict(self.decoder)}
        for name, value in flat.items():
            if name != "decoder" and not value > 0:
                raise InputError(f"{name} must be above 0, got {value}")


class Service:
    """The way of one request: gate, body, decoder, batch, answer. For one event loop."""

    def __init__(self, estimator: PoseEstimator, options: ServeOptions) -> None:
        self.options, self.metrics = options, Metrics()
        self.decoders = Decoders(options.decoder)
        self._batches = Batches(_predict_all(estimator), options.batch, self.metrics.batched)
        self._pixels = asyncio.Semaphore(2 * options.batch)
        self.sending = self.waiting = 0

    async def start(self) -> None:
        """Start the decoder processes and the model's thread."""
        await self.decoders.start()
        await self._batches.start()

    async def close(self) -> None:
        """End both."""
        await self._batches.close()
        await self.decoders.close()

    async def receive(self, chunks: AsyncIterator[bytes], announced: str | None) -> bytes:
        """The body, within its limits of bytes and time. Raises RefusedError."""
        if announced is not None and announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large(int(announced))
        if self.sending >= self.options.queue:
            raise RefusedError(
                429, f"{self.sending} requests send their body already; try again later"
            )
        self.sending += 1
        body = bytearray()
        try:
            async with asyncio.timeout(self.options.body_s):
                async for chunk in chunks:
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise self._too_large(len(body))
        except TimeoutError:
            text = f"the body did not arrive within {self.options.body_s:g} s"
            raise RefusedError(408, f"{text}; {len(body)} bytes did") from None
        finally:
            self.sending -= 1
        if not body:
            raise RefusedError(400, "the body is empty (0 bytes); expected a photo's file")
        return bytes(body)

    async def pose(self, data: bytes) -> Poses:
        """The people of a photo's file. Raises RefusedError."""
        if self.waiting >= self.options.queue:
            raise RefusedError(429, f"{self.waiting} requests wait already; try again later")
        self.waiting += 1
        try:
            async with asyncio.timeout(self.options.deadline_s):
                return await self._decode_and_predict(data)
        except TimeoutError:
            text = f"there was no answer within {self.options.deadline_s:g} s; try again later"
            raise RefusedError(503, text) from None
        finally:
            self.waiting -= 1

    async def _decode_and_predict(self, data: bytes) -> Poses:
        async with self._pixels:
            start = time.perf_counter()
            image = await self.decoders.decode(data)
            decode_s = time.perf_counter() - start
            poses = await self._batches.predict(image)
        self.metrics.posed(poses, decode_s)
        return poses

    @property
    def _max_bytes(self) -> int:
        return self.options.max_bytes

    def _too_large(self, size: int) -> RefusedError:
        return RefusedError(
            413, f"the body has {size} bytes or more; at most {self._max_bytes} are taken"
        )


def make_app(
    estimator: PoseEstimator, options: ServeOptions, on_ready: Callable[[], None] | None = None
) -> Any:
    """The FastAPI application of an open estimator, which stays the caller's to close.

    `on_ready` is called when the decoder processes have started.
    Raises MissingDependencyError without the extra serve.
    """
    require("fastapi", "prometheus_client", extra="serve", why="cfpose serve")
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.requests import ClientDisconnect

    service = Service(estimator, options)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
            if on_ready is not None:
                on_ready()
            yield
        finally:
            await service.close()

    async def predict(
        request: Request,
        format: Literal["json", "coco"] = "json",
        name: str = "photo",
    ) -> Response:
        """Find the people in the photo that is the body of the request, and their joints.

        `name` is only written into the answer: `image`, or COCO's `image_id`.
        """
        start, body = time.perf_counter(), request.stream()
        try:
            _check_headers(request.headers)
            announced = request.headers.get("content-length")
            data = await service.receive(body, announced)
            status, content = 200, _written(await service.pose(data), format, name)
        except RefusedError as error:
            await _discard(body)
            status, content = error.status, json.dumps({"detail": error.detail})
        except ClientDisconnect:
            status, content = 400, json.dumps({"detail": "the caller has gone"})
        service.metrics.answered(status, time.perf_counter() - start)
        later = _LATER if status in (429, 503) else None
        return Response(content, status, later, media_type="application/json")

    async def wrong_option(_: Request, error: Any) -> Response:
        said = "; ".join(f"{wrong['loc'][-1]}: {wrong['msg']}" for wrong in error.errors())
        return Response(json.dumps({"detail": said}), 422, media_type="application/json")

    async def healthz() -> dict[str, Any]:
        """200 while the server takes requests."""
        return {
            "status": "ok",
            "model": estimator.info.name,
            "provider": estimator.info.provider,
            "tuned": estimator.info.tuned,
            "decoders": len(service.decoders.pids),
            "waiting": service.waiting,
            "version": cfpose_sdk.__version__,
        }

    async def metrics() -> Response:
        """Counters and times for Prometheus."""
        text = service.metrics.text(service.waiting, service.decoders.ended)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    # the pages of FastAPI that show the API would fetch scripts from elsewhere
    app = FastAPI(
        title="cfpose", version=cfpose_sdk.__version__, lifespan=life, docs_url=None, redoc_url=None
    )
    app.add_api_route(
        "/predict", predict, methods=["POST"], responses=_ANSWERS, openapi_extra=_BODY
    )
    app.add_api_route("/healthz", healthz, methods=["GET"])
    app.add_api_route("/metrics", metrics, methods=["GET"])
    app.add_exception_handler(RequestValidationError, wrong_option)
    app.state.service = service
    return app


def _check_headers(headers: Mapping[str, str]) -> None:
    """Raise RefusedError where the body is not the photo's file as it is."""
    if headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "the body is compressed; send the photo's file as it is")
    if headers.get("content-type", "").lower().startswith("multipart/"):
        text = "the body is a form; send the photo's file as the body: curl --data-binary @FILE"
        raise RefusedError(415, text)


async def _discard(body: AsyncIterator[bytes]) -> None:
    """Read on for a moment: a caller who still sends would not see the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            async for _ in body:
                pass


def _predict_all(estimator: PoseEstimator) -> Any:
    def predict_all(images: Sequence[Image]) -> list[Poses]:
        return estimator.predict_batch(list(images))

    return predict_all


def _written(poses: Poses, format: Literal["json", "coco"], name: str) -> str:
    poses = dataclasses.replace(poses, source=name[:_NAME_LETTERS])
    if format == "json":
        return poses.to_json()
    return json.dumps(poses.to_coco(coco_image_id(name[:_NAME_LETTERS])))
