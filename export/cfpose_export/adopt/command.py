"""The sub-command `adopt`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from cfpose_export.adopt.adoption import AdoptOptions, plan_adoption
from cfpose_export.adopt.presets import PRESETS, SKELETONS, Colour, Score, Values
from cfpose_export.adopt.proof import prove, prove_frame
from cfpose_export.adopt.surgery import fuse
from cfpose_export.graph.rules import read_spec
from cfpose_export.proof.compare import MIN_CONFIDENCE
from cfpose_export.proof.crops import read_people
from cfpose_sdk.commands import number
from cfpose_sdk.crops import Geometry
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import write_file
from cfpose_sdk.spec import Input, Reading

_FIELDS = ("colour", "mean", "std", "box_scale", "geometry", "decode", "score", "values",
           "temperature", "split_ratio")  # fmt: skip


def add_commands(commands: Any) -> None:
    """Add the parser to argparse's sub-parsers."""
    adopt = commands.add_parser(
        "adopt",
        help="a foreign pose network (SimCC, heatmaps, MoveNet) as a cfpose artifact",
        epilog="What a file does not say comes from the preset; each option sets it otherwise.",
    )
    adopt.set_defaults(run=run_adopt)
    add = adopt.add_argument
    # fmt: off
    add("network", type=Path, help="the foreign .onnx file")
    add("-o", "--output", type=Path, help="the artifact to write (.onnx)")
    add("--preset", choices=list(PRESETS), help="the custom of a project")
    add("--license", "--licence", required=True, help="of the network, as its source states it")
    add("--skeleton", metavar="S", help=f"{', '.join(SKELETONS)}, or a JSON file")
    add("--input", choices=get_args(Input), default="crops", help="(default: %(default)s)")
    add("--flip-test", action="store_true", help="average each crop with its mirror image")
    add("--calibrate", type=Path, metavar="F.json",
        help="fit confidence and covariance on these annotated photos (COCO keypoint format)")
    add("--check", type=Path, metavar="F.json", help="print the AP on these annotated photos")
    add("--images", type=Path, help="folder of the photos of --calibrate and --check")
    add("--decode", choices=get_args(Reading), help="how the answer becomes coordinates")
    add("--geometry", choices=get_args(Geometry), help="of the crop that it was trained with")
    add("--colour", "--color", choices=get_args(Colour), help="order of the channels")
    add("--mean", type=number(0, 255), nargs=3, metavar=("R", "G", "B"), help="of pixels 0 to 255")
    add("--std", type=number(1e-3, 1e6), nargs=3, metavar=("R", "G", "B"), help="likewise")
    add("--box-scale", type=number(1e-3, 10), help="the crop's side, in sides of the box")
    add("--blur", nargs=2, metavar=("KERNEL", "SIGMA"), help="of DARK, in map pixels")
    add("--score", choices=get_args(Score), help="SimCC: of the two peaks")
    add("--values", choices=get_args(Values), help="SimCC: what the vectors hold")
    add("--temperature", type=number(1e-6, 1e6), help="SimCC: softmax(values / T)")
    add("--split-ratio", type=number(1e-3, 64),
        help="SimCC: bins a pixel, checked against the file")
    add("--oks-window", type=number(0, 100), default=1.0,
        help="decode window: its width in OKS' own")
    add("--size", type=number(1, 8192, whole=True), nargs=2, metavar=("W", "H"),
        help="of the input, where it is open")
    add("--outputs", "--network-output", dest="outputs", action="append", default=[],
        metavar="NAME", help="the output that is the pose; SimCC: twice, x first")
    add("--antialias", type=number(1, 16, whole=True), default=1, metavar="S",
        help="--input frame: S x S samples")
    add("--name", help="in the spec (default: the file's name)")
    add("--trained-on", action="append", default=[], help="a data set, for the spec")
    add("--photos", type=Path, help="people that the proof looks at (default: demo)")
    add("--min-confidence", type=number(0, 1), default=MIN_CONFIDENCE,
        help="joints below: unjudged")
    # fmt: on


def run_adopt(arguments: argparse.Namespace) -> None:
    """Write the artifact and print its proof; with --check the AP as well.

    Raises ExportError, and writes nothing, when the proof fails.
    """
    if arguments.output is None and arguments.check is None:
        raise InputError("give -o FILE.onnx to write, or --check PHOTOS.json to try")
    if arguments.antialias != 1 and arguments.input != "frame":
        raise InputError("--antialias goes with --input frame; crops come as they are")
    plan = plan_adoption(arguments.network, _options(arguments))
    report: dict[str, Any] = {}
    if arguments.calibrate is not None:
        from cfpose_export.adopt.accuracy import calibrated  # needs the bench's data sets

        plan, report["calibration"] = calibrated(plan, arguments.calibrate, arguments.images)
    crops = read_people(arguments.photos, plan.spec)
    model, drift = prove(plan, fuse(plan), crops, arguments.min_confidence)
    report["proof"] = dataclasses.asdict(drift)
    if arguments.check is not None:
        from cfpose_export.adopt.accuracy import measured_ap

        report["check"] = measured_ap(model, arguments.check, arguments.images)
    if arguments.input == "frame":
        model, drift = prove_frame(model, arguments.antialias, arguments.min_confidence)
        report["frame"] = dataclasses.asdict(drift)
    spec = read_spec(model)
    if arguments.output is not None:
        write_file(arguments.output, model.SerializeToString(deterministic=True))
        report = {"artifact": str(arguments.output), **report}
    print(json.dumps({**report, "adopted": _facts(spec)}, indent=2))


def _facts(spec: Any) -> dict[str, Any]:
    facts = dataclasses.asdict(spec.adopted)
    facts["batch"] = spec.adopted.batch or "any"
    return {
        **facts, "geometry": spec.geometry, "box_scale": spec.box_scale,
        "size_wh": list(spec.size_wh), "joints": len(spec.skeleton), "license": spec.license,
    }  # fmt: skip


def _options(arguments: argparse.Namespace) -> AdoptOptions:
    fields = {name: getattr(arguments, name) for name in _FIELDS}
    fields = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
    if arguments.blur is not None:
        try:
            fields["blur"] = (int(arguments.blur[0]), float(arguments.blur[1]))
        except ValueError as error:
            raise InputError(f"--blur takes a whole number and a number: {error}") from error
    return AdoptOptions(
        license=arguments.license,
        preset=arguments.preset,
        skeleton=arguments.skeleton,
        name=arguments.name,
        size_wh=tuple(arguments.size) if arguments.size else None,
        outputs=tuple(arguments.outputs),
        flip_test=arguments.flip_test,
        oks_window=arguments.oks_window,
        trained_on=tuple(arguments.trained_on),
        fields=fields,
    )
