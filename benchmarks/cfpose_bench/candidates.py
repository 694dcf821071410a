"""What can be measured: cfpose artifacts and peers, opened by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cfpose_bench.peers.movenet import MoveNet
from cfpose_bench.predictions import PoseModel
from cfpose_sdk.backends import Device
from cfpose_sdk.detector import Detector
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.skeleton import COCO_17, Skeleton


@dataclass(frozen=True)
class Candidate:
    """An opened model with the facts that the report states about it."""

    name: str
    model: PoseModel
    skeleton: Skeleton
    close: Callable[[], None]
    precision: str | None = None
    provider: str | None = None
    bytes: int | None = None
    is_peer: bool = False


def open_candidate(name: str, *, finder: Detector | None, device: Device) -> Candidate:
    """Open `default`, an artifact file, or `movenet:FILE.onnx`.

    `finder` finds the people where no boxes are given; it stays the caller's. Raises InputError for
    an unknown peer, ArtifactError and BackendError as the runtime does.
    """
    peer, separator, path = name.partition(":")
    if separator and peer == "movenet":
        return _movenet(Path(path), finder, device)
    if separator and len(peer) > 1:  # a single letter is a Windows drive
        raise InputError(f"--model {name}: no peer is called {peer!r}; expected movenet:FILE.onnx")
    return _cfpose(name, finder, device)


def _cfpose(name: str, finder: Detector | None, device: Device) -> Candidate:
    estimator = PoseEstimator(None if name == "default" else name, detector=finder, device=device)
    info = estimator.info
    return Candidate(
        name=name if name == "default" else Path(name).name,
        model=estimator,
        skeleton=estimator.spec.skeleton,
        close=estimator.close,
        precision=estimator.spec.precision,
        provider=info.provider,
        bytes=Path(info.model).stat().st_size,
    )


def _movenet(path: Path, finder: Detector | None, device: Device) -> Candidate:
    model = MoveNet(path, finder, device=device)
    return Candidate(
        name=path.stem,
        model=model,
        skeleton=COCO_17,
        close=model.close,
        provider=model.backend.provider,
        bytes=path.stat().st_size,
        is_peer=True,
    )
