"""An engine and its passport: written together, and built again only when their inputs change."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.engines.options import BuildOptions, Report
from cfpose_export.engines.tensorrt import Built, build, check_buildable
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.library import (
    EXTRAS,
    Flavour,
    choose_flavour,
    cuda_major,
    open_flavour,
)
from cfpose_sdk.backends.tensorrt.passport import (
    Companion,
    Machine,
    Passport,
    content_key,
    passport_path,
    read_engine,
)
from cfpose_sdk.errors import (
    ArtifactError,
    BackendError,
    InputError,
    MissingDependencyError,
    require,
)
from cfpose_sdk.files import sha256, write_file
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec

SUFFIXES = (".engine", ".plan")
Prove = Callable[[Path], dict[str, Any]]  # an engine that can be opened → how far it is off
Builder = Callable[[onnx.ModelProto, Flavour, BuildOptions, Report | None], Built]


@dataclass(frozen=True)
class Source:
    """Where a graph comes from: the file as the user named it, and the options that changed it."""

    name: str  # as in the command
    data_sha256: str  # of the file
    words: tuple[str, ...] = ()  # of the command, beside those of BuildOptions


def write_engine(
    output: Path,
    model: onnx.ModelProto,
    source: Source,
    options: BuildOptions,
    *,
    companion: Companion | None = None,
    force: bool = False,
    report: Report | None = None,
    prove: Prove | None = None,
    builder: Builder = build,
) -> tuple[Passport, bool]:
    """Build `model` and write the engine and its passport; and whether that was needed.

    `companion` goes into the passport, and what `prove` says of the engine; when that raises,
    nothing is written. An engine that is already there, whole, and of the same graph, flavour,
    version, GPU or targets, CUDA, profiles and flags, is left as it is unless `force`. Two
    processes may write to one path: the second waits, and finds the work done. Raises ExportError
    when the graph cannot be built.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(f"{output} must end in {' or '.join(SUFFIXES)}")
    flavour = choose_flavour(options.flavour)
    check_buildable(model)  # before anything of TensorRT is needed
    options.check(flavour)
    key = engine_key(model, options)
    if flavour == "tensorrt" and options.timing_cache is None:
        cache = _timing_cache(output, _machine(flavour))
        options = dataclasses.replace(options, timing_cache=cache)
    require("filelock", extra=EXTRAS[flavour], why="writing an engine")
    import filelock

    output.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(output.with_name(f".{output.name}.lock")):
        if not force and (kept := _same(output, key)) is not None:
            if kept.companion != companion:
                kept = dataclasses.replace(kept, companion=companion)
                write_file(passport_path(output), kept.to_json())
            return kept, False
        built = builder(model, flavour, options, report)
        passport = _passport(built, model, source, options, flavour)
        passport = dataclasses.replace(passport, key=key, companion=companion)
        if prove is not None:
            passport = dataclasses.replace(passport, proof=_proven(output, built, passport, prove))
        # a kill between the two leaves a pair whose hashes differ, which no reader takes
        write_file(output, built.engine)
        write_file(passport_path(output), passport.to_json())
    return passport, True


def _passport(
    built: Built, model: onnx.ModelProto, source: Source, options: BuildOptions, flavour: Flavour
) -> Passport:
    """The record of an engine that was just built; its key and companion are still to come."""
    machine = _machine(flavour)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    spec: ModelSpec | FinderSpec | None = None
    if SPEC_KEY in metadata:
        spec = ModelSpec.from_json(metadata[SPEC_KEY])
    elif FINDER_KEY in metadata:
        spec = FinderSpec.from_json(metadata[FINDER_KEY])
    return Passport(
        flavour=flavour,
        flavour_version=machine.flavour_version,
        gpu=machine.gpu,
        sm=machine.sm,
        targets=options.targets,
        cuda_major=machine.cuda_major,
        source=source.name,
        source_sha256=source.data_sha256,
        onnx_sha256=sha256(model.SerializeToString(deterministic=True)),
        engine_sha256=sha256(built.engine),
        engine_bytes=len(built.engine),
        precision="fp32" if spec is None else spec.precision,
        achieved=built.achieved,
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=built.profiles,
        flags=_flags(options),
        metadata=metadata,
        gate={} if spec is None else dict(spec.gate),
        command=_command(source, flavour, options),
        key="",
    )


def engine_key(model: onnx.ModelProto, options: BuildOptions) -> str:
    """The key of the engine that `write_engine` makes of a graph on this machine."""
    data = model.SerializeToString(deterministic=True)
    machine = _machine(choose_flavour(options.flavour))
    return content_key(_dependencies(sha256(data), machine, options))


def why_not_here(engine: Path) -> str | None:
    """Why an engine cannot be run on this machine, for want of a driver, GPU or package."""
    _, passport = read_engine(engine)
    try:
        open_memory("cuda-bindings", flavour=passport.flavour, why=f"running {engine.name}")
    except (BackendError, MissingDependencyError) as error:
        return str(error)
    return None


def _proven(output: Path, built: Built, passport: Passport, prove: Prove) -> dict[str, Any]:
    """What `prove` says of the engine, which lies elsewhere for that, and alone."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / output.name
        trial.write_bytes(built.engine)
        alone = dataclasses.replace(passport, companion=None)
        passport_path(trial).write_text(alone.to_json(), encoding="utf-8")
        return prove(trial)


def _machine(flavour: Flavour) -> Machine:
    """The versions that the engine will depend on; with TensorRT also the GPU of this machine."""
    why = "building an engine"
    version = str(open_flavour(flavour, why).__version__)
    major = cuda_major(flavour, why)
    if flavour == "rtx":
        return Machine(flavour, version, "", "", major)
    gpu = open_memory("cuda-bindings", flavour=flavour, why=why).gpu()
    return Machine(flavour, version, gpu.name, gpu.sm, major)


def _timing_cache(output: Path, machine: Machine) -> Path:
    """Where the kernels that TensorRT measures are kept: beside the engine, by version and GPU."""
    gpu = re.sub("[^a-z0-9]+", "-", machine.gpu.lower()).strip("-")
    return output.with_name(f"tensorrt-{machine.flavour_version}-{gpu}.timing")


def _dependencies(onnx_sha256: str, machine: Machine, options: BuildOptions) -> Mapping[str, Any]:
    return {
        "onnx": onnx_sha256,
        "machine": dataclasses.asdict(machine),
        "targets": sorted(options.targets),
        "profiles": [options.people, options.frames],
        "flags": _flags(options),
    }


def _flags(options: BuildOptions) -> dict[str, Any]:
    return {
        "tf32": options.tf32,
        "level": options.level,
        "workspace_mib": options.workspace_mib,
        "compatible": options.compatible,
    }


def _same(output: Path, key: str) -> Passport | None:
    """The passport of an engine that need not be built again."""
    try:
        _, passport = read_engine(output)
    except ArtifactError:
        return None
    return passport if passport.key == key else None


def _command(source: Source, flavour: Flavour, options: BuildOptions) -> tuple[str, ...]:
    """What rebuilds the engine, short of -o and its path."""
    plain = BuildOptions()
    words = ["cfpose-export", "engine", "--model", source.name, *source.words, "--flavour", flavour]
    if options.people != plain.people:
        words += ["--people", *map(str, options.people)]
    if options.frames != plain.frames:
        words += ["--frames", *(f"{width}x{height}" for width, height in options.frames)]
    if options.targets:
        words += ["--targets", *options.targets]
    if options.compatible:
        words += ["--compatible", options.compatible]
    if options.workspace_mib != plain.workspace_mib:
        words += ["--workspace", str(options.workspace_mib)]
    if options.tf32:
        words.append("--tf32")
    if options.level is not None:
        words += ["--level", str(options.level)]
    return tuple(words)
