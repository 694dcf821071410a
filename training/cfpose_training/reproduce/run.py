"""Run a plan to its table: write its recipes, check its files, run its steps."""

from __future__ import annotations

import dataclasses
import sys

from cfpose_sdk.errors import InputError, require
from cfpose_training.config import Recipe
from cfpose_training.reproduce import miniature
from cfpose_training.reproduce.plan import RECIPES, Options, Plan, check_files, make_plan
from cfpose_training.reproduce.steps import run_steps
from cfpose_training.reproduce.table import write_table
from cfpose_training.reproduce.variants import in_layout, paper_recipe, write_variant


def planned(options: Options) -> tuple[Options, Plan, Recipe]:
    """The plan of some options; of a miniature with the places of its own data."""
    recipe = paper_recipe(options.dataset)
    if options.miniature:
        root = options.out / miniature.DATA_FOLDER
        options = dataclasses.replace(options, data_root=root, boxes="", imagenet=None)
        recipe = recipe if options.official else miniature.small(recipe)
    else:
        recipe = in_layout(recipe, options.dataset, options.data_root)
    return options, make_plan(options, recipe), recipe


def reproduce(options: Options) -> str:
    """Run what is not done yet; returns the table as Markdown.

    What a step needs is asked for before any begins. Raises DatasetError for missing files,
    TrainingError as `run_steps` and `write_variant`.
    """
    why = "cfpose-train reproduce, which exports and measures what it trains,"
    require("onnx", "onnxscript", extra="export", why=why)
    require("onnxruntime", extra="cpu", why=why)
    _check_devices(options)
    options, plan, recipe = planned(options)
    if options.miniature:
        if not options.official:
            print(f"cfpose-train: {miniature.IN_SHORT}", file=sys.stderr, flush=True)
        miniature.write_data(options.data_root, options.dataset, recipe)
    check_files(options, plan)
    for name, variant in plan.recipes.items():
        write_variant(options.out / RECIPES / name, variant)
    journal = run_steps(plan.steps, options.out, options.devices)
    return write_table(plan, options, journal.records)


def _check_devices(options: Options) -> None:
    """Raise InputError where a step would get a GPU that is not there, and so the CPU."""
    import torch

    count = torch.cuda.device_count()
    if options.accelerator != "cpu" and 0 < count < options.devices:
        raise InputError(
            f"--devices {options.devices}, and PyTorch reaches {count} GPU(s) here; each step "
            f"takes one"
        )
