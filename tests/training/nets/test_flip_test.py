"""The flip test against networks whose answer to a mirrored image is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfpose_sdk.crops import (
    crop_transforms,
    extract_crops,
    invert_transforms,
    transform_points,
)
from cfpose_sdk.media.image import read_image
from cfpose_sdk.skeleton import COCO_17, Skeleton
from cfpose_sdk.spec import Decode, ModelSpec
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions, plain_crops
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.flip import flip_test, mirror_xy, unmirror_logits
from cfpose_training.nets.hrnet import HRNetConfig, Taps
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import Normalise, PoseNet, PoseOutput, RefinedPoseNet
from cfpose_training.pose.train import development_set, pose_spec

WIDTH, HEIGHT = 36, 48
# the nose is where red is, the ears are the two green pixels, the left one is further right
FACE = Skeleton(("left_ear", "nose", "right_ear"), ((0, 1), (1, 2)), ((0, 2),), (0.03,) * 3)
EMPTY_TAPS = Taps(*(torch.zeros(0) for _ in range(3)))


def face_spec(split_ratio: float = 2.0, decode: Decode = "subbin") -> ModelSpec:
    return ModelSpec("face", FACE, (WIDTH, HEIGHT), decode=decode, split_ratio=split_ratio)


class Equivariant(nn.Module):
    """Finds the coloured pixels: exactly mirror-equivariant, written without any mirroring."""

    def __init__(self, spec: ModelSpec, sigma_bins: float = 3.0) -> None:
        super().__init__()
        self.spec, self.sigma_bins = spec, sigma_bins

    def forward(self, images: Tensor) -> PoseOutput:
        x, y = [], []
        for red, green, _ in images:
            (nose_y, nose_x), *_ = red.nonzero().tolist()
            ears = sorted(green.nonzero().tolist(), key=lambda place: -place[1])
            x.append([ears[0][1], nose_x, ears[1][1]])
            y.append([ears[0][0], nose_y, ears[1][0]])
        return PoseOutput(self.logits(x, 0), self.logits(y, 1), EMPTY_TAPS)

    def logits(self, places: list[list[int]], axis: int) -> Tensor:
        bins = torch.arange(self.spec.bins_xy[axis], dtype=torch.float64)
        centre = torch.tensor(places, dtype=torch.float64).unsqueeze(2) * self.spec.split_ratio
        return -((bins - centre) ** 2) / (2 * self.sigma_bins**2)


def faces() -> tuple[Tensor, Tensor]:
    """Images and the true poses (B, 3, 2), not near the edge."""
    poses = torch.tensor([
        [[25, 20], [17, 25], [9, 30]],
        [[22, 11], [21, 12], [20, 13]],
        [[28, 40], [12, 9], [11, 24]],
    ])  # fmt: skip
    images = torch.zeros(len(poses), 3, HEIGHT, WIDTH)
    for image, pose in zip(images, poses.tolist(), strict=True):
        for joint, (x, y) in enumerate(pose):
            image[0 if joint == 1 else 1, y, x] = 1
    return images, poses.double()


@pytest.mark.parametrize("split_ratio", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("decode", ["argmax", "subbin"])
def test_an_equivariant_network_is_right_with_and_without(
    split_ratio: float, decode: Decode
) -> None:
    spec = face_spec(split_ratio, decode)
    network = Equivariant(spec)
    images, truth = faces()
    plain = network(images)
    xy, score = flip_test(network, images, spec)
    torch.testing.assert_close(xy, truth, atol=1e-4, rtol=0)
    expected = decode_simcc(plain.x_logits, plain.y_logits, split_ratio, decode)[1]
    torch.testing.assert_close(score, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("decode", ["argmax", "subbin"])
def test_a_mirrored_image_gives_mirrored_keypoints(decode: Decode) -> None:
    spec = face_spec(decode=decode)
    network = Equivariant(spec)
    images, truth = faces()
    xy, _ = flip_test(network, images.flip(3), spec)
    torch.testing.assert_close(xy[:, :, 0], WIDTH - 1 - truth[:, [2, 1, 0], 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(xy[:, :, 1], truth[:, [2, 1, 0], 1], atol=1e-4, rtol=0)


def test_one_bin_is_the_shift_at_two_bins_a_pixel() -> None:
    x_logits = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    y_logits = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    x, y = unmirror_logits((x_logits, y_logits), face_spec())
    reversed_x = x_logits.numpy()[:, [2, 1, 0], ::-1]
    assert x[:, :, :-1].tolist() == reversed_x[:, :, 1:].tolist()
    assert x[:, :, -1].tolist() == reversed_x[:, :, -1].tolist()
    assert y.tolist() == y_logits[:, [2, 1, 0]].tolist()


def test_half_a_bin_at_one_and_a_half_bins_a_pixel() -> None:
    spec = face_spec(1.5)
    network = Equivariant(spec)
    images, truth = faces()
    x_logits, y_logits, _ = network(images.flip(3))
    x, _ = unmirror_logits((x_logits, y_logits), spec)
    bins = (torch.softmax(x, dim=2) * torch.arange(x.shape[2])).sum(dim=2)
    torch.testing.assert_close(bins / 1.5, truth[..., 0], atol=0.02, rtol=0)


class Fixed(nn.Module):
    """The same logits whatever the image: as far from equivariant as can be."""

    def __init__(self, x_logits: Tensor, y_logits: Tensor) -> None:
        super().__init__()
        self.output = PoseOutput(x_logits, y_logits, EMPTY_TAPS)

    def forward(self, images: Tensor) -> PoseOutput:
        return self.output


def test_probabilities_are_averaged_not_logits() -> None:
    """Bin 20 with p = 0.75 here; the other view says bin 51 with certainty."""
    x_logits = torch.full((1, 3, 2 * WIDTH), -torch.inf)
    x_logits[:, :, 20] = 0.0
    x_logits[:, 1, 20], x_logits[:, 1, 30] = torch.tensor([0.75, 0.25]).log()
    y_logits = torch.full((1, 3, 2 * HEIGHT), -torch.inf)
    y_logits[:, :, 40] = 0.0
    spec = face_spec(decode="argmax")
    xy, score = flip_test(Fixed(x_logits, y_logits), torch.zeros(1, 3, HEIGHT, WIDTH), spec)
    # the nose: half of 0.75 at bin 20 and half at its mirror bin 71 − 20 − 1 = 50; ties to the left
    assert xy[0, 1].tolist() == [10.0, 20.0]
    assert score[0].tolist() == pytest.approx([1.0, 1.0, 1.0])  # the y axis is certain
    _, both = flip_test(
        Fixed(x_logits, y_logits.clone().fill_(0)), torch.zeros(1, 3, HEIGHT, WIDTH), spec
    )
    assert both[0].tolist() == pytest.approx([0.5, 0.375, 0.5])


HRNET = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)


def real_pose_net(spec: ModelSpec) -> nn.Module:
    torch.manual_seed(3)
    pose = PoseNet(HRNET, spec)
    for layer in (pose.head.mlp_head_x, pose.head.mlp_head_y, pose.head.final_layer):
        nn.init.normal_(layer.weight, std=1.0)  # its init gives flat vectors: no argmax to speak of
    with torch.no_grad():  # nothing at the edges: the last bin has no mirror bin
        pose.head.mlp_head_x.bias[:2] = pose.head.mlp_head_x.bias[-2:] = -1e4
    return pose.double().eval()


def real_refined_net(spec: ModelSpec) -> nn.Module:
    pose = real_pose_net(spec)
    assert isinstance(pose, PoseNet)
    config = IGPGCNConfig(
        size_wh=spec.size_wh, tap_channels=pose.backbone.tap_channels,
        node_channels=8, joint_channels=(8, 8, 8),
    )  # fmt: skip
    return RefinedPoseNet(pose, IGPGCN(config, spec.skeleton), spec).double().eval()


def photo_crops(root: Path, spec: ModelSpec) -> Tensor:
    """Two views of a photo of the repository, normalised, in float64."""
    photo = read_image(sorted((root / "examples" / "photos").glob("*.jpg"))[0])
    height, width = photo.shape[:2]
    boxes = np.array([[0, 0, width, height], [width / 3, height / 4, width, height]], dtype=float)
    transforms = crop_transforms(boxes, spec.size_wh, spec.box_scale)
    crops = extract_crops(photo, transforms, spec.size_wh)
    return Normalise()(torch.from_numpy(crops)).double()


@pytest.mark.parametrize("decode", ["argmax", "subbin"])
@pytest.mark.parametrize("build", [real_pose_net, real_refined_net])
def test_any_network_answers_a_mirrored_photo_with_mirrored_keypoints(
    build: Callable[[ModelSpec], nn.Module], decode: Decode, root: Path
) -> None:
    """The average is symmetric in the two views, so the flip test makes any network equivariant."""
    spec = ModelSpec("t", COCO_17, (WIDTH, HEIGHT), decode=decode)
    network = build(spec)
    images = photo_crops(root, spec)
    with torch.no_grad():
        xy, score = flip_test(network, images, spec)
        mirrored, mirrored_score = flip_test(network, images.flip(3), spec)
    torch.testing.assert_close(mirror_xy(mirrored, spec), xy, atol=1e-4, rtol=0)
    order = torch.from_numpy(COCO_17.flip_order)
    torch.testing.assert_close(mirrored_score[:, order], score, atol=1e-6, rtol=0)
    plain = network(images)
    coarse = plain if isinstance(plain, PoseOutput) else network.pose(images)
    alone, _ = decode_simcc(coarse.x_logits, coarse.y_logits, spec.split_ratio, decode)
    assert (alone - xy).abs().max() > 1  # without the flip test it is not equivariant


def test_the_development_set_is_predicted_with_it(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    spec = pose_spec(recipe)
    network = real_pose_net(spec).float()
    dev = development_set(recipe, spec, DataOptions(tiny_root, tmp_path / "cache"))
    assert dev is not None
    crops, transforms = plain_crops(dev.people, dev.cache, spec, range(len(dev.people)))
    with torch.no_grad():
        xy, score = flip_test(network, Normalise()(torch.from_numpy(crops)), spec)
    found = dev.predict(network, flipped=True)
    expected = transform_points(invert_transforms(transforms), xy.numpy())
    np.testing.assert_allclose(found.xy, expected, atol=1e-4)
    np.testing.assert_allclose(found.score, score.numpy(), atol=1e-6)
    assert np.abs(dev.predict(network).xy - found.xy).max() > 1
