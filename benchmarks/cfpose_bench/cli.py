"""Accuracy and latency of pose models on annotated photos, in one report."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from cfpose_bench import peer_commands
from cfpose_bench.accuracy.crowdpose import OPEC_12
from cfpose_bench.data.annotations import is_crowdpose
from cfpose_bench.data.dataset import DATA_VARIABLE, KeypointDataset, find_dataset
from cfpose_bench.measurement import physical_cores
from cfpose_bench.models.open import TUNED
from cfpose_bench.report.page import write_page
from cfpose_bench.report.report import (
    Bounds,
    read_report,
    reasons,
    report,
    side_table,
    table,
    write_csv,
    write_json,
)
from cfpose_bench.run.protocol import PRESETS, Protocol, with_preset
from cfpose_bench.run.session import Plan, measure
from cfpose_bench.runtimes import command as runtimes_command
from cfpose_sdk.backends.tuned import Precision
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import check_command_outputs, what_is_at

WORK = Path(".cfpose-bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 when a figure crosses a bound.

    Wrong use and bad input raise CfposeError, which the console script turns into exit code 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None and options.dataset is None:
        parser.error("the following arguments are required: --dataset")
    if options.command is not None and arguments[0] != options.command:
        parser.error(f"options go behind the sub-command {options.command}, not before it")
    check_command_outputs(vars(options), "json", "csv", "html", "output")
    return int(options.run(options))


def _bench(options: argparse.Namespace) -> int:
    bounds, plan, limit = _bounds(options), _plan(options), options.limit
    json, csv, html = options.json, options.csv, options.html
    dataset = find_dataset(options.dataset, options.images, options.data_root, options.mirror)
    if limit is not None:
        dataset = dataset.limited(limit)
    _check_bounds(bounds, plan, dataset)
    return measure_and_report(dataset, plan, bounds, json=json, csv=csv, html=html)


def measure_and_report(
    dataset: KeypointDataset,
    plan: Plan,
    bounds: Bounds,
    *,
    json: Path | None = None,
    csv: Path | None = None,
    html: Path | None = None,
) -> int:
    """Measure, write the files that are named, print the tables; returns 1 over a bound, else 0."""
    try:
        rows, protocol = measure(plan, dataset)
    except KeyboardInterrupt:
        if plan.work is not None:
            print("cfpose-bench: the same command goes on from here", file=sys.stderr)
        raise
    record = report(protocol, rows)
    if json is not None:  # saved before anything that can fail
        write_json(record, json)
    if csv is not None:
        write_csv(record, csv)
    failed = reasons(record, rows, bounds)
    if html is not None:
        write_page(record, rows, dataset, html, failed)
    print(_heading(protocol))
    print(table(rows))
    print()
    print(side_table(rows))
    for reason in failed:
        print(reason)
    return 1 if failed else 0


def _plan(options: argparse.Namespace) -> Plan:
    boxes = tuple(dict.fromkeys(options.boxes)) if options.boxes else None
    protocol = Protocol(
        detector=options.detector,
        flip_test=options.flip_test,
        joint_threshold=options.joint_threshold,
        suppress_repeats=not options.no_oks_nms,
        threads=max(1, len(physical_cores())) if options.threads is None else options.threads,
        device=options.device,
        rounds=options.rounds,
        repeats=options.repeats,
        seed=options.seed,
        evaluator=options.protocol or "own",
    )
    return Plan(
        models=tuple(
            dict.fromkeys(map(_as_tuned(options.precision), options.model or ["default"]))
        ),
        protocol=with_preset(protocol, options.preset, boxes),
        reference=options.reference,
        work=options.work if options.resume else None,
        peer_python=options.peer_python,
        in_process=options.in_process,
    )


def _as_tuned(precision: str | None) -> Callable[[str], str]:
    """The name of a model under `--precision`: of cfpose's artifacts, not of peers."""

    def name(text: str) -> str:
        is_ours = ":" not in text and precision is not None
        return f"{TUNED}:{text}" if is_ours else text

    return name


def _bounds(options: argparse.Namespace) -> Bounds:
    for name in ("min_ap", "max_drift", "max_p99_ms"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')} must be a number, got {value}")
    return Bounds(options.min_ap, options.max_drift, options.max_p99_ms, options.baseline)


def _check_bounds(bounds: Bounds, plan: Plan, dataset: KeypointDataset) -> None:
    """What can never be judged is refused before the run."""
    if bounds.max_drift is not None and plan.reference is None:
        raise InputError("--max-drift needs --reference FP32.onnx to drift from")
    if bounds.min_ap is not None and not dataset.has_keypoints:
        raise InputError(f"--min-ap needs keypoints; the data set {dataset.name} has boxes only")
    if plan.protocol.evaluator == OPEC_12 and not is_crowdpose(dataset.annotations):
        raise InputError(
            f"--protocol {OPEC_12} is CrowdPose's, and {dataset.name} is not: its photos have no "
            f"crowdIndex"
        )
    if bounds.baseline is not None and what_is_at(bounds.baseline) != "file":
        raise InputError(f"--baseline {bounds.baseline} does not exist")
    if bounds.baseline is not None:
        read_report(bounds.baseline)


def _heading(protocol: Mapping[str, Any]) -> str:
    missing, others = protocol["missing_images"], protocol["unannotated_images"]
    resumed = protocol.get("taken_up")
    suppressed = ", ".join(f"{s}: {v or 'none'}" for s, v in protocol["oks_nms"].items())
    return (
        f"{protocol['dataset']}: {protocol['images']} photos, {protocol['instances']} people"
        + (f"; {missing} annotated photos are missing and take no part" if missing else "")
        + (f"; {others} photos have no annotation and take no part" if others else "")
        + (f"; {resumed} predictions are of an earlier run" if resumed else "")
        + f"; OKS-NMS {suppressed}; {_flip_test(protocol)}; "
        f"{protocol['threads']} threads; times are medians a photo"
    )


def _flip_test(protocol: Mapping[str, Any]) -> str:
    inside = ", ".join(protocol.get("flip_test_inside", ()))
    plain = "flip test" if protocol["flip_test"] else "no flip test"
    return f"{plain}, but inside the graph of {inside}" if inside else plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfpose-bench",
        description=__doc__,
        usage="%(prog)s --dataset DATASET [options]\n"
        "       %(prog)s {boxes,simcc,peers,runtimes} [options]",
        epilog="exit codes: 0 done, 1 a bound is crossed, 2 wrong use or bad input, 130 "
        "interrupted",
    )
    parser.set_defaults(run=_bench)
    _add_options(parser)
    _add_results(parser)
    commands = parser.add_subparsers(
        dest="command",
        title="sub-commands, in place of a measurement; each has its own --help",
        metavar="boxes|simcc|peers|runtimes",
        prog="cfpose-bench",
    )
    peer_commands.add_commands(commands)
    runtimes_command.add_command(commands)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a measurement; `--dataset` is required, which `main` checks."""
    add = parser.add_argument
    # fmt: off
    add("--dataset", help="coco-val, crowdpose, demo, a folder, or a COCO file; required")
    add("--data-root", help=f"folder of coco-val or crowdpose; without it, what {DATA_VARIABLE} "
        "names; without that, coco-val is downloaded")
    add("--mirror", help="another host than COCO's to download from")
    add("--images", help="folder of the photos; without it, the usual places by the annotations")
    add("--model", action="append", metavar="M",
        help="an artifact, a bundled model by its name, a foreign network with its preset of "
        "cfpose-export adopt (movenet:F.onnx), yolopose:F.onnx, rtmlib:F.onnx, "
        "ultralytics:F.pt, adapter:A.py:F, or tuned:M; may be repeated (default: default)")
    add("--reference", metavar="M", help="the FP32 artifact that drift is measured from")
    add("--boxes", action="append", metavar="gt|detector|F.json",
        help="where person boxes come from: the annotations, the detector, or a file; may be "
        "repeated (default: gt)")
    add("--preset", choices=PRESETS, help="a whole protocol; see docs/measure.md")
    add("--protocol", choices=(OPEC_12,),
        help="CrowdPose on its first 12 joints, as OPEC-Net evaluates; without it, on all 14")
    add("--detector", help="file of the detector for `--boxes detector`; without it, the bundled "
        "finder")
    add("--flip-test", action="store_true",
        help="average the joints of each photo and of its mirror image; a graph that does so "
        "inside is not flipped again")
    add("--joint-threshold", type=float, metavar="T",
        help="a pose's score is the mean of its joints' above T; without it, of all joints")
    add("--no-oks-nms", action="store_true",
        help="keep repeated poses of a person, which detected boxes may give")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="where models run (default: %(default)s)")
    add("--precision", choices=get_args(Precision),
        help="tuned: cfpose's own models run as `cfpose tune` found fastest here; for one of "
        "several alone write --model tuned:M")
    add("--threads", type=int, help="CPU threads of a model; without it, one a physical core")
    add("--rounds", type=int, default=10,
        help="blocks of photos between which models take turns (default: %(default)s)")
    add("--repeats", type=int, default=20,
        help="runs of each point of the people curve and the throughput; 0: neither (default: "
        "%(default)s)")
    add("--in-process", action="store_true", help="all models in this process, for debugging")
    add("--peer-python", metavar="PYTHON",
        help="interpreter of the environment that has rtmlib, ultralytics or mediapipe")
    add("--limit", type=int, help="only the first photos by id")
    add("--seed", type=int, default=0,
        help="random seed of the confidence interval (default: %(default)s)")
    add("--resume", action="store_true",
        help="keep finished predictions in --work, and go on from those that are there")
    add("--work", type=Path, default=WORK, help="folder of --resume (default: %(default)s)")
    # fmt: on


def _add_results(parser: argparse.ArgumentParser) -> None:
    """The options of what a measurement writes, and of the bounds that it is checked against."""
    add = parser.add_argument
    # fmt: off
    add("--json", type=Path, help="write the report here")
    add("--csv", type=Path, help="write the models' figures as a table here")
    add("--html", type=Path, help="write the report with plots as one page here")
    add("--min-ap", type=float, help="exit code 1 when a cfpose model's AP is below")
    add("--max-drift", type=float, metavar="PX",
        help="exit code 1 when a joint is further from the reference's")
    add("--max-p99-ms", type=float, help="exit code 1 when the p99 of a photo's time is above")
    add("--baseline", type=Path, metavar="F.json",
        help="exit code 1 when, since that report, AP fell by more than 0.005 or time grew by more "
        "than a fifth")
    # fmt: on


if __name__ == "__main__":
    from cfpose_sdk.commands import bench

    sys.exit(bench())
