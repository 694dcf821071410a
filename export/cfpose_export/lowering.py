"""The sub-commands `lower` (fp16, bf16, int8 through the gate) and `drift` (the table)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from cfpose_export.gate import write_gated
from cfpose_export.gate_report import LIMITS, Limits, Precision
from cfpose_export.graph import load_model, read_spec
from cfpose_export.proof_crops import (
    CALIBRATION_COUNT,
    CALIBRATION_SEED,
    HARD_COUNT,
    read_hard,
)
from cfpose_export.quantise import calibrate
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import BUNDLED_MODEL


def add_commands(commands: Any) -> None:
    """Add both parsers to argparse's sub-parsers."""
    _add_lower(commands)
    _add_drift(commands)


def _add_lower(commands: Any) -> None:
    lower = commands.add_parser(
        "lower",
        help="write a proven float32 graph in fp16, bf16 or int8, if it stays the same model",
        epilog="Limits that are not given are those of the precision: "
        + "; ".join(f"{name}: {_words(limits)}" for name, limits in LIMITS.items()),
    )
    lower.add_argument("model", help="a float32 .onnx that cfpose-export proved, or: default")
    lower.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    lower.add_argument("--precision", choices=get_args(Precision), required=True)
    lower.add_argument("--keep", action="append", default=[], metavar="MODULE", help="in float32")
    lower.add_argument("--auto-keep", action="store_true", help="keep what drifts most, and retry")
    lower.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    lower.add_argument("--crops", type=int, default=HARD_COUNT, help="(default: %(default)s)")
    lower.add_argument("--calibration", type=Path, help="as --photos, for int8's ranges")
    lower.add_argument("--max-p99", type=float, help="crop pixels, of the file")
    lower.add_argument("--max-rounded-p99", type=float, help="crop pixels, all values rounded")
    lower.add_argument("--min-oks", type=float, help="mean OKS of the poses before and after")
    lower.add_argument("--min-confidence", type=float, help="joints below are not compared")


def _add_drift(commands: Any) -> None:
    drift = commands.add_parser(
        "drift",
        help="measure what each precision does to float32 models; writes no model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    drift.add_argument("models", nargs="+", help="float32 .onnx files, or: default")
    drift.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    drift.add_argument("--crops", type=int, default=HARD_COUNT, help="crops to compare")
    drift.add_argument("--min-confidence", type=float, default=0.3, help="joints below: uncompared")
    drift.add_argument("--precision", action="append", choices=get_args(Precision), help="only")
    drift.add_argument("--no-culprits", action="store_true", help="do not look for the worst")
    drift.add_argument(
        "--ap",
        nargs=3,
        action="append",
        default=[],
        metavar=("FILE", "IMAGES", "EVERY"),
        help="measure AP on annotated photos, those whose id is divisible by EVERY",
    )
    drift.add_argument("--json", type=Path, help="file to write; other models in it stay")


def run_lower(arguments: argparse.Namespace) -> None:
    """Write one graph, or raise ExportError."""
    reference = load_model(_path(arguments.model))
    spec, precision = read_spec(reference), arguments.precision
    ranges = None
    if precision == "int8":
        folder = arguments.calibration or arguments.photos
        crops = read_hard(folder, spec, CALIBRATION_COUNT, seed=CALIBRATION_SEED).crops
        ranges = calibrate(reference, crops)
    report = write_gated(
        arguments.output,
        reference,
        precision,
        read_hard(arguments.photos, spec, arguments.crops),
        _limits(arguments),
        keep=arguments.keep,
        auto_keep=arguments.auto_keep,
        ranges=ranges,
    )
    print(report.to_json(), end="")


def run_drift(arguments: argparse.Namespace) -> None:
    """Measure, print and, with --json, write the table's data."""
    from cfpose_export.drift import ApSource, DriftOptions, measure_drift, update  # needs bench

    options = DriftOptions(
        photos=arguments.photos,
        crops=arguments.crops,
        min_confidence=arguments.min_confidence,
        precisions=tuple(arguments.precision or get_args(Precision)),
        culprits=not arguments.no_culprits,
        ap=tuple(ApSource(Path(f), Path(i), _every(every)) for f, i, every in arguments.ap),
    )
    command = _command(sys.argv[1:])
    for model in arguments.models:
        measured = measure_drift(_path(model), options)
        print(json.dumps(measured, indent=1))
        if arguments.json is not None:
            update(arguments.json, command, [measured])


def _every(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--ap FILE IMAGES EVERY: EVERY is a whole number from 1 on, got {text!r}")
    return int(text)


def _path(name: str) -> Path:
    return BUNDLED_MODEL if name == "default" else Path(name)


def _command(arguments: Sequence[str]) -> str:
    """What was typed, without where the result went and what says something of one machine."""
    words = list(arguments)
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    parts = [Path(word).parts[-2:] if Path(word).is_absolute() else (word,) for word in words]
    return shlex.join(["cfpose-export", *("/".join(part) for part in parts)])


def _limits(arguments: argparse.Namespace) -> Limits:
    given = {
        "p99_px": arguments.max_p99,
        "rounded_p99_px": arguments.max_rounded_p99,
        "oks_mean": arguments.min_oks,
        "floor": arguments.min_confidence,
    }
    limits = LIMITS[arguments.precision]
    return dataclasses.replace(limits, **{k: v for k, v in given.items() if v is not None})


def _words(limits: Limits) -> str:
    return (
        f"p99 {limits.p99_px:g} px, rounded {limits.rounded_p99_px:g} px, "
        f"OKS {limits.oks_mean:g}, confidence p99 {limits.confidence_p99:g}, "
        f"covariance {limits.spread_median:g}"
    )
