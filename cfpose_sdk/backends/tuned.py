"""What `cfpose tune` found fastest for a model on this machine: its file, written and read.

The file lies below the cache, under the name and hash of the model, with the lower-precision graphs
that it uses beside it. It counts on this kind of CPU, with these packages, for this model and
finder alone, and only as it was written.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cfpose_sdk.backends.base import ArithmeticPrecision, Backend, Device, RuntimeOptions
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, BUNDLED_MODEL, POSE_MODELS, model_file
from cfpose_sdk.backends.openvino import processor_flags
from cfpose_sdk.errors import ArtifactError, BackendError, CfposeError, InputError
from cfpose_sdk.files import cache_folder, digest, digest_of, shown

FORMAT = 1
ROOM = "tuned"  # of the cache
Precision = Literal["tuned"]
_PACKAGES = ("cfpose-sdk", "onnxruntime", "onnxruntime-gpu", "openvino")  # that run the networks
# what tells kinds of CPUs apart, by Linux' names
FLAGS = (
    "amx_bf16", "amx_int8", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "asimd",
    "asimddp", "bf16",
)  # fmt: skip
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Way:
    """How a network runs."""

    device: Device = "cpu"  # or "openvino"
    types: str = "float32"  # of its graph, in words
    graph: str = ""  # file of a lower precision, beside the tuned file; "": the model itself
    sha256: str = ""  # of that file
    precision: ArithmeticPrecision = "f32"  # what OpenVINO computes in beyond the graph's types

    @property
    def name(self) -> str:
        """Its runtime and types, as tables have them."""
        runtime = "OpenVINO" if self.device == "openvino" else "onnxruntime"
        rest = "" if self.precision == "f32" else f" and {self.precision}"
        return f"{runtime} {self.types}{rest}"


@dataclass(frozen=True)
class Setting:
    """How both networks run; `threads` None is the runtimes' own choice."""

    pose: Way = Way()
    finder: Way = Way()
    threads: int | None = None

    @property
    def name(self) -> str:
        """For tables: the pose network's way, the finder's where it differs, threads."""
        name = self.pose.name
        if self.finder.types != self.pose.types or self.pose.precision != "f32":
            name += f", finder {self.finder.types}"
        if self.threads is None:
            return name
        return f"{name}, {self.threads} thread{'' if self.threads == 1 else 's'}"


@dataclass(frozen=True)
class Tuned:
    """A setting with the files that it needs, for an estimator to open."""

    setting: Setting
    model: Path
    finder: Path
    told: str = ""  # what is said of it in `PoseEstimator.info`

    @property
    def options(self) -> RuntimeOptions:
        """Of the pose network's runtime."""
        return RuntimeOptions(precision=self.setting.pose.precision)

    def threads(self, given: int | None) -> int | None:
        """The caller's, else the measured ones."""
        return self.setting.threads if given is None else given


def machine() -> dict[str, Any]:
    """The kind of this machine's CPU, as far as it matters to what is fastest."""
    flags = processor_flags() or frozenset()
    return {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),  # not those of a container's or a worker's share
        "flags": sorted(flags.intersection(FLAGS)),
    }


def packages() -> dict[str, str]:
    """Versions of what runs the networks; absent ones are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(model: Path) -> str:
    """The command that tunes a model."""
    if model == BUNDLED_MODEL:
        return "cfpose tune"
    names = [name for name, path in POSE_MODELS.items() if path == model]
    return f"cfpose tune --model {names[0] if names else model}"


def tuned_file(model: Path, sha256: str) -> Path:
    """Where the tuned file of a model lies."""
    return cache_folder(ROOM) / f"{model.stem}-{sha256[:16]}.json"


def record_of(model: Path, sha256: str = "") -> dict[str, Any]:
    """What a tuned file counts for: this machine, these packages and models."""
    return {
        "format": FORMAT,
        "machine": machine(),
        "packages": packages(),
        "model": model.name,
        "model_sha256": sha256 or digest(model),
        "finder_sha256": digest(BUNDLED_FINDER),
    }


def signed(record: Mapping[str, Any]) -> str:
    """The text of a tuned file."""
    return json.dumps({**record, "sha256": digest_of(record)}, indent=1) + "\n"


def read_record(model: Path) -> dict[str, Any]:
    """The whole record of a model's tuned file.

    Raises BackendError where nothing was tuned, or on another machine, with other packages or
    models, ArtifactError where the file, or a graph of it, was changed. Each names the command.
    """
    again = f"run: {command(model)}"
    if not model.is_file() or not cache_folder(ROOM).is_dir():
        raise BackendError(f"nothing was tuned for {model.name} on this machine; {again}")
    sha256 = digest(model)
    file = tuned_file(model, sha256)
    try:
        record = dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BackendError(
            f"nothing was tuned for this {model.name} on this machine; {again}"
        ) from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{shown(file)} cannot be read ({error}); {again}") from error
    said = record.pop("sha256", None)
    if said != digest_of(record):
        raise ArtifactError(f"{shown(file)} was changed since cfpose tune wrote it; {again}")
    if differs := _differences(record, record_of(model, sha256)):
        raise BackendError(f"{model.name} was tuned otherwise: {'; '.join(differs)}; {again}")
    for way in (way for key in ("tuned", "float32") for way in _ways(record[key])):
        if not way.graph:
            continue
        graph = file.with_name(way.graph)
        if not (graph.is_file() and digest(graph) == way.sha256):
            raise ArtifactError(f"{shown(graph)} is gone or was changed; {again}")
    return record


def _differences(record: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, what of a record is not so here."""
    if record.get("format") != FORMAT:
        return [f"its file has format {record.get('format')}, this cfpose reads {FORMAT}"]
    differs = []
    for name in ("machine", "packages"):
        theirs, ours = record[name], here[name]
        for key in sorted({*theirs, *ours}):
            if theirs.get(key) != ours.get(key):
                differs.append(f"{key} was {theirs.get(key)}, is {ours.get(key)}")
    if record["finder_sha256"] != here["finder_sha256"]:
        differs.append("the bundled finder was another one")
    return differs


def _ways(setting: Mapping[str, Any]) -> list[Way]:
    return [Way(**setting[name]) for name in ("pose", "finder")]


def setting_of(record: Mapping[str, Any]) -> Setting:
    """A setting from JSON values."""
    pose, finder = _ways(record)
    return Setting(pose, finder, record["threads"])


def plain(setting: Setting) -> dict[str, Any]:
    """A setting as JSON values."""
    return dataclasses.asdict(setting)


def opened(setting: Setting, model: Path, folder: Path, told: str = "") -> Tuned:
    """A setting with its files; graphs lie in `folder`."""
    pose, finder = setting.pose.graph, setting.finder.graph
    return Tuned(
        setting,
        folder / pose if pose else model,
        folder / finder if finder else BUNDLED_FINDER,
        told,
    )


def read_tuned(model: Path, key: str = "tuned") -> Tuned:
    """The fastest setting of a model; `key` "float32": the fastest in float32. Raises as
    `read_record`.
    """
    record = read_record(model)
    setting = setting_of(record[key])
    measured = record["measured"]
    told = f"{setting.name}, the fastest in float32 here, as cfpose tune measured"
    if key == "tuned":
        told = f"{setting.name}; tuned {measured['date']}: {measured['told']}"
    return opened(setting, model, cache_folder(ROOM), told)


def chosen(
    model: str | os.PathLike[str] | Backend,
    precision: Precision | None,
    device: Device,
    options: RuntimeOptions | None,
) -> Tuned | None:
    """How an estimator is to open its networks; None: as its arguments say.

    "tuned" raises where there is no tuned file that counts. Otherwise `device` "auto" without
    options takes the runtime that such a file says is fastest in float32.
    """
    if precision not in (None, "tuned"):
        raise InputError(
            f"precision must be 'tuned' or None, got {precision!r}; a certain one is an option of "
            f"the runtime: options=RuntimeOptions(precision='bf16')"
        )
    if precision == "tuned":
        if isinstance(model, Backend) or options is not None or device not in ("auto", "cpu"):
            raise InputError(
                "precision 'tuned' chooses runtime and options itself; give it a model's file, "
                "no options, and device 'auto' or 'cpu'"
            )
        return read_tuned(model_file(model))
    if isinstance(model, Backend) or options is not None or device != "auto":
        return None
    if not cache_folder(ROOM).is_dir():
        return None
    try:
        found = read_tuned(model_file(model), "float32")
    except CfposeError:
        return None  # nothing that counts is known of this machine: onnxruntime
    return None if found.setting == Setting() else found


def _cpu_name(source: Path = _CPU_INFO) -> str:
    try:
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
