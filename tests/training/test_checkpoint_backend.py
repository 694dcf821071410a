"""Checkpoints behind the SDK's door: registered, run, refused. Parity stands in tests/export."""

from __future__ import annotations

import dataclasses
import pickle
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cfpose_sdk.backends import RuntimeOptions, open_backend, plugins
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, SpecError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import FinderSpec, ModelSpec
from cfpose_training.checkpoint_backend import CheckpointBackend
from cfpose_training.checkpoints.files import save_finder, save_pose
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet

SPEC = ModelSpec("tiny", COCO_17, (32, 48), decode="subbin", license="test")
TINY = HRNetConfig(width=8, stem=8, bottlenecks=1, modules=(1, 1, 1), blocks=1)
CROPS = np.random.default_rng(0).integers(0, 256, (3, 48, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def registered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pyproject.toml registers, also where an older installation is."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    group = project["entry-points"][plugins.GROUP]
    found = tuple(EntryPoint(name, value, plugins.GROUP) for name, value in group.items())
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pose network with random weights."""
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_pose(path, PoseNet(TINY, SPEC).eval(), SPEC)
    return path


@pytest.fixture
def backend(checkpoint: Path) -> Iterator[CheckpointBackend]:
    with CheckpointBackend(checkpoint, device="cpu") as opened:
        yield opened


def test_the_estimator_opens_a_checkpoint(checkpoint: Path, root: Path) -> None:
    photo, boxes = root / "examples" / "photos" / "street.jpg", [[152, 330, 200, 451]] * 2
    with (
        PoseEstimator(checkpoint, device="cpu", batch_size=1) as one,
        PoseEstimator(CheckpointBackend(checkpoint)) as same,
    ):
        assert one.spec == SPEC
        assert one.info.device == "cpu"
        assert one.info.provider == f"PyTorch {torch.__version__} CPU"
        poses = one.predict(photo, boxes=boxes)
        assert poses.covariance is not None
        np.testing.assert_allclose(same.predict(photo, boxes=boxes).xy, poses.xy, atol=1e-3)
        again = pickle.loads(pickle.dumps(one))
        np.testing.assert_array_equal(again.predict(photo, boxes=boxes).xy, poses.xy)
        again = pickle.loads(pickle.dumps(same))
        assert again.info == same.info


def test_a_finder_checkpoint_is_a_detector(tmp_path: Path, checkpoint: Path) -> None:
    torch.manual_seed(0)
    spec = FinderSpec("tiny", (64, 64), threshold=0.0, nms_iou=0.5)
    save_finder(tmp_path / "finder.safetensors", FinderNet(FinderNetConfig()), spec)
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    with (
        PersonFinder(tmp_path / "finder.safetensors") as finder,
        PoseEstimator(checkpoint, detector=tmp_path / "finder.safetensors") as estimator,
    ):
        assert finder.provider.startswith("PyTorch")
        assert len(finder(image)) > 0
        np.testing.assert_array_equal(estimator.predict(image).boxes, finder(image).boxes)


def test_threads_are_set_for_a_run_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    with open_backend(checkpoint, threads=before + 1) as backend:
        assert isinstance(backend, CheckpointBackend)
        module = backend._module
        assert module is not None
        module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        backend.run({"crops": CROPS})
        assert seen == [before + 1]
        assert torch.get_num_threads() == before

        def fail(*_: object) -> None:
            raise RuntimeError("CUDA out of memory")

        module.register_forward_pre_hook(fail)
        with pytest.raises(BackendError, match=r"tiny\.safetensors failed to run: CUDA out of"):
            backend.run({"crops": CROPS})
        assert torch.get_num_threads() == before
    assert torch.backends.cudnn.allow_tf32


def test_the_caller_owns_what_comes_out(backend: CheckpointBackend) -> None:
    fixed = CROPS.copy()
    fixed.setflags(write=False)
    first = backend.run({"crops": fixed})
    kept = {name: value.copy() for name, value in first.items()}
    backend.run({"crops": 255 - CROPS})
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
        value += 1  # not a view of a tensor that forbids it


@pytest.mark.parametrize(
    "crops", [CROPS.astype(np.float32), CROPS[:, :10], CROPS[0], CROPS[..., :2]]
)
def test_feeds_are_checked(backend: CheckpointBackend, crops: np.ndarray) -> None:
    with pytest.raises(BackendError, match=r"crops must be uint8 of shape \(N, 48, 32, 3\), got"):
        backend.run({"crops": crops})
    with pytest.raises(BackendError, match=r"takes inputs \['crops'\]"):
        backend.run({"images": CROPS})


def test_closed_means_closed(checkpoint: Path) -> None:
    backend = open_backend(checkpoint)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="is closed"):
        backend.run({"crops": CROPS})


def test_devices_are_what_was_asked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with open_backend(checkpoint, device="auto") as backend:
        assert backend.device == "cpu"
    with pytest.raises(BackendError, match=r"reaches no GPU here.*allow_fallback=True"):
        open_backend(checkpoint, device="cuda")
    with pytest.warns(RuntimeWarning, match="running on the CPU"):
        open_backend(checkpoint, device="cuda", allow_fallback=True).close()
    with pytest.raises(BackendError, match="cfpose-export onnx --checkpoint"):
        open_backend(checkpoint, device="openvino")
    with pytest.raises(InputError, match="device must be auto, cpu or cuda"):
        open_backend(checkpoint, device="gpu")  # type: ignore[arg-type]
    for wrong in ({"precision": "bf16"}, {"spin": True}, {"cuda_graph": True}, {"workers": 2}):
        options = RuntimeOptions(**wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="PyTorch has no option"):
            open_backend(checkpoint, options=options)


def test_a_gpu_without_room_is_our_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def full(module: Any, device: torch.device) -> None:
        assert device.type == "cuda"
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(BackendError, match="cannot be opened on cuda: CUDA out of memory"):
        open_backend(checkpoint)


def test_other_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("this is no checkpoint")
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:2000])
    torch.manual_seed(0)
    newer = dataclasses.replace(SPEC, name="newer")
    save_pose(tmp_path / "newer.safetensors", PoseNet(TINY, newer), newer)
    data = (tmp_path / "newer.safetensors").read_bytes()
    changed = data.replace(b'\\"spec_version\\": 8', b'\\"spec_version\\": 9')
    assert changed != data
    (tmp_path / "newer.safetensors").write_bytes(changed)
    for name, kind in (("text", ArtifactError), ("cut", ArtifactError), ("newer", SpecError)):
        with pytest.raises(kind):
            PoseEstimator(tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtifactError, match="does not exist"):
        PoseEstimator(tmp_path / "gone.safetensors")
