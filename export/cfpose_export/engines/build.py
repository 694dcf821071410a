"""An engine and its passport: written together, and built again only when their inputs change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.engines.tensorrt import BuildOptions, Built, build, check_buildable
from cfpose_sdk.backends.tensorrt import open_memory
from cfpose_sdk.backends.tensorrt.cuda import cuda_major
from cfpose_sdk.backends.tensorrt.library import EXTRAS, Flavour, choose_flavour, open_flavour
from cfpose_sdk.backends.tensorrt.passport import (
    Machine,
    Passport,
    content_key,
    passport_path,
    read_engine,
)
from cfpose_sdk.errors import ArtifactError, InputError, require
from cfpose_sdk.files import sha256, write_file
from cfpose_sdk.spec import SPEC_KEY, ModelSpec

SUFFIXES = (".engine", ".plan")
Builder = Callable[[onnx.ModelProto, Flavour, BuildOptions], Built]


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
    force: bool = False,
    builder: Builder = build,
) -> tuple[Passport, bool]:
    """Build `model` and write the engine and its passport; and whether that was needed.

    An engine that is already there, whole, and of the same graph, flavour, version, GPU or targets,
    CUDA, profile and flags, is left as it is unless `force`. Two processes may write to one path:
    the second waits, and finds the work done. Raises ExportError when the graph cannot be built.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(f"{output} must end in {' or '.join(SUFFIXES)}")
    flavour = choose_flavour(options.flavour)
    check_buildable(model)  # before anything of TensorRT is needed
    machine = _machine(flavour)
    data = model.SerializeToString(deterministic=True)
    key = content_key(_dependencies(sha256(data), machine, options))
    require("filelock", extra=EXTRAS[flavour], why="writing an engine")
    import filelock

    output.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(output.with_name(f".{output.name}.lock")):
        if not force and (kept := _same(output, key)) is not None:
            return kept, False
        built = builder(model, flavour, options)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        spec = ModelSpec.from_json(metadata[SPEC_KEY]) if SPEC_KEY in metadata else None
        passport = Passport(
            flavour=flavour,
            flavour_version=machine.flavour_version,
            gpu=machine.gpu,
            sm=machine.sm,
            targets=options.targets,
            cuda_major=machine.cuda_major,
            source=source.name,
            source_sha256=source.data_sha256,
            onnx_sha256=sha256(data),
            engine_sha256=sha256(built.engine),
            engine_bytes=len(built.engine),
            precision="fp32" if spec is None else spec.precision,
            achieved=built.achieved,
            inputs=built.inputs,
            outputs=built.outputs,
            profile=built.profile,
            flags=_flags(options),
            metadata=metadata,
            gate={} if spec is None else dict(spec.gate),
            command=_command(source, flavour, options),
            key=key,
        )
        # a kill between the two leaves a pair whose hashes differ, which no reader takes
        write_file(output, built.engine)
        write_file(passport_path(output), passport.to_json())
    return passport, True


def _machine(flavour: Flavour) -> Machine:
    """The versions that the engine will depend on; with TensorRT also the GPU of this machine."""
    why = "building an engine"
    version = str(open_flavour(flavour, why).__version__)
    if flavour == "rtx":
        return Machine(flavour, version, "", "", cuda_major(extra=EXTRAS[flavour], why=why))
    gpu = open_memory("cuda-bindings", extra=EXTRAS[flavour], why=why).gpu()
    return Machine(flavour, version, gpu.name, gpu.sm, gpu.cuda_major)


def _dependencies(onnx_sha256: str, machine: Machine, options: BuildOptions) -> Mapping[str, Any]:
    return {
        "onnx": onnx_sha256,
        "machine": dataclasses.asdict(machine),
        "targets": sorted(options.targets),
        "profile": [options.people, options.width, options.height],
        "flags": _flags(options),
    }


def _flags(options: BuildOptions) -> dict[str, Any]:
    return {"tf32": options.tf32, "level": options.level}


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
    for name in ("people", "width", "height"):
        if getattr(options, name) != getattr(plain, name):
            words += [f"--{name}", *map(str, getattr(options, name))]
    if options.targets:
        words += ["--targets", *options.targets]
    if options.tf32:
        words.append("--tf32")
    if options.level is not None:
        words += ["--level", str(options.level)]
    return tuple(words)
