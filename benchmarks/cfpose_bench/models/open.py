"""Models under test by name (`--model`): parsed, and opened in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfpose_bench.models.base import Facts, PoseModel
from cfpose_bench.models.wrappers import CountedFinder, FlipTested
from cfpose_bench.peers.yolo_pose import YoloPose
from cfpose_sdk.backends import Device, RuntimeOptions
from cfpose_sdk.backends.base import ArithmeticPrecision
from cfpose_sdk.backends.bundled import DEFAULT, POSE_MODELS, model_file
from cfpose_sdk.backends.foreign import PRESETS, adopted_file
from cfpose_sdk.backends.openvino import ir_weights
from cfpose_sdk.backends.tensorrt.passport import passport_path
from cfpose_sdk.backends.tuned import Tuned, chosen
from cfpose_sdk.detectors import open_detector
from cfpose_sdk.detectors.base import OpenDetector, PersonFinder
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import what_is_at

ENGINES = (".engine", ".plan")


def files_of(path: Path, *, sidecar: bool = False) -> tuple[Path, ...]:
    """The artifact first, then the files beside it that are there, by name.

    An .xml has its weights in a .bin, an .onnx may have them in external data, an engine has its
    passport. `sidecar`: rtmlib's NAME.json, whose mean and std decide the answers, counts too.
    """
    kind, others = path.suffix.lower(), set()
    if kind == ".xml":
        others = {ir_weights(path)}
    elif kind == ".onnx":
        others = _external_data(path)
    elif kind in ENGINES:
        others = {passport_path(path)}
    if sidecar:
        others.add(path.with_suffix(".json"))
    return (path, *sorted(other for other in others if what_is_at(other) == "file"))


def _external_data(path: Path) -> set[Path]:
    """Files of tensors outside the graph; without the package onnx, those of the usual names."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        return {path.with_name(path.name + ending) for ending in (".data", "_data")}
    try:
        graph = onnx.load_model(path, load_external_data=False).graph
    except DecodeError:  # opening it raises a better error
        return set()
    return {
        path.parent / entry.value
        for tensor in _tensors(graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(graph: Any) -> list[Any]:
    """The constants of a graph and of those inside its nodes."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if attribute.HasField("g"):
                tensors += _tensors(attribute.g)
    return tensors


# peers that run in an environment of their own, by the adapter file that serves them
ADAPTERS = {
    "rtmlib": "rtmlib_pose.py",
    "ultralytics": "ultralytics_pose.py",
    "mediapipe": "mediapipe_pose.py",
}
YOLO_POSE = "yolopose"
TUNED = "tuned"  # a prefix, as those of peers: the artifact as `cfpose tune` has it run
PEERS = (*PRESETS, YOLO_POSE, *ADAPTERS, "adapter")


@dataclass(frozen=True)
class ModelName:
    """`--model`, parsed; `peer` is None for a cfpose artifact."""

    text: str
    peer: str | None
    path: Path
    adapter: Path | None = None  # the file that serves a peer in its own environment
    tuned: bool = False  # a cfpose artifact, run as `cfpose tune` found fastest

    @property
    def label(self) -> str:
        """Its name in reports, without a path of the machine that they were made on."""
        if self.tuned:
            return f"{parse_name(self.text.removeprefix(f'{TUNED}:')).label}, tuned"
        if self.text == DEFAULT or self.text in POSE_MODELS:
            return self.text
        if self.peer is None:
            return self.path.name
        plain = self.peer in (*PRESETS, YOLO_POSE)
        return self.path.stem if plain else f"{self.peer}:{self.path.stem}"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide its predictions, the named one first."""
        return files_of(self.path, sidecar=self.peer == "rtmlib")


@dataclass(frozen=True)
class OpenModel:
    """A model that is open in this process; a worker holds one."""

    facts: Facts
    model: PoseModel
    close: Callable[[], None]
    finder: CountedFinder | None = None  # its detector, where it must detect the people


def parse_name(text: str) -> ModelName:
    """`default`, `cfpose-m`, FILE, `movenet:F.onnx`, `rtmlib:F.onnx`, `adapter:A.py:FILE`, ….

    `tuned:` before an artifact, or a bundled model's name, has it run as `cfpose tune` found.

    `default` and other names of bundled models stand for their files, `movenet` for every preset of
    `cfpose-export adopt`.

    Raises InputError for an unknown peer, ArtifactError for no bundled model.
    """
    peer, separator, rest = text.partition(":")
    if not separator or len(peer) == 1:  # a single letter is a Windows drive
        return ModelName(text, None, model_file(text))
    if peer == TUNED:
        return ModelName(text, None, model_file(rest), tuned=True)
    if peer not in PEERS:
        raise InputError(
            f"--model {text}: no peer is called {peer!r}; expected one of {', '.join(PEERS)}"
        )
    if peer == "adapter":
        adapter, separator, path = rest.partition(":")
        if not separator:
            raise InputError(f"--model {text}: expected adapter:ADAPTER.py:FILE")
        return ModelName(text, peer, Path(path), Path(adapter))
    folder = Path(__file__).parents[1] / "peers"
    return ModelName(text, peer, Path(rest), folder / ADAPTERS[peer] if peer in ADAPTERS else None)


def open_model(
    name: ModelName,
    *,
    find: bool = False,
    detector: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    flip_test: bool = False,
    precision: ArithmeticPrecision = "f32",
) -> OpenModel:
    """Open a cfpose artifact, or a foreign network adopted into one, in this process.

    `find` opens a detector too (`detector`, or the bundled finder), for photos without boxes.
    `flip_test`: the photo's mirror image is predicted too, but of a graph that averages both views
    itself. `precision`: of an OpenVINO pose network's arithmetic. Raises ArtifactError and
    BackendError as the runtime does, InputError for a precision that it does not have.
    """
    tuned = _tuned(name, device, precision)
    finder = CountedFinder(open_finder(detector, device, threads, tuned)) if find else None
    if name.peer == YOLO_POSE:
        if flip_test or precision != "f32":
            raise InputError(f"--model {name.text}: a one-stage network has no flip test, and f32")
        opened = _yolo_pose(name, device, threads)
    else:
        opened = _cfpose(name, finder, device, threads, precision)

    def close() -> None:
        opened.close()
        if finder is not None:
            finder.close()

    outside = flip_test and not opened.facts.flips_inside
    model = FlipTested(opened.model) if outside else opened.model
    return OpenModel(opened.facts, model, close, finder)


def _tuned(name: ModelName, device: Device, precision: ArithmeticPrecision) -> Tuned | None:
    """How the estimator of this name will open its networks, for a finder that runs alike."""
    options = None if precision == "f32" else RuntimeOptions(precision=precision)
    return (
        None if name.peer else chosen(name.path, "tuned" if name.tuned else None, device, options)
    )


def open_finder(
    detector: str | None,
    device: Device = "auto",
    threads: int | None = None,
    tuned: Tuned | None = None,
) -> OpenDetector:
    """The detector of `--detector`; None is the bundled finder, `tuned` or as the options say.

    Raises as `open_detector`.
    """
    if detector is None and tuned is not None:
        way = tuned.setting.finder
        return PersonFinder(tuned.finder, device=way.device, threads=tuned.threads(threads))
    if detector is None:
        return PersonFinder(None, device=device, threads=threads)
    return open_detector(detector, device=device, threads=threads)


def _yolo_pose(name: ModelName, device: Device, threads: int | None) -> OpenModel:
    model = YoloPose(name.path, device=device, threads=threads)
    facts = Facts(
        name=name.label,
        skeleton=model.skeleton,
        provider=model.backend.provider,
        size_wh=model.size_wh,
        is_peer=True,
        one_stage=True,
    )
    return OpenModel(facts, model, model.close)


def _cfpose(
    name: ModelName,
    finder: CountedFinder | None,
    device: Device,
    threads: int | None,
    precision: ArithmeticPrecision,
) -> OpenModel:
    path = None if name.text == DEFAULT else name.path
    if name.peer is not None:
        path = adopted_file(name.peer, name.path)
    # other runtimes have no such option, and refuse it
    options: dict[str, Any] = {}
    if precision != "f32":
        options["options"] = RuntimeOptions(precision=precision)
    if name.tuned:
        options["precision"] = "tuned"
    estimator = PoseEstimator(path, detector=finder, device=device, threads=threads, **options)
    facts = Facts(
        name=name.label,
        skeleton=estimator.spec.skeleton,
        precision=estimator.spec.precision,
        provider=estimator.info.provider,
        size_wh=estimator.spec.size_wh,
        is_peer=name.peer is not None,
        flips_inside=estimator.spec.flip_test,
        calibration=estimator.spec.calibration,
    )
    return OpenModel(facts, estimator, estimator.close)
