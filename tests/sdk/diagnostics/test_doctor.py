"""doctor: known answers, what the machine offers, and what the command says of it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cfpose_sdk import backends, commands, files
from cfpose_sdk.backends import tuned
from cfpose_sdk.backends.bundled import bundled_models
from cfpose_sdk.detectors.base import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.diagnostics import doctor, known_answers, machine
from cfpose_sdk.diagnostics.known_answers import BOUNDS
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator


@pytest.mark.parametrize("model", bundled_models().values(), ids=bundled_models())
def test_the_bundled_models_give_the_known_answers(model: Path, tmp_path: Path) -> None:
    with PoseEstimator(model, device="cpu") as estimator, PersonFinder(device="cpu") as finder:
        assert known_answers.pose_parity(estimator).passed is True
        assert known_answers.finder_parity(finder).passed is True
        known = json.loads(known_answers.ANSWERS.read_text())
        digests = {entry["model"]: digest for digest, entry in known.items()}
        bundled = [*bundled_models().values(), BUNDLED_FINDER]
        assert set(digests) == {path.name for path in bundled}
        # a model that answers 2 px beside, or a finder that sees nobody, is caught
        known[digests[model.name]]["xy"][5][0] += 2.0
        known[digests[BUNDLED_FINDER.name]]["boxes"].append([0, 0, 9, 9])
        changed = tmp_path / "answers.json"
        changed.write_text(json.dumps(known))
        moved = known_answers.pose_parity(estimator, changed)
        assert moved.passed is False
        assert float(moved.message.split()[0]) == pytest.approx(2, abs=0.05)  # runtimes round
        assert known_answers.finder_parity(finder, changed).passed is False
        assert known_answers.pose_parity(estimator, tmp_path / "absent.json").passed is None


def test_the_known_answers_can_be_written_anew(tmp_path: Path) -> None:
    path = known_answers.write_answers(tmp_path / "answers.json")
    new, old = (json.loads(p.read_text()) for p in (path, known_answers.ANSWERS))
    assert new.keys() == old.keys()


def test_what_tuning_would_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    assert machine.tuning_of(BUNDLED_MODEL).endswith("run: cfpose tune")
    record = {
        **tuned.record_of(BUNDLED_MODEL),
        "tuned": tuned.plain(tuned.Setting(threads=2)),
        "float32": tuned.plain(tuned.Setting()),
        "measured": {"date": "2026-11-29", "told": "1.50 times the default's speed"},
    }
    file = tuned.tuned_file(BUNDLED_MODEL, files.digest(BUNDLED_MODEL))
    file.parent.mkdir()
    file.write_text(tuned.signed(record))
    said = machine.tuning_of(BUNDLED_MODEL)
    assert said == (
        "onnxruntime float32, 2 threads; tuned 2026-11-29: 1.50 times the default's speed"
    )
    (advice,) = doctor._tuning_advice([], {"openvino": None})
    assert "pip install 'cfpose-sdk[openvino]', then: cfpose tune" in advice
    assert doctor._tuning_advice([], {"openvino": "1"}) == []
    assert doctor._tuning_advice([{"name": "T4"}], {"openvino": None}) == []


@pytest.mark.usefixtures("tiny_defaults")
def test_further_bundled_models_are_run_once(
    pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "bundled_models", lambda: {"s": BUNDLED_MODEL, "m": pose_model})
    assert doctor._try_models("auto")[1]["m"] == "no known answer for this model file"
    assert doctor._try_models("cpu")[1].keys() == {"finder", "pose"}
    monkeypatch.setattr(doctor, "bundled_models", lambda: {"m": pose_model.with_name("gone.onnx")})
    assert "gone.onnx does not exist" in doctor._try_models("auto")[0]


def test_other_models_have_no_known_answer(pose_model: Path, finder_model: Path) -> None:
    with PoseEstimator(pose_model) as estimator, PersonFinder(finder_model) as finder:
        assert known_answers.pose_parity(estimator).passed is None
        assert known_answers.finder_parity(finder).passed is None


def test_a_wrong_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = known_answers.Parity(False, "9 px from the known answer")
    monkeypatch.setattr(doctor, "pose_parity", lambda estimator: wrong)
    report = doctor.examine()
    assert report["ok"] is False
    assert "9 px" in report["problems"][0]
    assert "The defaults do not work." in doctor.describe(report)


@pytest.mark.usefixtures("tiny_defaults")
def test_a_cuda_that_is_listed_and_does_not_load_fails_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = onnxruntime.InferenceSession

    def session(path: str, providers: list[str], **others: Any) -> object:
        return real(path, providers=["CPUExecutionProvider"], **others)

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    report = doctor.examine()
    runs = report["models"]["runs"]
    assert report["ok"] is False
    assert runs["cpu"] == "ok"
    assert "does not load" in runs["auto"]
    assert report["problems"][0].startswith("auto: device 'auto' was asked for, but")
    assert "The defaults do not work." in doctor.describe(report)


@pytest.mark.usefixtures("tiny_defaults")
def test_openvino_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "openvino")
    monkeypatch.setattr(doctor, "listed_providers", list)
    report = doctor.examine()
    assert report["ok"] is True
    assert report["models"]["runs"] == {"auto": "ok", "openvino": "ok"}
    assert not [problem for problem in report["problems"] if "cpu" in problem]


def test_providers_are_run_and_not_believed(pose_model: Path) -> None:
    listed = ["CPUExecutionProvider", "AzureExecutionProvider"]
    assert machine.running_providers(pose_model, listed) == {"CPUExecutionProvider": "runs"}


def test_a_provider_that_hands_over_to_another_does_not_run(
    pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession

    def session(path: str, providers: list[str], **_: object) -> object:
        if providers == ["ROCMExecutionProvider"]:
            raise RuntimeError("no\nlibrary")
        return real(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    states = machine.running_providers(
        pose_model, ["CUDAExecutionProvider", "ROCMExecutionProvider"]
    )
    assert states["CUDAExecutionProvider"] == "does not load; got CPUExecutionProvider"
    assert states["ROCMExecutionProvider"] == "does not run: no library"


def test_gpus_are_what_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA T4, 580.1, 15360 MiB, 7.5'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    (gpu,) = machine.nvidia_gpus()
    assert (gpu["name"], gpu["driver_version"], gpu["compute_cap"]) == ("NVIDIA T4", "580.1", "7.5")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.nvidia_gpus() == []


def test_what_is_absent_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(machine.importlib, "import_module", absent)
    assert machine.openvino_devices() is None
    assert machine.tensorrt_flavours() == {}
    assert machine.torch_devices() is None

    def broken(name: str) -> object:
        raise ImportError("libnvinfer.so.11: no such file")

    monkeypatch.setattr(machine.importlib, "import_module", broken)
    assert "libnvinfer" in machine.tensorrt_flavours()["tensorrt"]
    assert "does not load" in str(machine.openvino_devices())
    assert "does not load" in str(machine.torch_devices())


def test_a_gpu_that_lies_idle_is_told() -> None:
    gpus = [{"name": "NVIDIA T4"}]
    engines: dict[str, str | None] = {"tensorrt-cu13": "11.0", "tensorrt-rtx": None}
    (advice,) = doctor._advice(gpus, {"CPUExecutionProvider": "runs"}, engines)
    assert "NVIDIA T4 is here" in advice
    assert "cfpose-sdk[gpu]" in advice
    assert doctor._advice(gpus, {"CUDAExecutionProvider": "runs"}, engines) == []
    (advice,) = doctor._advice(gpus, {"CUDAExecutionProvider": "runs"}, {})
    assert "cfpose-sdk[tensorrt-cu13]" in advice
    assert doctor._advice([], {}, {}) == []


def test_a_provider_that_opens_and_does_not_run_is_told(
    pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("cuDNN is of another version")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    states = machine.running_providers(pose_model, ["CPUExecutionProvider"])
    assert states == {"CPUExecutionProvider": "does not run: cuDNN is of another version"}


class _Torch:
    """As much of PyTorch as doctor asks."""

    def __init__(self, cuda: str | None, reachable: bool, answer: float) -> None:
        self.__version__ = "2.9"
        self.version = SimpleNamespace(cuda=cuda)
        self.cuda = SimpleNamespace(
            is_available=lambda: reachable, get_device_name=lambda number: "NVIDIA T4"
        )
        self.nn = SimpleNamespace(functional=SimpleNamespace(conv2d=lambda a, b: answer))

    def ones(self, *shape: int, device: str) -> None:
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image")


@pytest.mark.parametrize(
    ("torch", "cpu", "cuda"),
    [
        (_Torch(None, False, 9), "runs", "built without CUDA"),
        (_Torch("13.0", False, 9), "runs", "built for CUDA 13.0, reaches no GPU"),
        (_Torch("13.0", True, 9), "runs", "does not run: CUDA error: no kernel image on NVIDIA T4"),
        (_Torch(None, False, 8), "gives a wrong answer", "built without CUDA"),
    ],
)
def test_pytorch_is_run(
    torch: _Torch, cpu: str, cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.importlib, "import_module", lambda name: torch)
    assert machine.torch_devices() == {"version": "2.9", "cpu": cpu, "cuda": cuda}


def test_the_gpu_of_engines_is_asked(gpu: Any) -> None:
    assert str(doctor._try_cuda("13")).startswith("NVIDIA Fake 1, SM 8.9")
    gpu.devices = 0
    assert doctor._try_cuda("13") == (
        "this machine has no NVIDIA GPU that CUDA can see; see: nvidia-smi"
    )
    assert doctor._try_cuda(None) is None


def test_precisions_are_run_where_the_cpu_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    lacks = {"bf16": "no AMX", "int8": "no VNNI"}
    monkeypatch.setattr(doctor, "lacking", lambda kind: lacks.get(kind, ""))
    states = doctor._try_precisions("2026")
    assert states["f32"].startswith("runs, 0.0")
    assert (states["bf16"], states["int8"]) == ("absent: no AMX", "absent: no VNNI")

    def broken(kind: str) -> str:
        raise RuntimeError("plugin\nis gone")

    monkeypatch.setattr(doctor, "lacking", broken)
    assert set(doctor._try_precisions("2026").values()) == {"does not run: plugin is gone"}
    assert doctor._try_precisions(None) == {}


def test_a_lower_precision_is_held_to_its_median(tmp_path: Path) -> None:
    bound = BOUNDS["OpenVINO bf16"]
    with PoseEstimator(device="cpu") as estimator:
        digest = files.digest(BUNDLED_MODEL)
        for moved, passed in ((1, True), (17, False)):
            known = json.loads(known_answers.ANSWERS.read_text())
            for point in known[digest]["xy"][5 : 5 + moved]:
                point[0] += 30.0
            (tmp_path / "answers.json").write_text(json.dumps(known))
            assert known_answers.pose_parity(
                estimator, tmp_path / "answers.json", bound
            ).passed is passed  # fmt: skip


@pytest.mark.usefixtures("tiny_defaults")
def test_doctor_when_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "listed_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(sys, "argv", ["cfpose", "doctor", "--json"])
    assert commands.cfpose() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["packages"]["numpy"] == np.__version__
    devices = {"auto", "cpu"} | ({"openvino"} if report["packages"]["openvino"] else set())
    assert report["models"]["runs"] == dict.fromkeys(devices, "ok")
    assert report["problems"] == []
    monkeypatch.setattr(sys, "argv", ["cfpose", "doctor"])
    assert commands.cfpose() == 0
    assert "The defaults work." in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_defaults")
def test_doctor_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cfpose_sdk.estimator.BUNDLED_MODEL", tmp_path / "gone.onnx")
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name == "openvino" else "1")
    monkeypatch.setattr(doctor, "listed_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(sys, "argv", ["cfpose", "doctor"])
    assert commands.cfpose() == 1
    out = capsys.readouterr().out
    assert "gone.onnx does not exist" in out
    assert "pip install 'cfpose-sdk[openvino]'" in out
    assert "overwrite each other" in out
    assert "The defaults do not work." in out
