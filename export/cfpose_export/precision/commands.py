"""The commands for lower precisions: `lower` writes a graph, `drift` measures and writes none."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_args

from cfpose_export.graph.half_weights import whole_weights
from cfpose_export.graph.rules import LowPrecision, is_finder, load_model, model_path, read_spec
from cfpose_export.precision.finder_gate import write_gated_finder
from cfpose_export.precision.gate import LIMITS, write_gated
from cfpose_export.precision.int8 import calibrate_on_people
from cfpose_export.proof.crops import HARD_COUNT, read_hard
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.commands import number
from cfpose_sdk.errors import InputError


def add_commands(commands: Any) -> None:
    """Add `lower` and `drift` to argparse's sub-parsers."""
    _add_lower(commands)
    _add_drift(commands)


def _add_lower(commands: Any) -> None:
    lower = commands.add_parser(
        "lower",
        help="write a proven float32 graph in fp16, bf16 or int8, if it stays the same model",
        epilog="Limits that are not given are those of the precision: "
        + "; ".join(f"{name}: {limits}" for name, limits in LIMITS.items()),
    )
    lower.set_defaults(run=_lower)
    lower.add_argument(
        "model", help="a float32 .onnx with its proof, or a bundled model; default-finder"
    )
    lower.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    lower.add_argument("--precision", choices=get_args(LowPrecision), required=True)
    lower.add_argument(
        "--keep", action="append", default=[], metavar="MODULE", help="a module that stays float32"
    )
    lower.add_argument(
        "--auto-keep",
        action="store_true",
        help="keep the modules that drift most in float32, and try again",
    )
    lower.add_argument(
        "--no-culprits", action="store_true", help="do not look for the modules that drift most"
    )
    lower.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    lower.add_argument(
        "--crops",
        type=number(1, whole=True),
        default=HARD_COUNT,
        help="crops to compare (default: %(default)s)",
    )
    lower.add_argument(
        "--calibration", type=Path, help="photos for the ranges of int8 (default: --photos)"
    )
    lower.add_argument(
        "--max-p99", type=number(0), help="p99 of the keypoints, in crop pixels, of the file"
    )
    lower.add_argument(
        "--max-rounded-p99", type=number(0), help="the same with every lowered value rounded"
    )
    lower.add_argument(
        "--min-oks", type=number(0, 1), help="mean OKS of the poses before and after"
    )
    lower.add_argument("--min-confidence", type=number(0, 1), help="joints below are not compared")


def _add_drift(commands: Any) -> None:
    drift = commands.add_parser(
        "drift",
        help="measure what each precision does to float32 models; writes no model",
    )
    drift.set_defaults(run=_drift)
    drift.add_argument("models", nargs="+", help="float32 .onnx files, or bundled models")
    drift.add_argument("--photos", type=Path, help="folder with people.json (default: demo)")
    drift.add_argument(
        "--crops",
        type=number(1, whole=True),
        default=HARD_COUNT,
        help="crops to compare (default: %(default)s)",
    )
    drift.add_argument(
        "--min-confidence",
        type=number(0, 1),
        default=0.3,
        help="joints below are not compared (default: %(default)s)",
    )
    drift.add_argument(
        "--precision",
        action="append",
        choices=get_args(LowPrecision),
        help="one precision only; may be repeated",
    )
    drift.add_argument(
        "--no-culprits", action="store_true", help="do not look for the modules that drift most"
    )
    drift.add_argument(
        "--ap",
        nargs=3,
        action="append",
        default=[],
        metavar=("FILE", "IMAGES", "EVERY"),
        help="measure AP on annotated photos, those whose id is divisible by EVERY",
    )
    drift.add_argument("--json", type=Path, help="file to write; other models in it stay")


def _lower(arguments: argparse.Namespace) -> None:
    """Print the gate's report of the graph that was written."""
    limits = {
        "p99_px": arguments.max_p99,
        "rounded_p99_px": arguments.max_rounded_p99,
        "oks_mean": arguments.min_oks,
        "floor": arguments.min_confidence,
    }
    precision, photos = arguments.precision, arguments.photos
    count, calibration = arguments.crops, arguments.calibration
    output, keep, auto_keep = arguments.output, arguments.keep, arguments.auto_keep
    blame = not arguments.no_culprits
    reference = whole_weights(load_model(model_path(arguments.model)))
    if is_finder(reference):
        if limited := [name for name, value in limits.items() if value is not None]:
            raise InputError(f"a finder has its own limits; leave out those of poses: {limited}")
        if arguments.auto_keep:
            raise InputError("--auto-keep is for pose models; name modules with --keep")
        finder_report = write_gated_finder(output, reference, precision, photos, keep)
        print(finder_report.to_json(), end="")
        return
    ranges = calibrate_on_people(reference, calibration or photos) if precision == "int8" else None
    report = write_gated(
        output,
        reference,
        precision,
        read_hard(photos, read_spec(reference), count),
        dataclasses.replace(
            LIMITS[precision], **{name: v for name, v in limits.items() if v is not None}
        ),
        keep=keep,
        auto_keep=auto_keep,
        blame=blame,
        ranges=ranges,
    )
    print(report.to_json(), end="")


def _drift(arguments: argparse.Namespace) -> None:
    """Measure, print and, with --json, write the table's data."""
    from cfpose_export.precision.drift import (  # needs bench
        ApSource,
        DriftOptions,
        command_line,
        measure_drift,
        update,
    )

    models, record = arguments.models, arguments.json
    options = DriftOptions(
        photos=arguments.photos,
        crops=arguments.crops,
        min_confidence=arguments.min_confidence,
        precisions=tuple(arguments.precision or get_args(LowPrecision)),
        culprits=not arguments.no_culprits,
        ap=tuple(ApSource(Path(f), Path(i), _every(every)) for f, i, every in arguments.ap),
    )
    command = command_line(sys.argv[1:])
    for model in models:
        measured = measure_drift(model_file(model), options)
        print(json.dumps(measured, indent=1))
        if record is not None:
            update(record, command, [measured])


def _every(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--ap FILE IMAGES EVERY: EVERY is a whole number from 1 on, got {text!r}")
    return int(text)
