"""cfpose tune: what is tried, what is chosen, what is kept and printed; and killed, nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfpose_sdk.backends import tuned
from cfpose_sdk.backends.tuned import Setting, Way
from cfpose_sdk.cli.tune import describe
from cfpose_sdk.errors import BackendError, InputError, MissingDependencyError
from cfpose_sdk.files import CACHE_VARIABLE, digest
from cfpose_sdk.tuning import proofs, run
from cfpose_sdk.tuning.proofs import Proofs, ProvenWay
from cfpose_sdk.tuning.run import DEFAULT, Outcome, TuneOptions, tune
from cfpose_sdk.tuning.trial import Job, Trial, Turn, check_people
from cfpose_sdk.tuning.workplace import Workplace

OPENVINO = Way("openvino")
BF16 = Way("openvino", "bf16", "tiny-bf16.onnx", "")
INT8 = Way("openvino", "int8")
DRIFT = {"p99_px": 0.004, "oks_mean": 0.99999, "confidence_p99": 0.0001}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(run, "_threads", lambda: (None,))
    return tmp_path / "cache"


class FakeProofs(Proofs):
    """Float32 and bf16 in OpenVINO pass, int8 does not; one thing is not tried."""

    def ways(self, network: Any) -> Iterator[ProvenWay]:
        self.left_out["OpenVINO f8"] = "this CPU has none"
        graph = self._work.folder / BF16.graph
        graph.write_bytes(b"lower")
        bf16 = Way("openvino", "bf16", BF16.graph, digest(graph))
        yield ProvenWay(Way(), {})
        yield ProvenWay(OPENVINO, DRIFT)
        yield ProvenWay(bf16, DRIFT, "" if network == "pose" else "boxes differ")
        if network == "pose":
            yield ProvenWay(INT8, {**DRIFT, "p99_px": 22.0}, "keypoints drift by 22 px")


class FakeTrial:
    """Times by the setting's name."""

    times: dict[str, float] = {}  # noqa: RUF012  (of a test)
    found = [2, 1]  # noqa: RUF012

    def __init__(self, setting: Setting, job: Job, work: Workplace) -> None:
        self.setting = setting
        if self.times.get(setting.name) == 0.0:
            raise BackendError(f"{setting.name}: it does not open")

    def turn(self) -> Turn:
        return Turn((self.times.get(self.setting.name, 10.0),), 200.0)

    def close(self) -> None:
        pass


def tuned_with(monkeypatch: pytest.MonkeyPatch, model: Path, **times: float) -> Outcome:
    """The outcome where settings take these milliseconds, and others 10."""
    monkeypatch.setattr(run, "Proofs", FakeProofs)
    monkeypatch.setattr(run, "Trial", FakeTrial)
    names = {"ov32": "OpenVINO float32", "bf16": "OpenVINO bf16, finder float32"}
    monkeypatch.setattr(FakeTrial, "times", {names[k]: ms for k, ms in times.items()})
    return tune(TuneOptions(model, rounds=3), lambda step: None)


def test_the_fastest_that_passes_is_kept(
    pose_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = tuned_with(monkeypatch, pose_model, ov32=8.0, bf16=5.0)
    assert outcome.tuned.setting.name == "OpenVINO bf16, finder float32"
    assert outcome.float32.setting.name == "OpenVINO float32"
    assert outcome.tuned.ratio == (2.0, 2.0, 2.0)
    kept = sorted(path.name for path in (cache / tuned.ROOM).iterdir())
    assert kept == sorted([outcome.file.name, BF16.graph])
    record = tuned.read_record(pose_model.resolve())
    assert record["measured"]["told"] == "2.00 times the default's speed at 1.5 people a photo"
    assert tuned.setting_of(record["tuned"]) == outcome.tuned.setting
    text = describe(outcome)
    refused = next(line for line in text.splitlines() if line.startswith("OpenVINO int8"))
    assert "22.00" in refused
    assert "keypoints drift by 22 px" in refused
    assert "the default" in text.splitlines()[1]
    assert "not tried: OpenVINO f8: this CPU has none" in text
    assert "tuned is OpenVINO bf16, finder float32: 2.00 times" in text


def names_of(poses: list[ProvenWay], finders: list[ProvenWay]) -> list[str]:
    class Given:
        def ways(self, network: str) -> list[ProvenWay]:
            return poses if network == "pose" else finders

    return [row.setting.name for row in run._rows(Given(), lambda step: None)]  # type: ignore[arg-type]


def test_which_pairs_are_tried() -> None:
    plain, full, bf16 = ProvenWay(Way(), {}), ProvenWay(OPENVINO, {}), ProvenWay(BF16, {})
    int8 = ProvenWay(INT8, {})
    refused = ProvenWay(BF16, {}, "boxes differ")
    ov, low = "OpenVINO float32", "OpenVINO bf16"
    base = ["onnxruntime float32", ov]
    assert names_of([plain, full, bf16], [plain, full, bf16]) == [*base, low]
    # a finder that was refused is said, and float32 stands in for it
    pairs = [f"{low}", f"{low}, finder float32"]
    assert names_of([plain, full, bf16], [plain, full, refused]) == [*base, *pairs]
    # a lower finder beside float32 where no lower pose network passed
    alone = [f"{ov}, finder bf16", f"{low}, finder float32"]
    assert names_of([plain, full, refused], [plain, full, bf16]) == [*base, *alone]
    # finders have no int8: both are tried
    both = ["OpenVINO int8, finder float32", "OpenVINO int8, finder bf16"]
    assert names_of([plain, full, int8], [plain, full, bf16]) == [*base, *both]


def test_nothing_slower_is_kept(
    pose_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = tuned_with(monkeypatch, pose_model, ov32=12.0, bf16=10.5)
    assert outcome.tuned.setting == outcome.float32.setting == DEFAULT
    assert [path.name for path in (cache / tuned.ROOM).iterdir()] == [outcome.file.name]
    assert "Nothing surely beats the default here: tuned is onnxruntime" in describe(outcome)
    assert tuned.read_tuned(pose_model.resolve()).setting == DEFAULT


def test_one_lucky_round_is_not_enough(pose_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    luck = iter([1.0, 10.1, 10.1, 10.1] * 9)  # the first is the screening's

    class Lucky(FakeTrial):
        def turn(self) -> Turn:
            return Turn((next(luck) if self.setting.pose == OPENVINO else 10.0,), None)

    monkeypatch.setattr(run, "Proofs", FakeProofs)
    monkeypatch.setattr(run, "Trial", Lucky)
    outcome = tune(TuneOptions(pose_model, rounds=3), lambda step: None)
    assert outcome.tuned.setting == DEFAULT


def test_a_setting_that_does_not_open_is_said(
    pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = tuned_with(monkeypatch, pose_model, ov32=8.0, bf16=0.0)
    assert outcome.tuned.setting.name == "OpenVINO float32"
    assert "it does not open" in describe(outcome)


def test_another_tuning_leaves_no_graph_of_the_first(
    pose_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned_with(monkeypatch, pose_model, bf16=5.0)
    stale = first.file.with_name(f"{first.file.stem}-pose-int8.onnx")
    stale.write_bytes(b"of an earlier one")
    other = stale.with_name("other-0123-pose-int8.onnx")
    other.write_bytes(b"of another model")
    tuned_with(monkeypatch, pose_model)
    assert not stale.exists()
    assert other.exists()


def test_a_real_setting_is_timed(pose_model: Path, root: Path, tmp_path: Path) -> None:
    photos = tuple(sorted((root / "examples" / "photos").glob("*.jpg")))
    with Workplace(tmp_path) as work:
        trial = Trial(Setting(threads=1), Job(pose_model, work.folder, photos, 3), work)
        assert trial.found == [3, 3]
        assert [len(boxes) for boxes in trial.boxes().values()] == [3, 3]
        turn = trial.turn()
        assert len(turn.ms) >= 3
        assert 0 < turn.median_ms < 10_000
        assert turn.memory_mb is None or 20 < turn.memory_mb < 2000
        trial.close()
        with pytest.raises(BackendError, match=r"onnxruntime float32: .*does not exist"):
            Trial(Setting(), Job(tmp_path / "no.onnx", work.folder, photos), work)
        with pytest.raises(BackendError, match=r"its process ended with 1: TypeError: .*int"):
            Trial(Setting(), Job(pose_model, work.folder, photos, "x"), work)  # type: ignore[arg-type]


def test_the_users_photos(pose_model: Path, root: Path, tmp_path: Path) -> None:
    photos = run.photos_of([str(root / "examples" / "photos")])
    assert [photo.name for photo in photos] == ["basketball1.jpg", "street.jpg"]
    assert run.photos_of(()) == photos
    with Workplace(tmp_path) as work, Workplace(tmp_path) as other:
        trial = Trial(DEFAULT, Job(pose_model, work.folder, photos), work)
        folder = run._proof_photos(trial, photos, other)
        trial.close()
        people = json.loads((folder / "people.json").read_text())
        assert people.keys() == {"basketball1.jpg", "street.jpg"}
        assert (folder / "street.jpg").read_bytes() == photos[1].read_bytes()


def test_wrong_use(pose_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "model.xml"
    other.write_text("")
    for wrong, said in (
        ({"people": 0}, "people must be 1 or more"),
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"model": other}, r"is no \.onnx file"),
    ):
        with pytest.raises(InputError, match=said):
            TuneOptions(**{"model": pose_model, **wrong})  # type: ignore[arg-type]
    (tmp_path / "clip.mp4").write_text("")
    with pytest.raises(InputError, match="is a video, and tune reads photos"):
        run.photos_of([str(tmp_path / "clip.mp4")])
    with pytest.raises(InputError, match="sees nobody in these photos"):
        check_people([0, 0], None)
    with pytest.raises(InputError, match="sees nobody in 1 of 2 photos"):
        check_people([0, 3], 5)
    check_people([0, 3], None)
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BackendError, match="runs on a GPU"):
        tune(TuneOptions(pose_model), lambda step: None)


def test_missing_packages(
    pose_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Workplace(tmp_path) as work:
        monkeypatch.setattr(proofs, "is_installed", lambda name: name != "onnx")
        without = Proofs(work, pose_model, None)
        assert [proven.way for proven in without.ways("pose")] == [Way()]
        (why,) = without.left_out.values()
        assert "pip install 'cfpose-sdk[openvino]'" in why
        monkeypatch.setattr(proofs, "is_installed", lambda name: name != "openvino")
        without = Proofs(work, pose_model, None)
        assert "OpenVINO is not installed" in without._missing(OPENVINO)
        assert without._missing(Way("cpu", "int8")) == ""
        monkeypatch.setattr(proofs, "is_installed", lambda name: True)
        monkeypatch.setattr(proofs, "lacking", lambda kind: f"no {kind}")
        assert without._missing(OPENVINO) == ""
        assert without._missing(BF16) == "no bf16"
        assert without._missing(INT8) == "no int8"
    monkeypatch.setattr("cfpose_sdk.errors.is_installed", lambda name: name != "onnxruntime")
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[cpu\]"):
        tune(TuneOptions(pose_model), lambda step: None)


@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGKILL", None)])
def test_a_killed_tune_leaves_nothing(
    number: signal.Signals | None, pose_model: Path, cache: Path
) -> None:
    if number is None:
        pytest.skip("this system has no SIGKILL")
    code = "import sys; from cfpose_sdk.commands import cfpose; sys.exit(cfpose())"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "tune", "--model", str(pose_model), "--rounds", "1"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, CACHE_VARIABLE: str(cache)},
    )  # fmt: skip
    assert child.stderr is not None
    while "proving" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(number)
    assert child.wait(20) == (143 if number == signal.SIGTERM else -9)
    child.stderr.close()
    end = time.monotonic() + 20
    while (left := list((cache / tuned.ROOM).iterdir())) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []
