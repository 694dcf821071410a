"""What transformers' own ViTPose processing says on a small ViTPose: NETWORK.onnx ANSWERS.npz.

Runs where transformers is installed; cfpose need not be. The network is fitted here to the people
of the example photos (TARGETS.npz of `peer_targets.py`: their joints by the bundled model), for its
maps to have peaks; without that its answers would be noise.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation
from transformers import VitPoseImageProcessor as Processor
from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

from peer_boxes import PHOTOS, peer_people

SIZE_WH, MAP_WH, JOINTS, STEPS, SIGMA = (192, 256), (48, 64), 17, 300, 2.0


def small_vitpose() -> VitPoseForPoseEstimation:
    """Two layers of 32 channels, and the classic head."""
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[256, 192], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, mlp_ratio=2, out_features=["stage2"], out_indices=[2],
    )  # fmt: skip
    config = VitPoseConfig(
        backbone_config=backbone, use_simple_decoder=True, scale_factor=4, num_labels=JOINTS,
        id2label={n: str(n) for n in range(JOINTS)}, label2id={str(n): n for n in range(JOINTS)},
    )  # fmt: skip
    return VitPoseForPoseEstimation(config)


def target_maps(xy: NDArray[np.float64]) -> torch.Tensor:
    """(N, 17, 64, 48) Gaussians about (N, 17, 2) UDP crop pixels."""
    places = xy * (np.array(MAP_WH) - 1) / (np.array(SIZE_WH) - 1)
    y, x = np.mgrid[: MAP_WH[1], : MAP_WH[0]]
    square = (x - places[..., 0, None, None]) ** 2 + (y - places[..., 1, None, None]) ** 2
    return torch.from_numpy(np.exp(-square / (2 * SIGMA**2)).astype(np.float32))


def prepare(processor: Processor, boxes: dict[str, NDArray[np.float64]]) -> torch.Tensor:
    """(N, 3, 256, 192) pixels of all people, as the processor prepares them."""
    parts = []
    for name, xyxy in boxes.items():
        image = cv2.cvtColor(cv2.imread(str(PHOTOS / name)), cv2.COLOR_BGR2RGB)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        parts.append(processor(image, boxes=[xywh], return_tensors="pt")["pixel_values"])
    return torch.cat(parts)


def fit(model: VitPoseForPoseEstimation, pixels: torch.Tensor, maps: torch.Tensor) -> None:
    """A few hundred steps on the very people that are compared."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(STEPS):
        loss = ((heatmaps(model, pixels) - maps) ** 2 * (1 + 20 * maps)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            print(step, float(loss))
    model.eval()


def heatmaps(model: VitPoseForPoseEstimation, pixels: torch.Tensor) -> torch.Tensor:
    """The network's maps."""
    return model(pixel_values=pixels).heatmaps


class Maps(torch.nn.Module):
    """The network as a function of pixels alone, for the exporter."""

    def __init__(self, model: VitPoseForPoseEstimation) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, 256, 192) → (N, 17, 64, 48)."""
        return heatmaps(self.model, pixels)


def export(network: Path, pixels: torch.Tensor, xy: NDArray[np.float64]) -> None:
    """Fit the network and write its graph."""
    model = small_vitpose()
    fit(model, pixels, target_maps(xy))
    torch.onnx.export(
        Maps(model), (pixels[:2],), network, input_names=["pixels"], output_names=["heatmaps"],
        dynamic_axes={"pixels": {0: "N"}, "heatmaps": {0: "N"}}, opset_version=17, dynamo=False,
    )  # fmt: skip


def read(
    processor: Processor, maps: NDArray[np.float32], people: dict[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 17, 2) pixels of the photos and (N, 17) scores, as the processor makes them of maps."""
    joints, scores, first = [], [], 0
    for xyxy in people.values():
        part = VitPoseEstimatorOutput(heatmaps=torch.from_numpy(maps[first : first + len(xyxy)]))
        first += len(xyxy)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        for found in processor.post_process_pose_estimation(part, boxes=[xywh])[0]:
            joints.append(np.asarray(found["keypoints"], np.float32))
            scores.append(np.asarray(found["scores"], np.float32).reshape(-1))
    return np.stack(joints), np.stack(scores)


def main(network: Path, answers: Path, targets: Path) -> None:
    """Fit where there is no network yet; write what the processor makes of its maps.

    `xy`: preparing and reading are transformers'. `xy_read`: the crops are cfpose's, the reading is
    transformers'; where a crop reaches over the photo's border the two fill it differently.
    """
    processor, people, given = Processor(), peer_people(), np.load(targets)
    pixels = prepare(processor, people)
    if not network.is_file():
        export(network, pixels, given["xy"].astype(np.float64))
    session = onnxruntime.InferenceSession(str(network))
    own = given["crops"][..., ::-1].astype(np.float32) / 255
    own = ((own - processor.image_mean) / processor.image_std).transpose(0, 3, 1, 2)
    arrays = {
        "photo": np.array([name for name, rows in people.items() for _ in rows]),
        "box": np.concatenate(list(people.values())),
    }
    for ending, fed in (("", pixels.numpy()), ("_read", own)):
        (maps,) = session.run(None, {"pixels": np.ascontiguousarray(fed, np.float32)})
        arrays[f"xy{ending}"], arrays[f"score{ending}"] = read(processor, maps, people)
    versions = {p: importlib.metadata.version(p) for p in ("transformers", "torch", "scipy")}
    np.savez_compressed(answers, versions=np.array(str(versions)), **arrays)
    print(f"{len(arrays['box'])} people, {versions}")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:]))
