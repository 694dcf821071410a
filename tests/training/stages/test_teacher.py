"""A teacher's answer and its confidence, against teachers whose answers are known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cfpose_sdk.skeleton import COCO_17, Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.flip import average_logits, unmirror_logits
from cfpose_training.nets.hrnet import HRNetConfig, Taps
from cfpose_training.nets.pose_net import PoseNet, PoseOutput
from cfpose_training.stages.base import ask_teacher, confidence_weights

WIDTH, HEIGHT = 36, 48
PAIR = Skeleton(("left_eye", "right_eye"), ((0, 1),), ((0, 1),), (0.03, 0.03))
NO_TAPS = Taps(*(torch.zeros(0) for _ in range(3)))


def pair_spec() -> ModelSpec:
    return ModelSpec("pair", PAIR, (WIDTH, HEIGHT), decode="argmax")


class Brightest(nn.Module):
    """Of the red and the green pixel the one further right is the left eye, in any view.

    It errs by `offset` pixels to the right, in its view.
    """

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.calls = 0

    def forward(self, images: Tensor) -> PoseOutput:
        self.calls += 1
        x, y = [], []
        for image in images:
            places = [image[c].nonzero()[0].tolist() for c in range(2)]
            places.sort(key=lambda place: -place[1])  # the left eye is further right, in any view
            x.append([place[1] + self.offset for place in places])
            y.append([place[0] for place in places])
        bins = (torch.arange(2.0 * side) for side in (WIDTH, HEIGHT))
        logits = [
            -((axis - 2 * torch.tensor(values, dtype=torch.float64)[..., None]) ** 2) / 18
            for axis, values in zip(bins, (x, y), strict=True)
        ]
        return PoseOutput(logits[0], logits[1], NO_TAPS)


def eyes() -> tuple[Tensor, Tensor]:
    truth = torch.tensor([[[24, 10], [12, 11]], [[20, 30], [15, 33]]])
    images = torch.zeros(2, 3, HEIGHT, WIDTH)
    for image, pose in zip(images, truth.tolist(), strict=True):
        for colour, (x, y) in enumerate(pose):
            image[colour, y, x] = 1
    return images, truth.double()


def test_a_lean_to_one_side_is_averaged_away() -> None:
    """An error that does not turn with the image has the other sign after mirroring back."""
    images, truth = eyes()
    teacher, spec = Brightest(offset=1.0), pair_spec()
    plain = ask_teacher(teacher, images, spec, flip=False)  # type: ignore[arg-type]
    assert teacher.calls == 1
    both = ask_teacher(teacher, images, spec, flip=True)  # type: ignore[arg-type]
    assert teacher.calls == 3
    for answer, lean in ((plain, 1.0), (both, 0.0)):
        xy, _ = decode_simcc(*answer[:2], spec.split_ratio, "argmax")
        torch.testing.assert_close(xy[..., 0], truth[..., 0] + lean, atol=1e-6, rtol=0)
        torch.testing.assert_close(xy[..., 1], truth[..., 1], atol=1e-6, rtol=0)


def test_a_symmetric_teacher_says_the_same_with_and_without() -> None:
    images, _ = eyes()
    teacher, spec = Brightest(offset=0.0), pair_spec()
    plain, both = (ask_teacher(teacher, images, spec, flip=flip) for flip in (False, True))  # type: ignore[arg-type]
    for one, two in zip(plain[:2], both[:2], strict=True):
        # but for the last bin, whose mirror bin is outside
        torch.testing.assert_close(
            torch.softmax(one, -1)[..., :-1], torch.softmax(two, -1)[..., :-1], atol=1e-9, rtol=0
        )


def test_averaged_logits_are_those_of_the_mean_probability() -> None:
    generator = torch.Generator().manual_seed(4)
    views = [
        PoseOutput(
            torch.randn(2, 2, 2 * WIDTH, generator=generator).double() * 5,
            torch.randn(2, 2, 2 * HEIGHT, generator=generator).double() * 5,
            NO_TAPS,
        )
        for _ in range(2)
    ]
    x, y = average_logits(views[0][:2], unmirror_logits(views[1][:2], pair_spec()))
    swapped = [1, 0]
    reversed_x = views[1].x_logits[:, swapped].flip(2)
    shifted = torch.cat([reversed_x[..., 1:], reversed_x[..., -1:]], dim=2)
    for found, one, two in (
        (x, views[0].x_logits, shifted),
        (y, views[0].y_logits, views[1].y_logits[:, swapped]),
    ):
        mean = (torch.softmax(one, -1) + torch.softmax(two, -1)) / 2
        torch.testing.assert_close(torch.softmax(found, -1), mean, atol=1e-14, rtol=1e-12)


def test_certain_answers_stay_finite() -> None:
    """A bin of probability exp(-300) is 0 in float32; its logarithm is still wanted."""
    sharp = torch.zeros(1, 2, 2 * WIDTH)
    sharp[..., 20] = 300.0
    output = PoseOutput(sharp, torch.zeros(1, 2, 2 * HEIGHT), NO_TAPS)
    x, _ = average_logits(output[:2], unmirror_logits(output[:2], pair_spec()))
    assert x.isfinite().all()


def test_the_network_is_left_as_it_was_and_its_maps_are_of_the_crop() -> None:
    torch.manual_seed(5)
    spec = ModelSpec("t", COCO_17, (WIDTH, HEIGHT))
    config = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
    network = PoseNet(config, spec).eval()
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(2, 3, HEIGHT, WIDTH)
    answer = ask_teacher(network, images, spec, flip=True)
    with torch.no_grad():
        plain = network(images)
    assert torch.equal(answer.taps.quarter, plain.taps.quarter)
    assert not answer.x_logits.requires_grad
    assert not torch.equal(answer.x_logits, plain.x_logits)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_weights_are_scores_over_their_mean_where_counted() -> None:
    peaks = torch.tensor([[0.8, 0.2], [0.5, 0.9]])
    x_logits = torch.full((2, 2, 2 * WIDTH), -torch.inf)
    x_logits[..., 10], x_logits[..., 30] = peaks.log(), (1 - peaks).log()
    y_logits = torch.zeros(2, 2, 2 * HEIGHT)  # flat: the greater of both is the x axis's
    answer = PoseOutput(x_logits, y_logits, NO_TAPS)
    score = torch.maximum(peaks, 1 - peaks)
    everywhere = confidence_weights(answer, pair_spec(), torch.ones(2, 2))
    torch.testing.assert_close(everywhere, score / score.mean())
    counted = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    some = confidence_weights(answer, pair_spec(), counted)
    assert (some * counted).sum().item() == pytest.approx(2.0)
    torch.testing.assert_close(some, score / score[:, 0].mean())
    assert confidence_weights(answer, pair_spec(), torch.zeros(2, 2)).isfinite().all()


def test_a_teacher_in_bfloat16_says_nearly_the_same() -> None:
    torch.manual_seed(3)
    spec = ModelSpec("t", COCO_17, (WIDTH, HEIGHT))
    tiny = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
    network, images = PoseNet(tiny, spec).eval(), torch.randn(3, 3, HEIGHT, WIDTH)
    for flip in (False, True):
        exact, rounded = (
            ask_teacher(network, images, spec, flip=flip, bf16=bf16) for bf16 in (False, True)
        )
        assert exact.taps.quarter.dtype == torch.float32
        assert rounded.taps.quarter.dtype == torch.bfloat16
        for a, b in zip(exact[:2], rounded[:2], strict=True):
            assert not torch.equal(a, b.float())
            torch.testing.assert_close(a, b.float(), rtol=0.02, atol=0.02)
