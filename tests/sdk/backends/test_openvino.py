"""OpenVINO beside onnxruntime: the same keypoints, only what was asked for, torn files refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cfpose_sdk.backends import RuntimeOptions, open_backend
from cfpose_sdk.backends import openvino as runtime
from cfpose_sdk.backends.openvino import processor_flags, shared_core
from cfpose_sdk.crops import crop_transforms, extract_crops
from cfpose_sdk.errors import ArtifactError, BackendError, InputError
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator
from cfpose_sdk.media.image import read_image
from cfpose_sdk.spec import SPEC_KEY, ModelSpec

openvino = pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")

CROPS = np.zeros((2, 64, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def ir(pose_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pose model as .xml and .bin, as OpenVINO itself writes it."""
    path: Path = tmp_path_factory.mktemp("ir") / "tiny.xml"
    openvino.serialize(shared_core().read_model(str(pose_model)), str(path))
    return path


def test_bundled_model_gives_the_same_keypoints(root: Path) -> None:
    photos = root / "examples" / "photos"
    people = json.loads((photos / "people.json").read_text())
    with (
        open_backend(BUNDLED_MODEL, device="cpu") as reference,
        open_backend(BUNDLED_MODEL, device="openvino", threads=1) as backend,
    ):
        assert backend.provider == "OpenVINO CPU f32"
        assert backend.input_shapes == {"crops": (None, 192, 144, 3)}
        assert backend.input_types == {"crops": "tensor(uint8)"}
        assert backend.metadata[SPEC_KEY] == reference.metadata[SPEC_KEY]
        spec = ModelSpec.from_json(backend.metadata[SPEC_KEY])
        compared = 0
        for name, boxes in people.items():
            maps = crop_transforms(np.asarray(boxes, float), spec.size_wh, spec.box_scale)
            crops = extract_crops(read_image(photos / name), maps, spec.size_wh)
            ours, theirs = reference.run({"crops": crops}), backend.run({"crops": crops})
            assert set(ours) == set(theirs)
            sure = ours["confidence"] >= 0.3
            gap = np.linalg.norm(ours["keypoints"] - theirs["keypoints"], axis=2)[sure]
            assert gap.max(initial=0) <= 1e-2
            np.testing.assert_allclose(theirs["confidence"], ours["confidence"], atol=1e-3)
            compared += gap.size
        assert compared > 100


def test_the_estimator_takes_both(ir: Path, pose_model: Path, root: Path) -> None:
    photo, boxes = root / "examples" / "photos" / "street.jpg", [[152, 330, 200, 451]]
    with (
        PoseEstimator(pose_model, device="cpu") as plain,
        PoseEstimator(pose_model, device="openvino") as asked,
        PoseEstimator(ir) as own,
    ):
        expected = plain.predict(photo, boxes=boxes)
        for estimator in (asked, own):
            assert estimator.info.provider == "OpenVINO CPU f32"
            np.testing.assert_array_equal(estimator.predict(photo, boxes=boxes).xy, expected.xy)
            assert len(estimator.predict(photo, boxes=[])) == 0


def test_the_settings_are_what_was_asked(ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = openvino.Core.compile_model

    def compile_model(core: object, model: object, device: str, settings: object) -> object:
        asked.append(settings)
        return real(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    open_backend(ir, threads=2).close()
    assert asked[0]["INFERENCE_NUM_THREADS"] == "2"
    assert asked[0]["INFERENCE_PRECISION_HINT"] == "f32"


def test_bf16_only_where_the_cpu_has_it(ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = openvino.Core.get_property

    def lacks(core: object, *arguments: str) -> object:
        found = real(core, *arguments)
        return [f for f in found if f != "BF16"] if "CAPABILITIES" in arguments[-1] else found

    if "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with open_backend(ir, options=RuntimeOptions(precision="bf16")) as backend:
            assert backend.provider == "OpenVINO CPU bf16"
            assert str(backend._compiled.get_property("INFERENCE_PRECISION_HINT")) == (
                "<Type: 'bfloat16'>"
            )
    monkeypatch.setattr(openvino.Core, "get_property", lacks)
    options = RuntimeOptions(precision="bf16")
    with pytest.raises(BackendError, match=r"this CPU has only.*precision='f32', or allow_fallb"):
        open_backend(ir, options=options)
    with pytest.warns(RuntimeWarning, match=r"running tiny\.xml in float32"):
        backend = open_backend(ir, options=options, allow_fallback=True)
    with backend:
        assert backend.provider == "OpenVINO CPU f32"
        asked = str(backend._compiled.get_property("INFERENCE_PRECISION_HINT"))  # type: ignore[attr-defined]
        assert asked == "<Type: 'float32'>"


def test_int8_only_where_cpu_and_graph_have_it(ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RuntimeOptions(precision="int8")
    monkeypatch.setattr(runtime, "processor_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    for fallback in (False, True):  # a file that is not quantised is no matter of the CPU
        with pytest.raises(ArtifactError, match=r"lower MODEL\.onnx --precision int8"):
            open_backend(ir, options=options, allow_fallback=fallback)
    monkeypatch.setattr(runtime, "processor_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(BackendError, match="no int8 products"):
        open_backend(ir, options=options)
    with pytest.warns(RuntimeWarning, match="no int8 products"):
        open_backend(ir, options=options, allow_fallback=True).close()


def test_the_processor_tells_its_flags(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvmx flags\t: x\nflags\t\t: fpu amx_bf16\n\nflags\t: other\n")
    assert processor_flags(told) == {"fpu", "amx_bf16"}
    told.write_text("Features : asimddp bf16\n")
    assert processor_flags(told) == {"asimddp", "bf16"}
    assert processor_flags(tmp_path / "gone") is None


def test_feeds_are_checked_and_empty_is_answered(ir: Path) -> None:
    with open_backend(ir) as backend:
        assert backend.run({"crops": CROPS[:0]})["keypoints"].shape == (0, 17, 2)
        with pytest.raises(BackendError, match=r"takes inputs \['crops'\]"):
            backend.run({"images": CROPS})
        with pytest.raises(BackendError, match=r"crops must be uint8 of shape .*, got float32"):
            backend.run({"crops": CROPS.astype(np.float32)})
        for wrong in (CROPS[:, :10], CROPS[0]):
            with pytest.raises(
                BackendError, match=r"must be uint8 of shape \(N, \d+, \d+, 3\), got"
            ):
                backend.run({"crops": wrong})
        first = backend.run({"crops": CROPS})["keypoints"]
        kept = first.copy()
        backend.run({"crops": np.full_like(CROPS, 9)})
        np.testing.assert_array_equal(first, kept)
    with pytest.raises(BackendError, match="is closed"):
        backend.run({"crops": CROPS})
    backend.close()


def test_threads_may_share_it(ir: Path, tiny: ModuleType) -> None:
    wrong: list[object] = []

    def run(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(30):
            crops = np.zeros((1, 64, 48, 3), np.uint8)
            x, y = int(draw.integers(48)), int(draw.integers(64))
            crops[0, y, x] = 255
            found = backend.run({"crops": crops})["keypoints"][0, 0]
            if found.tolist() != [x, y]:
                wrong.append((found, x, y))

    with open_backend(ir, threads=1) as backend:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.fixture
def copied(ir: Path, tmp_path: Path) -> Path:
    """The model in a folder of its own, with a record of both hashes."""
    from cfpose_sdk.files import sha256

    hashes = {}
    for suffix in (".xml", ".bin"):
        data = ir.with_suffix(suffix).read_bytes()
        (tmp_path / f"tiny{suffix}").write_bytes(data)
        hashes[suffix[1:]] = sha256(data)
    (tmp_path / "tiny.xml.json").write_text(json.dumps({"sha256": hashes}))
    return tmp_path / "tiny.xml"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tiny.xml", b"", "is not an OpenVINO model"),
        ("tiny.xml", b"<?xml version='1.0'?><html/>", "is not an OpenVINO model"),
        ("tiny.xml", b"<?xml version='1.0'?><net></net>", "changed since"),
        ("tiny.bin", b"", "changed since"),
        ("tiny.bin", None, "has no weights"),
        ("tiny.xml.json", b"{", "cannot be read"),
        ("tiny.xml.json", b"{}", "cannot be read"),
    ],
)
def test_torn_files_are_refused(copied: Path, name: str, content: bytes | None, said: str) -> None:
    open_backend(copied).close()
    part = copied.parent / name
    if content is None:
        part.unlink()
    else:
        part.write_bytes(content)
    with pytest.raises(ArtifactError, match=said) as caught:
        open_backend(copied)
    assert "cfpose-export openvino" in str(caught.value)


def test_options_of_other_runtimes_are_refused(ir: Path, pose_model: Path) -> None:
    with pytest.raises(BackendError, match="OpenVINO runs tiny"):
        open_backend(ir, device="cuda")
    with pytest.raises(InputError, match="OpenVINO has no option"):
        open_backend(ir, options=RuntimeOptions(workers=2))
    with pytest.raises(InputError, match=r"OpenVINO has no option \['spin'\]"):
        open_backend(ir, options=RuntimeOptions(spin=True))
    with pytest.raises(InputError, match="onnxruntime has no option"):
        open_backend(pose_model, options=RuntimeOptions(precision="bf16"))
    for wrong in ({"precision": "f16"}, {"cuda": "cupy"}, {"workers": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            RuntimeOptions(**wrong)  # type: ignore[arg-type]


_SIGNAL_AFTER_CLOSING = """
import faulthandler, gc, os, signal, sys
faulthandler.enable()  # a signal stack of its own, as pytest and torch's loaders have
from cfpose_sdk.backends import open_backend
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append("told"))
first, second = (open_backend(path, device="openvino", threads=1) for path in sys.argv[1:] * 2)
for backend in (first, second):  # in the order in which they were opened
    backend.close()
del first, second, backend
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print(*told)
"""


def test_signals_are_survived_after_backends_that_closed_in_any_order(pose_model: Path) -> None:
    script = [sys.executable, "-c", _SIGNAL_AFTER_CLOSING, str(pose_model)]
    run = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "told"), run.stderr
