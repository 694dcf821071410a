"""`cfpose-train reproduce --miniature`, from its first step to its table; interrupted, resumed."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from cfpose_sdk.media.image import read_image
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, ModelSpec
from cfpose_training.nets.hrnet import HRNET_W32, HRNET_W48, HRNetConfig
from cfpose_training.nets.pose_net import PoseNet

CODE = "import sys; from cfpose_sdk.commands import train; sys.exit(train())"
FAST = ["--miniature", "--accelerator", "cpu", "--threads", "1", "--devices", "2"]


def reproduce(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CFPOSE_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "reproduce", *words],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def figures(folder: Path) -> dict[str, dict[str, float | None]]:
    content = json.loads((folder / "table.json").read_text())
    found: dict[str, dict[str, float | None]] = {}
    for figure in content["figures"]:
        found.setdefault(figure["row"], {})[figure["figure"]] = figure["ours"]
    return found


def all_measured(rows: dict[str, dict[str, float | None]]) -> bool:
    """Whether every row has figures; nobody of a miniature is large, so APL is none."""
    return all(v is not None for row in rows.values() for k, v in row.items() if k != "APL")


def test_table_one(tmp_path: Path) -> None:
    out, err = (process := reproduce(tmp_path, "coco", *FAST, "--out", "a")).communicate()
    assert process.returncode == 0, err
    assert "HRNets of width 4 and 8 in place of W32 and W48" in err
    assert "figures mean nothing beside the paper's" in out
    assert "75.1 AP on COCO test-dev" in out
    for row in ("| SimCC-W32 | 75.3 |", "| teacher, SimCC-W48 | 75.9 |", "| ours | 76.2 |"):
        assert row in out
    assert all_measured(figures(tmp_path / "a"))
    # the same command finds all done, and writes the same table
    table = (tmp_path / "a" / "table.md").read_text()
    out, err = (process := reproduce(tmp_path, "coco", *FAST, "--out", "a")).communicate()
    assert process.returncode == 0, err
    assert "begins" not in err
    assert (tmp_path / "a" / "table.md").read_text() == table


def test_table_four_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    words = ["crowdpose", "--table", "4", *FAST, "--out", "a"]
    process = reproduce(tmp_path, *words)
    state = tmp_path / "a" / "seed1" / "stage1-labels" / "log.csv"
    while not state.is_file() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143, err
    journal = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert journal["check"]["done"]
    out, err = (process := reproduce(tmp_path, *words)).communicate()
    assert process.returncode == 0, err
    assert "check, begins" not in err
    assert out.count("| 66.7 |") == 1
    rows = figures(tmp_path / "a")
    assert len(rows) == 8
    assert all_measured(rows)
    # one step after the other gives the same table
    one = [word if word != "2" else "1" for word in words[:-1]]
    out, err = (process := reproduce(tmp_path, *one, "b", "--schemes", "1")).communicate()
    assert process.returncode == 0, err
    for row, values in figures(tmp_path / "b").items():
        assert values == rows[row]
    last = Path("seed1") / "stage2-gt-on-labels" / "refined.safetensors"
    two, single = (load_file(tmp_path / name / last) for name in "ab")
    assert two.keys() == single.keys()
    assert all(np.array_equal(two[key], single[key]) for key in two)


@pytest.mark.parametrize(("width", "config"), [(32, HRNET_W32), (48, HRNET_W48)])
def test_a_published_layout_is_measured_with_the_vector_flip(
    width: int, config: HRNetConfig, root: Path, tmp_path: Path
) -> None:
    photo = read_image(root / "examples" / "photos" / "street.jpg")
    crops = np.stack([photo[50:306, 100:292], photo[100:356, 400:592]])
    network = spread(config, crops)
    file = tmp_path / f"pose_hrnet_w{width}_256x192.pth"
    torch.save({k.split(".", 1)[1]: v for k, v in network.state_dict().items()}, file)
    out, err = (
        process := reproduce(tmp_path, "coco", *FAST, "--out", "a", "--from-official", str(file))
    ).communicate()
    assert process.returncode == 0, err
    assert f"| SimCC-W{width}, published weights: {file.name} |" in out
    report = json.loads((tmp_path / "a" / "reports" / f"{file.stem}.json").read_text())
    protocol = report["protocol"]
    assert protocol["flip_test"]
    assert protocol["joint_threshold"] == 0.01
    assert list(protocol["oks_nms"].values()) == [0.9]
    session = onnxruntime.InferenceSession(
        str(tmp_path / "a" / "graphs" / f"{file.stem}.onnx"), providers=["CPUExecutionProvider"]
    )
    straight = session.run(["keypoints"], {"crops": crops})[0]
    mirrored = session.run(["keypoints"], {"crops": np.ascontiguousarray(crops[:, :, ::-1])})[0]
    order = list(COCO_17.flip_order)
    back = mirrored[:, order] * (-1, 1) + (191, 0)
    exact, clear = reference(network, crops)
    assert clear.mean() > 0.8
    np.testing.assert_allclose(back[clear], straight[clear], atol=1e-4)
    np.testing.assert_allclose(straight[clear], exact[clear], atol=1e-4)


def spread(config: HRNetConfig, crops: np.ndarray) -> PoseNet:
    """A network of random weights that sees its crops, and whose logits spread as trained ones do.

    PyTorch's own start lets a crop fade from layer to layer: all crops would have the same peaks,
    and the mean with the mirror image's would tie.
    """
    torch.manual_seed(5)
    spec = ModelSpec("x", COCO_17, (192, 256), decode="argmax", split_ratio=2.0)
    network = PoseNet(config, spec).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        layers = (network.head.mlp_head_x, network.head.mlp_head_y)
        for layer, logits in zip(layers, network(normalised(crops))[:2], strict=True):
            layer.weight.mul_(3 / logits.std())
    return network


def normalised(crops: np.ndarray) -> torch.Tensor:
    """RGB images (N, 3, H, W) of BGR crops, as HRNets take them."""
    images = torch.from_numpy(crops[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN_RGB, IMAGENET_STD_RGB))
    return (images - mean) / std


def reference(network: PoseNet, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SimCC's flip test in float64, bin by bin: (N, 17, 2) crop pixels, and where they are clear.

    Elsewhere two bins are all but equal, and float32 may choose the other one.
    """
    exact, images = copy.deepcopy(network).double(), normalised(crops).double()
    order = list(COCO_17.flip_order)
    with torch.no_grad():
        x, y = (v.softmax(-1) for v in exact(images)[:2])
        x_flip, y_flip = (v.softmax(-1)[:, order] for v in exact(images.flip(-1))[:2])
    x_back = torch.zeros_like(x_flip)
    bins = x.shape[-1]
    for place in range(bins - 1):  # reversed, then shifted to the left by a bin
        x_back[..., place] = x_flip[..., bins - 2 - place]
    x_back[..., bins - 1] = x_flip[..., 0]
    best = [(vectors / 2).topk(2) for vectors in (x + x_back, y + y_flip)]
    points = torch.stack([found.indices[..., 0] for found in best], -1) / 2
    lead = torch.stack([found.values[..., 0] - found.values[..., 1] for found in best], -1)
    return points.numpy(), (lead > 1e-3).numpy()
