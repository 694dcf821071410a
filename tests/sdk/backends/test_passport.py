"""An engine is read only with a passport that fits it, its source and the machine."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfpose_sdk.backends.tensorrt.passport import (
    Companion,
    Machine,
    Passport,
    check_machine,
    companion_path,
    passport_path,
    read_engine,
    read_passport,
)
from cfpose_sdk.errors import ArtifactError, BackendError
from cfpose_sdk.files import sha256
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, ModelSpec

ENGINE, ONNX = b"a serialised engine", b"a graph"
HERE = Machine("tensorrt", "11.4.1", "NVIDIA L4", "8.9", 13)
SPEC = ModelSpec("tiny", COCO_17, (48, 64))
BASE = Passport(
    flavour="tensorrt",
    flavour_version="11.4.1",
    gpu="NVIDIA L4",
    sm="8.9",
    targets=(),
    cuda_major=13,
    source="folder/tiny.onnx",
    source_sha256=sha256(ONNX),
    onnx_sha256=sha256(b"a lowered graph"),
    engine_sha256=sha256(ENGINE),
    engine_bytes=len(ENGINE),
    precision="fp16",
    achieved={"pose.head": {"float16": {"CONVOLUTION": 2}}},
    inputs={"crops": "uint8 [N, 64, 48, 3]"},
    outputs={"keypoints": "float32 [N, 17, 2]"},
    profiles=tuple({"crops": ((1, 64, 48, 3), (n, 64, 48, 3), (n, 64, 48, 3))} for n in (1, 8, 32)),
    flags={"tf32": False},
    metadata={SPEC_KEY: SPEC.to_json(), "note": "plain text", "number": "7"},
    gate={"max_px": 0.01},
    command=("cfpose-export", "engine", "--model", "folder/tiny.onnx", "--precision", "fp16"),
    key="0" * 64,
)
RTX = dataclasses.replace(BASE, flavour="rtx", flavour_version="1.7", gpu="", sm="")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine, its passport and its source, in a folder with a space in its name."""
    path = tmp_path / "my models" / "tiny.engine"
    path.parent.mkdir()
    path.write_bytes(ENGINE)
    path.with_name("tiny.onnx").write_bytes(ONNX)
    passport_path(path).write_text(BASE.to_json())
    return path


def _again(engine: Path) -> str:
    return "run: " + shlex.join([*BASE.command, "-o", str(engine)])


def test_what_was_written_is_read(engine: Path) -> None:
    assert passport_path(engine).name == "tiny.engine.json"
    assert read_passport(engine) == BASE
    assert read_engine(engine) == (ENGINE, BASE)
    record = json.loads(passport_path(engine).read_text())
    assert record["passport_version"] == 2
    assert record["metadata"][SPEC_KEY]["name"] == "tiny"  # readable, not a text in a text
    assert ModelSpec.from_json(read_passport(engine).metadata[SPEC_KEY]) == SPEC


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda record: record.pop(key)


def _with(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda record: record.update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with(passport_version=1), "passport_version 1"),
        (_without("passport_version"), "passport_version None"),
        (_without("engine_sha256"), "engine_sha256"),
        (_with(extra=1), "extra"),
        (_with(flavour="trt"), "flavour must be one of"),
        (_with(engine_sha256=5), "engine_sha256"),
        (_with(cuda_major="13"), "cuda_major must be an integer"),
        (_with(command="rm"), "command must be a list"),
        (_with(profiles=[{"crops": [[1], [2]]}]), "three shapes"),
        (_with(profiles=[{"crops": [[1], [2], [3, 4]]}]), "three shapes"),
        (_with(profiles=[]), "profiles must be a list"),
        (_with(profiles=[1]), "malformed"),
        (_with(companion={"role": "finder"}), "malformed"),
    ],
)
def test_a_forged_passport_is_refused(
    engine: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    record = json.loads(BASE.to_json())
    change(record)
    passport_path(engine).write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=said) as caught:
        read_engine(engine)
    # nothing in it can be trusted, so the command is made from the files that are there
    source = engine.with_suffix(".onnx")
    words = ["cfpose-export", "engine", "--model", str(source), "-o", str(engine)]
    assert str(caught.value).endswith("run: " + shlex.join(words))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_broken_passport_is_refused(engine: Path, content: bytes) -> None:
    passport_path(engine).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"passport.*run: cfpose-export engine"):
        read_engine(engine)


def test_missing_files(engine: Path) -> None:
    passport_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"has no passport tiny\.engine\.json"):
        read_engine(engine)
    engine.unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        read_engine(engine)


@pytest.mark.parametrize("content", [ENGINE[:-1], ENGINE + b"!", b"A" + ENGINE[1:], b""])
def test_other_bytes_are_refused(engine: Path, content: bytes) -> None:
    engine.write_bytes(content)
    with pytest.raises(ArtifactError, match="is not the engine") as caught:
        read_engine(engine)
    assert _again(engine) in str(caught.value)


def test_a_source_that_changed_is_refused(engine: Path) -> None:
    source = engine.with_name("tiny.onnx")
    for same in (ONNX, b"a lowered graph"):
        source.write_bytes(same)
        assert read_engine(engine)[0] == ENGINE
    source.write_bytes(b"trained on")
    with pytest.raises(ArtifactError, match="another graph") as caught:
        read_engine(engine)
    assert _again(engine) in str(caught.value)
    source.unlink()
    assert read_engine(engine)[0] == ENGINE


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("flavour", "rtx", "built by tensorrt 11.4.1, and here is rtx 11.4.1"),
        ("flavour_version", "11.4.2", "here is tensorrt 11.4.2"),
        ("gpu", "NVIDIA A10", r"for NVIDIA L4 \(SM 8.9\), and here is NVIDIA A10"),
        ("sm", "9.0", r"here is NVIDIA L4 \(SM 9.0\)"),
        ("cuda_major", 12, "by a TensorRT for CUDA 13, and here is one for CUDA 12"),
    ],
)
def test_another_machine_is_refused(engine: Path, field: str, value: object, said: str) -> None:
    check_machine(engine, BASE, HERE)
    with pytest.raises(BackendError, match=said) as caught:
        check_machine(engine, BASE, dataclasses.replace(HERE, **{field: value}))
    assert _again(engine) in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "sm", "fits"),
    [
        ((), "8.6", True),
        ((), "9.0", True),  # of the default set the runtime knows
        (("8.9", "12.0"), "12.0", True),
        (("8.9", "12.0"), "8.6", False),
        (("7.5",), "7.5", True),
    ],
)
def test_rtx_engines_are_for_their_targets(
    engine: Path, targets: tuple[str, ...], sm: str, fits: bool
) -> None:
    passport = dataclasses.replace(RTX, targets=targets)
    here = Machine("rtx", "1.7", "any", sm, 13)
    if fits:
        check_machine(engine, passport, here)
        return
    with pytest.raises(BackendError, match="was built for SM"):
        check_machine(engine, passport, here)


@pytest.mark.parametrize(
    ("compatible", "gpu", "sm", "fits"),
    [
        ("", "NVIDIA L4", "8.9", True),
        ("", "NVIDIA L40", "8.9", False),
        ("same-sm", "NVIDIA L40", "8.9", True),
        ("same-sm", "NVIDIA A10", "8.6", False),
        ("ampere-plus", "NVIDIA A10", "8.6", True),
        ("ampere-plus", "NVIDIA H100", "9.0", True),
        ("ampere-plus", "Tesla T4", "7.5", False),
    ],
)
def test_an_engine_may_be_built_for_other_gpus(
    engine: Path, compatible: str, gpu: str, sm: str, fits: bool
) -> None:
    passport = dataclasses.replace(BASE, flags={"compatible": compatible})
    here = dataclasses.replace(HERE, gpu=gpu, sm=sm)
    if fits:
        check_machine(engine, passport, here)
        return
    with pytest.raises(BackendError, match="was built for"):
        check_machine(engine, passport, here)


def test_the_finder_that_goes_along(engine: Path) -> None:
    finder = engine.with_name("tiny.finder.engine")
    along = dataclasses.replace(BASE, companion=Companion("finder", finder.name, "1" * 64))
    assert Passport.from_json(along.to_json()) == along
    assert companion_path(engine, BASE) is None
    with pytest.raises(ArtifactError, match="which is not there; run"):
        companion_path(engine, along)
    finder.write_bytes(ENGINE)
    own = dataclasses.replace(BASE, key="1" * 64, companion=Companion("pose", engine.name, "0"))
    passport_path(finder).write_text(own.to_json())
    assert companion_path(engine, along) == finder
    assert companion_path(finder, own) is None  # a finder needs none
    passport_path(finder).write_text(dataclasses.replace(own, key="2" * 64).to_json())
    with pytest.raises(ArtifactError, match="is not the finder that"):
        companion_path(engine, along)
