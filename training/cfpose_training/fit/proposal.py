"""`cfpose-train init`: a recipe for annotations of one's own, with the options of its start."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.checkpoints.initial import Initial
from cfpose_training.fit.facts import Facts
from cfpose_training.nets.efficientnet import LiteConfig
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.movenet import MoveNetConfig
from cfpose_training.nets.pose_net import BackboneConfig
from cfpose_training.skeletons import columns

BATCH = 16
VISITS = 4000  # of people in a run of few photos; joints that the start does not know need twice
EPOCHS = (8, 40)
MANY = 1000  # people: from here on more layers learn
TRAIN_MARGIN = 1.1  # the margin of training over that of the artifact: zoom reaches both ways


@dataclass(frozen=True)
class Proposal:
    """What a recipe is made of."""

    name: str
    facts: Facts
    skeleton: Skeleton
    start: Initial | None
    annotations: Path
    images: Path
    target: Path  # the recipe's file
    init: str  # the start as it was asked for


def write_text(proposal: Proposal) -> str:
    """The recipe, with a comment where a choice was made.

    Raises TrainingError when there is no network to take: without a start none is proposed.
    """
    facts, start = proposal.facts, proposal.start
    if start is None:
        raise TrainingError("a recipe needs a network; give --from, or --size w32")
    root = Path(os.path.commonpath([proposal.annotations.resolve(), proposal.images.resolve()]))
    if root == proposal.annotations.resolve():
        root = root.parent
    folder = proposal.target.resolve().parent
    shown_root = os.path.relpath(root, folder) if root.is_relative_to(folder) else str(root)
    parts = [
        _head(proposal),
        _joints(proposal.skeleton),
        _network(proposal.name, start, facts.people),
        _training(proposal),
        _fit(proposal, shown_root),
        _source(proposal, root),
    ]
    return "\n".join(parts)


def known_joints(proposal: Proposal) -> int:
    """How many of the joints the start knows."""
    given = () if proposal.start is None else proposal.start.joints
    return sum(place is not None for place in columns(proposal.skeleton.keypoints, given))


def _head(proposal: Proposal) -> str:
    start = proposal.start
    spec = None if start is None else start.spec
    trained = [*(() if spec is None else spec.trained_on), f"{proposal.name}: own annotations"]
    licence = f"{spec.license}; own annotations" if spec is not None and spec.license else ""
    return (
        f"# {proposal.name}: {proposal.facts.people} people on {proposal.facts.photos} photos\n"
        f"#     cfpose-train fit --recipe {proposal.target.name} --out runs/{proposal.name}\n"
        f"\n"
        f"# what the artifact says of itself; correct it where it is wrong\n"
        f"trained_on = {_list(trained)}\n"
        f"license = {json.dumps(licence, ensure_ascii=False)}\n"
    )


def _joints(skeleton: Skeleton) -> str:
    sigmas = ", ".join(f"{sigma:g}" for sigma in skeleton.oks_sigmas)
    return (
        f"[joints]\n"
        f"keypoints = {_list(skeleton.keypoints)}\n"
        f"limbs = {_pairs(skeleton.limbs)}  # drawn; pairs of joints, counted from 0\n"
        f"flip_pairs = {_pairs(skeleton.flip_pairs)}  # left and right: they swap in a mirror\n"
        f"# how exactly people place a joint, as a share of the person; by name, else 0.067\n"
        f"oks_sigmas = [{sigmas}]\n"
    )


def _network(name: str, start: Initial, people: int) -> str:
    spec, frozen = start.spec, _frozen(start.backbone, people)
    lines = ["[pose]", f"name = {json.dumps(name)}"]
    if isinstance(start.backbone, MoveNetConfig):
        lines.append(f'movenet = {{ body = "{start.backbone.body}", frozen = {frozen} }}')
    elif isinstance(start.backbone, LiteConfig):
        neck, body = list(start.backbone.neck), start.backbone.body
        lines.append(f'lite = {{ body = "{body}", neck = {neck}, frozen = {frozen} }}')
    else:
        lines.append(_hrnet(start.backbone))
    lines.append(f'head = "{start.head}"')
    if spec is None:
        lines += ['size_wh = [192, 256]', 'decode = "subbin"', 'evidence = "spread"',
                  "oks_window = 1.0", "box_scale = 1.25"]  # fmt: skip
        if start.head == "simcc":
            lines.append('head_init = "marginals"')
        return "\n".join(lines) + "\n"
    trained = round(TRAIN_MARGIN * spec.box_scale, 3)
    return "\n".join([
        *lines,
        "# as the start has them",
        f"size_wh = {list(spec.size_wh)}",
        f"split_ratio = {spec.split_ratio}",
        f'decode = "{spec.decode}"',
        f"oks_window = {spec.oks_window}",
        f'evidence = "{spec.evidence}"',
        f"spread_temperature = {spec.spread_temperature}",
        f"spread_isotropy = {spec.spread_isotropy}",
        f"box_scale = {trained}  # of the crops in training",
        f"deploy_box_scale = {spec.box_scale}  # of the artifact's",
        'head_init = "marginals"' if start.head == "simcc" else "",
    ]).rstrip() + "\n"  # fmt: skip


def _frozen(backbone: BackboneConfig, people: int) -> int:
    """How much of the body keeps its weights: more of it where there are few people."""
    if isinstance(backbone, MoveNetConfig):
        return 4 if people < MANY else 3
    return 11 if people < MANY else 5


def _hrnet(config: HRNetConfig) -> str:
    return (
        f"hrnet = {{ width = {config.width}, stem = {config.stem}, bottlenecks = "
        f"{config.bottlenecks}, modules = {list(config.modules)}, blocks = {config.blocks} }}"
    )


def _training(proposal: Proposal) -> str:
    facts = proposal.facts
    training = facts.people - facts.held_out
    fresh = known_joints(proposal) < len(proposal.skeleton)
    visits = VISITS * (2 if fresh else 1)
    low, high = EPOCHS
    epochs = min(max(low, math.ceil(visits / max(1, training))), high * (2 if fresh else 1))
    batch = max(1, min(BATCH, training))
    repeat = max(1, math.ceil(4 * batch / max(1, training)))
    steps = training * repeat // batch * epochs
    half = 0.2 if len(proposal.skeleton) > 8 else 0.0
    rate = "5e-4" if fresh else "3e-5" if facts.people < MANY // 2 else "1e-4"
    text = f"""[labels]
kind = "gaussian"
sigma_bins = 4.0

# how the crops differ from epoch to epoch; a look at them: OUT/stage1/batch0.jpg
[augment]
box_sigma = 0.06  # edges of the box are off by this share, as a detector's are
zoom_sigma = 0.25
rotation_p = 0.6
rotation_sigma_deg = 30.0
half_body_p = {half}
contrast = 0.3
brightness = 30.0

[stage1]
epochs = {epochs}
batch_size = {batch}
optimiser = "adamw"
lr = {rate}  # {"the head is new" if fresh else "small steps: the start knows these joints"}
weight_decay = 0.05
schedule = "cosine"
final_lr = 1e-6
warmup_steps = {max(1, steps // 20)}
clip_norm = 5.0
ema_decay = 0.99
seed = 2026

[stage2]  # of [fit] refiner = true
node_channels = 64
joint_channels = [64, 32, 32]
output = "residual"

[stage2.optim]
epochs = {max(1, epochs // 2)}
batch_size = {batch}
schedule = "cosine"
clip_norm = 1.0
ema_decay = 0.99
"""
    return text


def _fit(proposal: Proposal, root: str) -> str:
    known, total = known_joints(proposal), len(proposal.skeleton)
    lines = ["[fit]", f"data_root = {json.dumps(root, ensure_ascii=False)}"]
    start = proposal.start
    if proposal.init and start is not None:
        lines.append(f"init = {json.dumps(proposal.init, ensure_ascii=False)}")
        lines.append(f"# {known} of the {total} joints are known to it by name")
        share = _share(proposal.facts.people) if known == total and start.is_whole else 0.0
        lines.append(
            f"init_share = {share}  # of the start in the mean of both: what few photos do not "
            f"show is kept"
        )
    lines.append("refiner = false")
    return "\n".join(lines) + "\n"


def _share(people: int) -> float:
    return 0.5 if people < MANY // 2 else 0.3 if people < 5 * MANY else 0.0


def _source(proposal: Proposal, root: Path) -> str:
    facts = proposal.facts
    annotations = os.path.relpath(proposal.annotations.resolve(), root)
    images = os.path.relpath(proposal.images.resolve(), root)
    training = facts.people - facts.held_out
    batch = max(1, min(BATCH, training))
    repeat = max(1, math.ceil(4 * batch / max(1, training)))
    return (
        f"[[sources]]\n"
        f"name = {json.dumps(proposal.name)}\n"
        f"annotations = {json.dumps(annotations, ensure_ascii=False)}\n"
        f"images = {json.dumps(images, ensure_ascii=False)}\n"
        f"repeat = {repeat}\n"
        f"holdout_every = {facts.holdout_every}  # photos whose id this divides are for "
        f"development: {facts.held_out} people\n"
    )


def _list(values: Sequence[str]) -> str:
    return json.dumps(list(values), ensure_ascii=False)


def _pairs(pairs: Sequence[tuple[int, int]]) -> str:
    return json.dumps([list(pair) for pair in pairs])
