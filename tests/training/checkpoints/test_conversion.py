"""Other projects' checkpoints come in and go out without a tensor changed or lost in silence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.convert import export_state, initialise, save_state
from cfpose_training.checkpoints.files import load_pose, load_tensors, save_pose
from cfpose_training.checkpoints.foreign import adopt, head_spec, read_state
from cfpose_training.cli import main
from cfpose_training.config import load_recipe
from cfpose_training.nets.hrnet import HRNET_W32, HRNET_W48, HRNetConfig
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose import run
from cfpose_training.pose.train import pose_spec

GOLDEN = Path(__file__).parents[1] / "golden"
HERE = Path("here.pth")
TINY = HRNetConfig(width=4, stem=4, bottlenecks=2, modules=(1, 2, 2), blocks=1)
State = dict[str, Tensor]


def tiny_net(
    seed: int = 5, skeleton: Skeleton = COCO_17, size_wh: tuple[int, int] = (36, 48)
) -> PoseNet:
    torch.manual_seed(seed)
    net = PoseNet(TINY, ModelSpec("tiny", skeleton, size_wh, decode="argmax"))
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.fill_(7)
        elif "running" in key:
            value.uniform_(0.5, 1.5)
    return net


def reference(net: PoseNet) -> State:
    """The state dict as the reference would name it: no prefixes."""
    return {key.split(".", 1)[1]: value for key, value in net.state_dict().items()}


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(value, b[key]) and value.dtype == b[key].dtype for key, value in a.items()
    )


@pytest.mark.parametrize(("size", "config"), [("w32", HRNET_W32), ("w48", HRNET_W48)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_official_key_lists_are_taken_whole(
    size: str, config: HRNetConfig, prefix: str
) -> None:
    shapes = json.loads((GOLDEN / f"hrnet_{size}_simcc_state_dict.json").read_text())
    state = {f"{prefix}{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    stripped = {key.removeprefix("module."): value for key, value in state.items()}
    found = adopt(stripped, HERE)
    assert (found.backbone, found.dropped, found.filled) == (config, (), ())
    spec = head_spec(stripped, HERE)
    assert (spec.size_wh, spec.split_ratio, len(spec.skeleton)) == ((192, 256), 2.0, 17)
    with torch.device("meta"):
        own = PoseNet(config, spec).state_dict()
    assert list(found.tensors) == list(own)
    for key, value in found.tensors.items():  # the very tensors, each under its own name
        assert value is stripped[key.split(".", 1)[1]]


def test_the_input_is_read_off_a_head_of_384x288_and_one_and_a_half_bins() -> None:
    empty = {
        "final_layer.weight": (14, 48, 1, 1),
        "mlp_head_x.weight": (432, 72 * 96),
        "mlp_head_y.weight": (576, 72 * 96),
    }
    state = {key: torch.empty(shape, device="meta") for key, shape in empty.items()}
    spec = head_spec(state, HERE)
    assert (spec.size_wh, spec.split_ratio, len(spec.skeleton)) == ((288, 384), 1.5, 14)
    state["mlp_head_x.weight"] = torch.empty((431, 72 * 96), device="meta")
    with pytest.raises(ArtifactError, match="431 and 576 bins over 6912 cells"):
        head_spec(state, HERE)


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "plain": lambda state: state,
    "module": lambda state: {f"module.{k}": v for k, v in state.items()},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "checkpoint.pth": lambda state: {
        "epoch": 210,
        "model": "pose_hrnet",
        "state_dict": {f"module.{k}": v * 0 for k, v in state.items()},
        "best_state_dict": state,
        "perf": np.float64(0.753),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]},
    },
    "mmpose": lambda state: {
        "meta": {"dataset_meta": {"sigmas": np.array(COCO_17.oks_sigmas, np.float32)}},
        "state_dict": {
            f"{'head' if k.startswith(('final', 'mlp')) else 'backbone'}.{k}": v
            for k, v in state.items()
        },
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_comes_in_exactly(wrapping: str, tmp_path: Path) -> None:
    net = tiny_net()
    source, target = tmp_path / "tiny.pth", tmp_path / "tiny.safetensors"
    torch.save(WRAPPINGS[wrapping](reference(net)), source)
    assert main(["convert", str(source), "-o", str(target)]) == 0
    loaded, spec = load_pose(target)
    assert spec == ModelSpec("tiny", COCO_17, (36, 48), decode="argmax")
    assert equal(loaded.state_dict(), net.state_dict())


@pytest.mark.parametrize("layout", ["simcc", "mmpose"])
@pytest.mark.parametrize("skeleton", [COCO_17, CROWDPOSE_14])
def test_out_and_in_again_changes_nothing(
    layout: str, skeleton: Skeleton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tiny_net(skeleton=skeleton)
    ours, theirs = tmp_path / "tiny.safetensors", tmp_path / "tiny.pth"
    save_pose(ours, net, ModelSpec("tiny", skeleton, (36, 48), decode="argmax"))
    assert main(["convert", str(ours), "-o", str(theirs), "--to", layout]) == 0
    content = torch.load(theirs, weights_only=True)
    if layout == "simcc":
        assert equal(content, reference(net))
    else:
        assert list(content) == ["state_dict"]
        assert equal(content["state_dict"], net.state_dict())
    again = tmp_path / "again" / "tiny.safetensors"
    assert main(["convert", str(theirs), "-o", str(again)]) == 0
    (tensors, metadata), (before, facts) = load_tensors(again), load_tensors(ours)
    assert equal(tensors, before)
    assert metadata == facts
    assert "dropped" not in capsys.readouterr().out


def test_the_refiner_stays_behind_by_name(tmp_path: Path) -> None:
    pose = tiny_net()
    spec = ModelSpec("tiny", COCO_17, (36, 48), decode="argmax")
    config = IGPGCNConfig(
        size_wh=(36, 48), tap_channels=pose.backbone.tap_channels,
        node_channels=8, joint_channels=(8, 8, 8),
    )  # fmt: skip
    refined = RefinedPoseNet(pose, IGPGCN(config, COCO_17), spec)
    path = tmp_path / "refined.safetensors"
    save_pose(path, refined, spec)
    state, dropped = export_state(path, "simcc")
    assert equal(state, reference(pose))
    names = {key for key in refined.state_dict() if key.startswith("refiner.")}
    assert set(dropped) == names
    started = tiny_net(seed=1)
    assert set(initialise(started, path).dropped) == names
    assert equal(started.state_dict(), pose.state_dict())


def heatmap_state(net: PoseNet, prefixes: tuple[str, str]) -> State:
    """A heatmap network's state dict: the backbone and a 1x1 layer."""
    backbone, head = prefixes
    state = {
        f"{backbone}{key}": v for key, v in reference(net).items() if not key.startswith("mlp_")
    }
    layer = {k: state.pop(k) for k in list(state) if "final_layer" in k}
    return state | {f"{head}{k.removeprefix(backbone)}": v for k, v in layer.items()}


@pytest.mark.parametrize(
    "prefixes", [("", ""), ("backbone.", "head."), ("backbone.", "keypoint_head.")]
)
def test_a_heatmap_checkpoint_gives_its_backbone(
    prefixes: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tiny_net()
    source, target = tmp_path / "pose_hrnet.pth", tmp_path / "backbone.safetensors"
    torch.save(heatmap_state(net, prefixes), source)
    assert main(["convert", str(source), "-o", str(target)]) == 0
    printed = capsys.readouterr().out
    assert f"dropped {prefixes[1]}final_layer.weight" in printed
    assert printed.count("dropped") == 2
    assert "no SimCC head" in printed
    with pytest.raises(ArtifactError, match="not a cfpose pose checkpoint"):
        load_pose(target)
    for path in (source, target):
        started = tiny_net(seed=1)
        fresh = {k: v.clone() for k, v in started.head.state_dict().items()}
        found = initialise(started, path)
        assert found.taken == ()
        assert equal(started.backbone.state_dict(), net.backbone.state_dict())
        assert equal(started.head.state_dict(), fresh)


def imagenet_state(net: PoseNet) -> State:
    """A classifier: the backbone, the other resolutions' fusion, and the classifying layers."""
    state = {k: v for k, v in reference(net).items() if not k.startswith(("mlp_", "final"))}
    for key in (
        "stage4.1.fuse_layers.1.0.0.0.weight", "stage4.1.fuse_layers.3.2.0.1.bias",
        "incre_modules.0.0.conv1.weight", "downsamp_modules.2.1.bias", "final_layer.0.weight",
        "classifier.weight", "classifier.bias",
    ):  # fmt: skip
        state[key] = torch.ones(3)
    return state


def test_imagenet_weights_give_the_backbone_and_name_the_rest(tmp_path: Path) -> None:
    net = tiny_net()
    state = imagenet_state(net)
    extra = [key for key in state if key not in reference(net)]
    found = adopt(state, HERE)
    assert sorted(found.dropped) == sorted(extra)
    assert not found.has_head
    backbone = {k.removeprefix("backbone."): v for k, v in found.tensors.items()}
    assert equal(backbone, net.backbone.state_dict())
    del state["classifier.weight"], state["classifier.bias"]  # then they are plain strangers
    with pytest.raises(ArtifactError, match=r"unexpected backbone\.stage4\.1.* incre_modules"):
        adopt(state, HERE)


def test_old_files_without_batch_counters_start_them_at_zero() -> None:
    net = tiny_net()
    state = {k: v for k, v in reference(net).items() if not k.endswith("num_batches_tracked")}
    found = adopt(state, HERE)
    assert len(found.filled) == len(net.state_dict()) - len(state)
    assert all(found.tensors[key] == 0 for key in found.filled)
    state["bn1.num_batches_tracked"] = torch.tensor(1)  # some, but not all: a damaged file
    with pytest.raises(ArtifactError, match=r"missing backbone\.bn2\.num_batches_tracked"):
        adopt(state, HERE)


def test_every_key_that_does_not_fit_is_named() -> None:
    state = reference(tiny_net())
    del state["layer1.0.conv2.weight"]
    del state["mlp_head_y.bias"]
    state["stage3.1.branches.2.0.conv1.weight"] = torch.ones(2)
    state["stage5.0.weight"] = torch.ones(1)
    with pytest.raises(ArtifactError) as error:
        adopt(state, HERE)
    message = str(error.value)
    assert "missing backbone.layer1.0.conv2.weight" in message
    assert "missing head.mlp_head_y.bias" in message
    assert "stage3.1.branches.2.0.conv1.weight has shape (2,)" in message
    assert "unexpected stage5.0.weight" in message


def test_what_is_no_hrnet_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"no HRNet.*transition1\.0\.0\.weight.*fc\.weight"):
        adopt({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, HERE)
    state = reference(tiny_net())
    del state["mlp_head_y.weight"]
    with pytest.raises(ArtifactError, match=r"half a SimCC head: missing mlp_head_y\.weight"):
        adopt(state, HERE)
    state = reference(tiny_net())
    with pytest.raises(ArtifactError, match=r"conv1\.weight twice"):
        adopt(state | {"backbone.conv1.weight": torch.ones(1)}, HERE)


def test_files_that_hold_no_state_dict_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(ArtifactError, match="cannot read"):
        read_state(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot read"):
        read_state(path)
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(ArtifactError, match="cannot read"):
        read_state(path)
    for content, message in (
        ([1, 2], "got list"),
        ({}, "no state dict"),
        ({"state_dict": {}}, "no state dict"),
        ({"a": torch.ones(1), "epoch": 3}, "no tensors are under epoch"),
    ):
        torch.save(content, path)
        with pytest.raises(ArtifactError, match=message):
            read_state(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ArtifactError, match="one that runs code; expected a file of tensors alone"):
        read_state(path)
    path.write_text("# no checkpoint")
    with pytest.raises(ArtifactError) as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)


def test_starting_from_other_joints_or_sizes_keeps_what_fits(tmp_path: Path) -> None:
    source = tmp_path / "coco.pth"
    coco = tiny_net()
    save_state(source, reference(coco), "simcc")
    crowd = tiny_net(seed=1, skeleton=CROWDPOSE_14)
    before = {k: v.clone() for k, v in crowd.state_dict().items()}
    found = initialise(crowd, source)
    assert found.taken == ("head.mlp_head_x", "head.mlp_head_y")
    assert found.fresh == ("head.final_layer",)
    for key, value in crowd.state_dict().items():
        expected = before if "final_layer" in key else coco.state_dict()
        assert torch.equal(value, expected[key]), key
    assert initialise(tiny_net(size_wh=(48, 64)), source).taken == ("head.final_layer",)
    with torch.device("meta"):
        wide = PoseNet(HRNET_W32, ModelSpec("wide", COCO_17, (192, 256)))
    with pytest.raises(ArtifactError, match=r"width=4.*width=32"):
        initialise(wide, source)


def test_the_command_refuses_what_is_not_asked_for(tmp_path: Path, tiny_recipe: Path) -> None:
    source, target = tmp_path / "tiny.pth", tmp_path / "out.safetensors"
    save_state(source, reference(tiny_net()), "simcc")
    with pytest.raises(ArtifactError, match=r"width=4.*expected w32"):
        main(["convert", str(source), "-o", str(target), "--network", "w32"])
    assert not target.exists()
    main(["convert", str(source), "-o", str(target), "--recipe", str(tiny_recipe)])
    _, spec = load_pose(target)
    assert (spec.decode, spec.trained_on) == ("subbin", ("drawn people",))
    with pytest.raises(ArtifactError, match="already; pass --to"):
        main(["convert", str(target), "-o", str(tmp_path / "again.safetensors")])
    save_state(source, reference(tiny_net(size_wh=(48, 64))), "simcc")
    with pytest.raises(ArtifactError, match=r"does not fit the recipe: head\.mlp_head_x\.weight"):
        main(["convert", str(source), "-o", str(target), "--recipe", str(tiny_recipe)])
    nine = Skeleton(tuple("abcdefghi"), (), (), (0.1,) * 9)
    save_state(source, reference(tiny_net(skeleton=nine)), "simcc")
    with pytest.raises(ArtifactError, match="tiny has 9 joints"):
        main(["convert", str(source), "-o", str(target)])


def test_stage_1_starts_from_a_foreign_checkpoint(
    tiny_recipe: Path,
    tiny_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe(tiny_recipe)
    torch.manual_seed(11)
    net = PoseNet(recipe.pose.hrnet, pose_spec(recipe))
    source = tmp_path / "imagenet.pth"
    state = {k: v for k, v in reference(net).items() if not k.startswith(("mlp_", "final"))}
    save_state(source, state | {"classifier.weight": torch.ones(2)}, "simcc")
    seen: list[PoseNet] = []
    monkeypatch.setattr(run.PoseRun, "train", lambda _, __, network, *___: seen.append(network))
    arguments = [
        "--recipe",
        str(tiny_recipe),
        "--data-root",
        str(tiny_root),
        "--out",
        str(tmp_path),
    ]
    main(["stage1", *arguments, "--init", str(source)])
    main(["stage1", *arguments])
    first, second = seen
    assert equal(first.backbone.state_dict(), net.backbone.state_dict())
    assert not equal(second.backbone.state_dict(), net.backbone.state_dict())
    assert equal(first.head.state_dict(), second.head.state_dict())  # as the seed draws it
    printed = capsys.readouterr().out
    assert "imagenet.pth gives the backbone; fresh: head.final_layer" in printed
    assert "1 tensors of the file are not used" in printed
