"""`cfpose serve`: its options and help."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeAlias, get_args

from cfpose_sdk.backends import place_of
from cfpose_sdk.backends.foreign import adopted_file, split_preset
from cfpose_sdk.backends.tuned import Precision
from cfpose_sdk.errors import InputError, require
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.serving.app import ServeOptions
from cfpose_sdk.serving.decoders import DecoderOptions
from cfpose_sdk.serving.server import serve

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_MANNERS = (
    "POST the file of a photo as the body to /predict; ?format=coco gives COCO keypoint results, "
    "?name= is written into the answer. GET /healthz, /metrics (Prometheus), /openapi.json. "
    "Whoever reaches the port may use it: put a proxy with TLS and passwords before it."
)


def add_serve(commands: Commands) -> None:
    """Add `serve` to the commands of `cfpose`."""
    command = commands.add_parser(
        "serve",
        help="answer over HTTP",
        description="Estimate the poses of photos that are sent over HTTP.",
        epilog=_MANNERS,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_serve)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    command.add_argument("--port", type=int, default=8000, help="port; 0: a free one")
    add_estimator(command)
    _add_limits(command)


def add_estimator(command: argparse.ArgumentParser) -> None:
    """Add the options that open an estimator."""
    command.add_argument(
        "--model",
        metavar="M",
        help="exported pose model, a bundled one's name, or PRESET:FILE; None: the bundled default",
    )
    command.add_argument(
        "--detector", metavar="D", help="person detector; None: the bundled finder"
    )
    command.add_argument(
        "--device",
        type=device,
        default="auto",
        help="device that runs the models: auto, cpu, cuda or cuda:N, tensorrt or tensorrt:N, "
        "openvino",
    )
    add_precision(command)
    command.add_argument(
        "--threads", metavar="N", type=int, help="threads of the models; None: their choice"
    )
    command.add_argument(
        "--max-people", metavar="N", type=int, help="keep the N best-scored people of an image"
    )


def add_precision(command: argparse.ArgumentParser) -> None:
    """Add --precision."""
    command.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="tuned: as `cfpose tune` found fastest on this machine; None: in float32, or as the "
        "model's file is",
    )


def device(text: str) -> str:
    """A device by its name; argparse says what is wrong with another."""
    try:
        place_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def model_given(model: str | None) -> str | None:
    """The file of --model; a foreign network with its preset is adopted first."""
    foreign = split_preset(model or "")
    return model if foreign is None else str(adopted_file(*foreign))


def _add_limits(command: argparse.ArgumentParser) -> None:
    options, decoder = ServeOptions(), DecoderOptions()

    def add(option: str, metavar: str, default: float, help: str) -> None:
        command.add_argument(
            option, metavar=metavar, type=type(default), default=default, help=help
        )

    add("--queue", "N", options.queue, "requests that may wait; more get 429")
    add("--batch", "N", options.batch, "photos that go through the model together at most")
    add("--deadline", "S", options.deadline_s, "seconds from body to answer; later it is 503")
    add("--body-seconds", "S", options.body_s, "seconds that a body may take; later it is 408")
    add("--max-bytes", "N", options.max_bytes, "bytes of a body; more get 413")
    add("--max-pixels", "N", decoder.max_pixels, "pixels of a photo; more get 413")
    add("--decoders", "N", decoder.processes, "processes that decode photos")
    add("--decode-seconds", "S", decoder.seconds, "seconds that decoding a photo may take")
    add("--decode-memory", "MB", decoder.memory_mb, "MiB that decoding a photo may take (Linux)")


def _serve(options: argparse.Namespace) -> int:
    require("fastapi", "uvicorn", "prometheus_client", extra="serve", why="cfpose serve")
    limits = ServeOptions(
        queue=options.queue,
        batch=options.batch,
        deadline_s=options.deadline,
        body_s=options.body_seconds,
        max_bytes=options.max_bytes,
        decoder=DecoderOptions(
            processes=options.decoders,
            seconds=options.decode_seconds,
            memory_mb=options.decode_memory,
            max_pixels=options.max_pixels,
        ),
    )
    with PoseEstimator(
        model_given(options.model),
        detector=options.detector,
        device=options.device,
        threads=options.threads,
        max_people=options.max_people,
        precision=options.precision,
    ) as estimator:
        serve(estimator, limits, options.host, options.port)
    return 0
