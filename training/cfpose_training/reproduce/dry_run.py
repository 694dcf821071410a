"""What a plan would do, as text: targets, steps, cost. Needs neither data nor GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cfpose_training.config import Recipe
from cfpose_training.reproduce.estimate import (
    CARDS,
    SHARE,
    Cost,
    Networks,
    costs,
    decoded_bytes,
    kept_bytes,
    people_of,
)
from cfpose_training.reproduce.miniature import IN_SHORT
from cfpose_training.reproduce.plan import Options, Plan, boxes_of
from cfpose_training.reproduce.steps import Journal
from cfpose_training.reproduce.table import heading
from cfpose_training.reproduce.targets import FIGURES, TEST_DEV, Target


def describe(plan: Plan, options: Options, recipe: Recipe, tflops: float | None) -> str:
    """The whole text; `tflops`: what a card sustains, in place of the listed cards."""
    lines = [heading(options), *_targets(plan, options), "", f"{len(plan.steps)} steps:"]
    records = Journal.open(options.out).records
    for number, step in enumerate(plan.steps, start=1):
        done = " (done)" if records.get(step.name, {}).get("done") else ""
        lines += [f"{number:3} {step.name}{done}", f"      {step.command}"]
    lines += ["    table", f"      writes {options.out / 'table.md'}, .csv and .json"]
    lines += [f"{len(options.seeds)} seed(s), {options.devices} step(s) side by side, one a device"]
    if len(options.seeds) == 1 and not options.official:
        lines.append(
            "one seed tells no spread: steps of Table IV are 0.3 to 0.9 AP; take --seeds 3"
        )
    if options.from_scratch:
        lines.append("from scratch: random weights, where the paper starts from ImageNet's")
    if options.miniature:
        lines += [] if options.official else ["", IN_SHORT]
    else:
        lines += ["", *_costs(plan, options, recipe, tflops)]
    return "\n".join(lines)


def _targets(plan: Plan, options: Options) -> Iterator[str]:
    for row in plan.rows:
        yield f"  target of {row.target.title}: {_figures(row.target)}"
    if options.dataset == "coco":
        yield f"  {TEST_DEV}"


def _figures(target: Target) -> str:
    if not target.figures:
        return "none"
    return ", ".join(f"{name} {target.figures[name]}" for name in FIGURES if name in target.figures)


def _costs(plan: Plan, options: Options, recipe: Recipe, tflops: float | None) -> list[str]:
    train, dev, counted = people_of(recipe, options.data_root, options.dataset)
    networks = Networks.of(recipe)
    found = costs(plan, networks, (train, dev))
    if not found:
        return ["nothing is trained; the photos are measured on the CPU or, with onnxruntime-gpu, "
                f"on a GPU; boxes: {boxes_of(options)}"]  # fmt: skip
    where = "counted in the annotations" if counted else "as published; no annotations are here"
    lines = [
        "Estimates, by arithmetic; nobody has measured them:",
        f"  {train} people to train on, {dev} to measure on ({where})",
        f"  {sum(cost.flop for cost in found) / 1e18:.1f} EFLOP of training: multiply-adds of the "
        f"networks x 2, x 3 for learning; + the teacher's and the figures of every epoch",
        *_hours(found, options.devices, tflops),
    ]
    memory = max(found, key=lambda cost: cost.memory or 0)
    lines.append(
        f"  GPU memory: about {(memory.memory or 0) / 2**30:.0f} GiB in {memory.step!r} at batch "
        f"{recipe.stage1.batch_size} in float32: all maps and their gradients, an upper bound; "
        f"what a step took stands in the table"
    )
    photos = decoded_bytes(recipe, options.data_root, options.dataset)
    kept = "unknown before the annotations are here" if photos is None else f"{photos / 1e9:.0f} GB"
    lines.append(
        f"  disk: decoded photos {kept}, once for all runs (--cache none: none); "
        f"{kept_bytes(plan, networks) / 1e9:.0f} GB of states, checkpoints and graphs in "
        f"{options.out}"
    )
    return lines


def _hours(found: Sequence[Cost], devices: int, tflops: float | None) -> Iterator[str]:
    cards = {f"card of {tflops:g} TFLOP/s": tflops} if tflops is not None else {
        name: SHARE * peak for name, peak in CARDS.items()
    }  # fmt: skip
    if tflops is None:
        yield (
            f"  hours at {SHARE:.0%} of a card's peak in TF32 (V100: float32) by its data sheet; "
            f"the share is a guess: give --tflops once you know yours"
        )
    for name, sustained in cards.items():
        parts = [cost.hours(sustained) for cost in found]
        alone = f"the longest step {max(parts):.0f}"
        side = f", on {devices} at once at least {sum(parts) / devices:.0f}" if devices > 1 else ""
        yield f"    {name}: {sum(parts):.0f} hours, {alone}{side}"
