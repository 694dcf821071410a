"""The passport of an engine: what it was built from, for what, and how to build it again.

An engine holds code for one version of one runtime and for some GPUs, and none of that can be read
from it. So `NAME.engine` comes with `NAME.engine.json`, which is read before the engine is opened.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cfpose_sdk.backends.tensorrt.library import Flavour
from cfpose_sdk.errors import ArtifactError, BackendError
from cfpose_sdk.files import check_model_file, digest_of, sha256

PASSPORT_VERSION = 2
Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape, Shape]  # minimum, best, maximum
# GPUs beside that of the build for which TensorRT may be asked to build, as the builder names them
Compatible = Literal["", "same-sm", "ampere-plus"]


@dataclass(frozen=True)
class Machine:
    """The TensorRT, GPU and CUDA of this machine, which are to run an engine."""

    flavour: Flavour
    flavour_version: str
    gpu: str  # the device's name
    sm: str  # its compute capability, as "8.9"
    cuda_major: int  # that TensorRT was built with


@dataclass(frozen=True)
class Companion:
    """The engine that was built to go along, in the same folder."""

    role: Literal["finder", "pose"]
    file: str  # its name
    key: str  # of its passport


@dataclass(frozen=True)
class Passport:
    """The record beside an engine file. All hashes are SHA-256 in hexadecimal."""

    flavour: Flavour
    flavour_version: str
    gpu: str  # TensorRT: the device of the build; TensorRT-RTX: ""
    sm: str  # likewise its compute capability
    targets: tuple[str, ...]  # TensorRT-RTX: compute capabilities asked for; () is its default set
    cuda_major: int
    source: str  # the ONNX file that was given
    source_sha256: str
    onnx_sha256: str  # of the graph that was built, after lowering
    engine_sha256: str
    engine_bytes: int
    precision: str
    achieved: Mapping[str, Mapping[str, Mapping[str, int]]]  # scope → type → kind of layer → count
    inputs: Mapping[str, str]  # name → type and shape
    outputs: Mapping[str, str]
    profiles: tuple[Mapping[str, Shapes], ...]  # the first that takes a run is used
    flags: Mapping[str, Any]
    metadata: Mapping[str, str]  # the ONNX file's, the spec among it
    gate: Mapping[str, Any]  # the proof of the graph that was built
    command: tuple[str, ...]  # builds it again, when -o and a path are added
    key: str  # hash of everything that the engine depends on
    companion: Companion | None = None
    # how far the engine was from its graph on the GPU of the build; "run": whether one was there
    proof: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object; the metadata's JSON texts become values."""
        record = dataclasses.asdict(self)
        record["metadata"] = {k: _opened(v) for k, v in self.metadata.items()}
        return json.dumps({"passport_version": PASSPORT_VERSION, **record}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Passport:
        """Read what `to_json` wrote. Raises ArtifactError on anything else."""
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"it is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise ArtifactError(f"it is not a JSON object but {type(record).__name__}")
        version = record.pop("passport_version", None)
        if version != PASSPORT_VERSION:
            raise ArtifactError(
                f"it has passport_version {version!r}, this cfpose reads {PASSPORT_VERSION}"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(names ^ record.keys()):
            raise ArtifactError(f"it lacks, or has without need, the keys {wrong}")
        try:
            return cls(**_typed(record))
        except (TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"it is malformed ({error})") from error


def passport_path(engine: Path) -> Path:
    """Where the passport of an engine lies."""
    return engine.with_name(f"{engine.name}.json")


def content_key(facts: Mapping[str, Any]) -> str:
    """One hash of everything that an engine depends on, given as JSON values."""
    return digest_of(facts)


def rebuild_command(engine: Path, passport: Passport | None = None) -> str:
    """The shell command that builds an engine again where it lies."""
    beside = engine.with_suffix(".onnx")
    source = beside.name if passport is None and not beside.is_file() else str(beside)
    words = ("cfpose-export", "engine", "--model", source) if passport is None else passport.command
    return shlex.join([*words, "-o", str(engine)])


def read_passport(engine: Path) -> Passport:
    """The passport beside an engine. Raises ArtifactError when there is none that can be used."""
    path = passport_path(engine)
    try:
        return Passport.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{engine} has no passport {path.name} that can be read ({error})"
    except ArtifactError as error:
        problem = f"the passport {path} cannot be used: {error}"
    raise ArtifactError(
        f"{problem}; an engine is not opened without one; run: {rebuild_command(engine)}"
    )


def read_engine(engine: Path) -> tuple[bytes, Passport]:
    """An engine's bytes and its passport, which belong together, and to the source beside them.

    Raises ArtifactError when they are not, or when a file is missing.
    """
    check_model_file(engine, "an engine file")
    passport = read_passport(engine)
    data = engine.read_bytes()
    again = f"run: {rebuild_command(engine, passport)}"
    if sha256(data) != passport.engine_sha256:
        raise ArtifactError(
            f"{engine} is not the engine that its passport describes ({len(data)} bytes, expected "
            f"{passport.engine_bytes} with SHA-256 {passport.engine_sha256[:12]}...): it was "
            f"changed, cut, or built by another run; {again}"
        )
    check_source(engine, passport)
    return data, passport


def companion_path(engine: Path, passport: Passport) -> Path | None:
    """The engine of the finder that goes along with a pose engine, or None where none does.

    Raises ArtifactError where the file is not there, or is not the one that was built with it.
    """
    companion = passport.companion
    if companion is None or companion.role != "finder":
        return None
    path = engine.with_name(companion.file)
    again = f"run: {rebuild_command(engine, passport)}; or give a detector"
    if not path.is_file():
        raise ArtifactError(f"{engine} goes with the finder {path}, which is not there; {again}")
    if read_passport(path).key != companion.key:
        raise ArtifactError(f"{path} is not the finder that {engine} was built with; {again}")
    return path


def check_source(engine: Path, passport: Passport) -> None:
    """Raise ArtifactError when the engine's ONNX file lies beside it and has changed since."""
    source = engine.parent / Path(passport.source).name
    if not source.is_file():
        return
    if sha256(source.read_bytes()) not in (passport.source_sha256, passport.onnx_sha256):
        raise ArtifactError(
            f"{engine} was built from another graph than {source} is now (SHA-256 of its source: "
            f"{passport.source_sha256[:12]}...); run: {rebuild_command(engine, passport)}"
        )


def check_runtime(engine: Path, passport: Passport, flavour: Flavour, version: str) -> None:
    """Raise BackendError unless the installed TensorRT is the one that built the engine."""
    built = (passport.flavour, passport.flavour_version)
    if built != (flavour, version):
        raise BackendError(
            f"{engine} was built by {' '.join(built)}, and here is {flavour} {version}; engines "
            f"work with their own version only; run: {rebuild_command(engine, passport)}"
        )


def check_machine(engine: Path, passport: Passport, here: Machine) -> None:
    """Raise BackendError unless the engine was built for this TensorRT, GPU and CUDA.

    What TensorRT-RTX's default set holds is not judged: its runtime says whether it takes the GPU.
    """
    check_runtime(engine, passport, here.flavour, here.flavour_version)
    compatible = passport.flags.get("compatible", "")
    built, fits = f"{passport.gpu} (SM {passport.sm})", True
    if passport.flavour == "rtx":
        built = f"SM {', '.join(passport.targets)}"
        fits = here.sm in passport.targets or not passport.targets
    elif compatible == "ampere-plus":
        built, fits = "SM 8.0 and later", _number(here.sm) >= (8, 0)
    elif compatible == "same-sm":
        built, fits = f"SM {passport.sm}", here.sm == passport.sm
    else:
        fits = (passport.gpu, passport.sm) == (here.gpu, here.sm)
    problem = "" if fits else f"for {built}, and here is {here.gpu} (SM {here.sm})"
    if fits and passport.cuda_major != here.cuda_major:
        problem = (
            f"by a TensorRT for CUDA {passport.cuda_major}, and here is one for CUDA "
            f"{here.cuda_major}"
        )
    if problem:
        raise BackendError(
            f"{engine} was built {problem}; run: {rebuild_command(engine, passport)}"
        )


def _typed(record: dict[str, Any]) -> dict[str, Any]:
    """JSON values → the passport's types. Raises ValueError, TypeError, AttributeError."""
    values = dict(record)
    for name in ("targets", "command"):
        if not isinstance(record[name], list):
            raise ValueError(f"{name} must be a list")
        values[name] = tuple(str(item) for item in record[name])
    for name in ("achieved", "inputs", "outputs", "flags", "gate", "metadata", "proof"):
        if not isinstance(record[name], dict):
            raise ValueError(f"{name} must be an object")
    for name in ("cuda_major", "engine_bytes"):
        if type(record[name]) is not int:
            raise ValueError(f"{name} must be an integer")
    texts = {field.name for field in dataclasses.fields(Passport) if field.type == "str"}
    if bad := sorted(name for name in texts if not isinstance(record[name], str)):
        raise ValueError(f"{bad} must be text")
    if record["flavour"] not in get_args(Flavour):
        raise ValueError(f"flavour must be one of {get_args(Flavour)}, got {record['flavour']!r}")
    if not isinstance(record["profiles"], list) or not record["profiles"]:
        raise ValueError("profiles must be a list of one or more")
    values["profiles"] = tuple(
        {name: _shapes(rows) for name, rows in profile.items()} for profile in record["profiles"]
    )
    if record["companion"] is not None:
        values["companion"] = Companion(**record["companion"])
    values["metadata"] = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in record["metadata"].items()
    }
    return values


def _shapes(rows: Any) -> Shapes:
    shapes = tuple(tuple(int(size) for size in row) for row in rows)
    if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1:
        raise ValueError(f"a profile holds three shapes of one rank, got {rows}")
    return shapes


def _opened(text: str) -> Any:
    """A JSON object as a value, if writing it again gives the same text; else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    same = isinstance(value, dict) and json.dumps(value, sort_keys=True) == text
    return value if same else text


def _number(sm: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in sm.split("."))
    except ValueError:
        return ()
