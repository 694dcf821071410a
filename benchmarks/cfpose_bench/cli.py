"""cfpose-bench: accuracy and latency of pose models on annotated photos, in one report."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from cfpose_bench.accuracy import MAX_POSES, Accuracy, evaluate
from cfpose_bench.annotations import is_crowdpose
from cfpose_bench.candidates import Candidate, open_candidate
from cfpose_bench.crowdpose import evaluate_crowdpose
from cfpose_bench.dataset import DATA_VARIABLE, KeypointDataset, open_dataset, read_boxes
from cfpose_bench.latency import stage_timings
from cfpose_bench.oks import OKS_NMS
from cfpose_bench.predictions import Boxes, predict_dataset
from cfpose_bench.report import Measured, report, table, write_json
from cfpose_sdk.detector import PersonFinder
from cfpose_sdk.errors import InputError
from cfpose_sdk.skeleton import CROWDPOSE_14

BOOTSTRAP = 1000
WARMUP = 3
LATER = ("html", "max_drift", "max_p99_ms", "baseline")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 when an AP is below --min-ap.

    Wrong use and bad input raise CfposeError, which the console script turns into exit code 2.
    """
    options = _parser().parse_args(argv)
    _refuse_what_is_not_there(options)
    box_sources = list(dict.fromkeys(options.boxes or ["gt"]))
    dataset = open_dataset(options.dataset, images=options.images, data_root=options.data_root)
    if options.limit is not None:
        dataset = dataset.limited(options.limit)
    boxes = {source: _boxes(source, dataset) for source in box_sources}
    names = list(dict.fromkeys(options.model or ["default"]))
    with ExitStack() as opened:
        finder = None
        if "detector" in box_sources:  # one finder for all models: they see the same boxes
            finder = opened.enter_context(PersonFinder(options.detector, device=options.device))
        for name in names:  # a model that cannot be opened must not end a run half way
            open_candidate(name, finder=finder, device=options.device).close()
        rows: list[Measured] = []
        for name in names:
            with closing(open_candidate(name, finder=finder, device=options.device)) as candidate:
                rows += [_measure(candidate, dataset, s, boxes[s], options) for s in boxes]
    detector = None if finder is None else finder.spec.name
    protocol = _protocol(dataset, box_sources, detector, options)
    print(_heading(protocol))
    print(table(rows))
    if options.json is not None:
        write_json(report(protocol, rows), options.json)
    return _verdict(rows, options.min_ap)


def _measure(
    candidate: Candidate,
    dataset: KeypointDataset,
    source: str,
    boxes: Boxes | None,
    options: argparse.Namespace,
) -> Measured:
    done = predict_dataset(
        candidate.model,
        dataset,
        candidate.skeleton,
        boxes=boxes,
        joint_threshold=options.joint_threshold,
        oks_threshold=_oks_nms(source),
        warmup=WARMUP,
        label=f"{candidate.name}, boxes: {_box_label(source)}",
    )
    accuracy = _evaluate(candidate, dataset, done.results, options.seed)
    return Measured(
        model=candidate.name,
        boxes=_box_label(source),
        precision=candidate.precision,
        provider=candidate.provider,
        bytes=candidate.bytes,
        accuracy=accuracy,
        latency_ms=stage_timings(done.speed_ms),
        is_peer=candidate.is_peer,
        unreadable=done.unreadable,
    )


def _evaluate(
    candidate: Candidate, dataset: KeypointDataset, results: Sequence[dict[str, Any]], seed: int
) -> Accuracy:
    """CrowdPose's protocol for its annotations, COCO's for all others."""
    truth, photos = dataset.annotations, dataset.image_ids
    if is_crowdpose(truth) and candidate.skeleton == CROWDPOSE_14:
        return evaluate_crowdpose(truth, results, image_ids=photos, bootstrap=BOOTSTRAP, seed=seed)
    return evaluate(
        truth,
        results,
        skeleton=candidate.skeleton,
        image_ids=photos,
        bootstrap=BOOTSTRAP,
        seed=seed,
    )


def _boxes(source: str, dataset: KeypointDataset) -> Boxes | None:
    if source == "gt":
        return dataset.ground_truth_boxes()
    return None if source == "detector" else read_boxes(source)


def _box_label(source: str) -> str:
    """gt, detector, or the file's name: a report holds no path of the machine it was made on."""
    return Path(source).name


def _oks_nms(source: str) -> float | None:
    """Ground-truth boxes are one a person: nothing is found twice, nothing is suppressed."""
    return None if source == "gt" else OKS_NMS


def _protocol(
    dataset: KeypointDataset,
    box_sources: Sequence[str],
    detector: str | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    record = {
        "dataset": dataset.name,
        "images": len(dataset.photos),
        "missing_images": len(dataset.missing),
        "instances": sum(len(boxes) for boxes in dataset.ground_truth_boxes().values()),
        "boxes": "+".join(map(_box_label, box_sources)),
        "detector": detector,
        "score": "box score × mean joint confidence; the score of a ground-truth box is 1",
        "joint_threshold": options.joint_threshold,
        "flip_test": False,
        "oks_nms": {_box_label(source): _oks_nms(source) for source in box_sources},
        "max_poses": MAX_POSES,
        "bootstrap": {"resamples": BOOTSTRAP, "seed": options.seed, "unit": "photo"},
        "warmup": WARMUP,
        "batch": "the people of one photo",
    }
    return {key: value for key, value in record.items() if value is not None}


def _heading(protocol: dict[str, Any]) -> str:
    missing = protocol["missing_images"]
    return (
        f"{protocol['dataset']}: {protocol['images']} photos, {protocol['instances']} people"
        + (f"; {missing} annotated photos are missing and take no part" if missing else "")
        + f"; OKS-NMS {OKS_NMS} (not with gt boxes), no flip test; times are medians a photo"
    )


def _verdict(rows: Sequence[Measured], min_ap: float | None) -> int:
    """1 when a cfpose model is below `min_ap` (or has no AP); peers are only compared with."""
    if min_ap is None:
        return 0
    code = 0
    for row in rows:
        ap = row.accuracy.AP
        if not row.is_peer and (math.isnan(ap) or ap < min_ap):
            print(f"{row.model} (boxes: {row.boxes}): AP {ap:.3f} is below {min_ap}")
            code = 1
    return code


def _refuse_what_is_not_there(options: argparse.Namespace) -> None:
    if options.dataset == "demo":
        raise InputError(
            "--dataset demo is not there yet; this version measures coco-val, crowdpose, a "
            "folder, or a COCO keypoint file"
        )
    for name in LATER:
        if getattr(options, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is not there yet; this version has --json and --min-ap"
            )
    if options.min_ap is not None and not math.isfinite(options.min_ap):
        raise InputError(f"--min-ap must be a number, got {options.min_ap}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfpose-bench",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="exit codes: 0 done, 1 below --min-ap, 2 wrong use or bad input, 130 interrupted",
    )
    add = parser.add_argument
    add("--dataset", required=True, help="coco-val, crowdpose, a folder, or a COCO file")
    add(
        "--data-root",
        help=f"folder of coco-val or crowdpose; without it, what {DATA_VARIABLE} names",
    )
    add("--images", help="folder of the photos; without it, the usual places by the annotations")
    # fmt: off
    add("--model", action="append", metavar="M",
        help="an artifact, `default`, or movenet:FILE.onnx; may be repeated (default: default)")
    add("--boxes", action="append", metavar="gt|detector|F.json",
        help="where person boxes come from; may be repeated (default: gt)")
    # fmt: on
    add("--detector", help="person finder for `--boxes detector`; without it, the bundled one")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where models run")
    # fmt: off
    add("--joint-threshold", type=float, metavar="T",
        help="a pose's score is the mean of its joints' above T; without it, of all joints")
    # fmt: on
    add("--limit", type=int, help="only the first photos by id")
    add("--seed", type=int, default=0, help="of the confidence interval's resamples")
    add("--json", type=Path, help="write the report here")
    add("--min-ap", type=float, help="exit 1 when a cfpose model's AP is below")
    add("--html", help="not there yet")
    add("--max-drift", type=float, help="not there yet")
    add("--max-p99-ms", type=float, help="not there yet")
    add("--baseline", help="not there yet")
    return parser


if __name__ == "__main__":
    from cfpose_sdk.commands import bench

    raise SystemExit(bench())
