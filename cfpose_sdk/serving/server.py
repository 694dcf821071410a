"""`cfpose serve`: the application on a socket, until the process is asked to end."""

from __future__ import annotations

import socket
import sys

import numpy as np

from cfpose_sdk.errors import BackendError, InputError, require
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.serving.app import ServeOptions, make_app


def serve(estimator: PoseEstimator, options: ServeOptions, host: str, port: int) -> None:
    """Answer until Ctrl-C or SIGTERM; port 0 takes a free one. Requests that wait are answered.

    Raises InputError when the port cannot be had, MissingDependencyError without the extra serve.
    """
    require("uvicorn", extra="serve", why="cfpose serve")
    import uvicorn

    nothing = np.zeros((64, 64, 3), np.uint8)
    estimator.predict(nothing)  # opens the finder: the first caller should not wait for it
    estimator.predict(nothing, boxes=[[8, 8, 56, 56]])
    with _listen(host, port) as listening:
        app = make_app(estimator, options, lambda: _say_ready(estimator, listening))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=round(options.deadline_s + options.body_s) + 1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.run(sockets=[listening])
        if not server.started:
            raise BackendError("the server did not start; the reason stands above")


def _say_ready(estimator: PoseEstimator, listening: socket.socket) -> None:
    address, info = listening.getsockname(), estimator.info
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(
        f"cfpose: {info.name} ({info.tuned or info.provider}) on http://{host}:{address[1]}, "
        f"POST photos to /predict; Ctrl-C ends",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error}; choose another --host or --port"
        ) from error
