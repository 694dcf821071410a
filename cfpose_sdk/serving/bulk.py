"""Many photos by many processes, shard by shard: on one machine, or on a cluster with Ray."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from cfpose_sdk.backends import Device
from cfpose_sdk.backends.bundled import DEFAULT, model_file
from cfpose_sdk.backends.tuned import Precision
from cfpose_sdk.errors import BackendError, InputError, require
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import digest, printable
from cfpose_sdk.formats import person_records
from cfpose_sdk.media.frames import Footage, Item, Unread, expand, is_video, load_frame
from cfpose_sdk.results import Poses
from cfpose_sdk.serving.shards import Counts, Row, ShardFolder, count, usable_cores
from cfpose_sdk.streaming.stream import StreamOptions

Shard = tuple[int, list[str]]  # its number and its photos
OnShard = Callable[[Counts], None]
_STREAM = StreamOptions(batch_frames=8)
_PIECE = range(4, 33)  # photos that a worker is given at a time


@dataclass(frozen=True)
class BulkOptions:
    """How a bulk run is made. `workers` None: as many as there are cores.

    `threads` None: the cores shared out among the workers. `shard_size`: photos of a shard, which
    is what is lost when the run is killed.
    """

    model: str | None = None
    detector: str | None = None
    device: Device = "auto"
    max_people: int | None = None
    workers: int | None = None
    threads: int | None = None
    shard_size: int = 100
    covariance: bool = False
    precision: Precision | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "shard_size", "max_people"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be 1 or more, got {value}")


def photos_of(sources: Sequence[str]) -> list[str]:
    """Photos of files, folders and globs, in order, each once. Raises InputError for a video."""
    photos = [path for source in sources for path in expand(source)]
    for path in photos:
        if is_video(path):
            raise InputError(f"{path} is a video, and bulk reads photos; use: cfpose predict")
    return list(dict.fromkeys(map(os.fspath, photos)))


def run_bulk(
    photos: Sequence[str],
    shards: ShardFolder,
    options: BulkOptions,
    *,
    ray: str | None = None,
    on_shard: OnShard | None = None,
) -> Counts:
    """Poses of all photos into the shards' folder; goes on where a run with the same was stopped.

    `ray`: the address of a Ray cluster, or "local"; its nodes must see the photos under the same
    paths. `on_shard` is told of each shard. Raises InputError, BackendError,
    MissingDependencyError.
    """
    if not photos:
        raise InputError("there is no photo; give photos, folders, globs, or --list FILE")
    shards.begin(_plan(options), photos)
    size = options.shard_size
    todo: list[Shard] = []
    total = Counts()
    for number, first in enumerate(range(0, len(photos), size)):
        done = shards.counts(number)
        if done is None:
            todo.append((number, list(photos[first : first + size])))
        else:
            total += done
            _tell(on_shard, done)
    if todo:
        finished = _on_ray(todo, options, ray) if ray else _on_processes(todo, options)
        for number, rows in finished:
            shards.write(number, rows)
            counts = count(rows)
            total += counts
            _tell(on_shard, counts)
    shards.finish(total, -(-len(photos) // size))
    return total


def _tell(on_shard: OnShard | None, counts: Counts) -> None:
    if on_shard is not None:
        on_shard(counts)


def _plan(options: BulkOptions) -> dict[str, Any]:
    model = model_file(options.model or DEFAULT)
    plan = {"model": model.name, "model_sha256": digest(model) if model.is_file() else None}
    if options.detector is not None:
        plan |= {
            "detector": Path(options.detector).name,
            "detector_sha256": digest(options.detector),
        }
    with PoseEstimator(
        options.model, detector=options.detector, device=options.device, precision=options.precision
    ) as opened:
        joints, tuned = list(opened.spec.skeleton.keypoints), opened.info.tuned
    chosen = {"shard_size": options.shard_size, "max_people": options.max_people}
    if options.precision is not None:  # another tuning gives other digits
        plan["precision"] = f"{options.precision}: {tuned}"
    return {**plan, **chosen, "covariance": options.covariance, "keypoints": joints}


class Poser:
    """One estimator of one process: a shard's photos → its rows."""

    def __init__(self, options: BulkOptions, threads: int | None) -> None:
        self._covariance = options.covariance
        self._estimator = PoseEstimator(
            options.model,
            detector=options.detector,
            device=options.device,
            threads=threads,
            max_people=options.max_people,
            precision=options.precision,
        )

    def rows(self, photos: Sequence[str]) -> list[Row]:
        """A row for each photo, in order; the reason where one cannot be read."""
        rows: list[Row] = []

        def broken(error: InputError) -> None:
            rows.append(_broken_row(photos[len(rows)], error))

        while len(rows) < len(photos):
            footage = Footage(_loaded(photos[len(rows) :]), lambda: None)
            try:
                with self._estimator.open_stream(footage, _STREAM, broken) as stream:
                    for poses in stream:
                        rows.append(self._row(photos[len(rows)], poses))
            except InputError as error:  # of the detector; the photos after this one go on
                broken(error)
        return rows

    def _row(self, photo: str, poses: Poses) -> Row:
        people = person_records(
            poses.xy, poses.confidence, poses.visible, poses.boxes, poses.box_scores,
            ids=None, covariance=poses.covariance if self._covariance else None, xy_raw=None,
        )  # fmt: skip
        for person in people:
            del person["visible"]  # confidence ≥ 0.3
        size_wh = list(poses.image_size_wh)
        return {"image": printable(photo), "size_wh": size_wh, "people": people, "error": None}


def _broken_row(photo: str, error: InputError) -> Row:
    reason = printable(str(error))
    return {"image": printable(photo), "size_wh": None, "people": None, "error": reason}


def _loaded(photos: Sequence[str]) -> Iterator[Item]:
    for photo in photos:
        try:
            item: Item = load_frame(photo)
        except InputError as error:
            item = Unread(error)
        yield item


_POSERS: list[Poser] = []  # of a worker process: its one


def _begin_worker(options: BulkOptions, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    cv2.setNumThreads(threads)
    _POSERS.append(Poser(options, threads))


def _follow(parent: Any) -> None:
    """End with the parent: one that is killed tells its workers nothing."""
    parent.join()
    os._exit(1)


def _work(photos: list[str]) -> list[Row]:
    return _POSERS[0].rows(photos)


def _on_processes(todo: Sequence[Shard], options: BulkOptions) -> Iterator[tuple[int, list[Row]]]:
    cores = usable_cores()
    photos = sum(len(photos) for _, photos in todo)
    workers = min(options.workers or cores, -(-photos // _PIECE.start))
    threads = options.threads or max(1, cores // workers)
    pool = ProcessPoolExecutor(
        workers,
        # a forked child would share the runtime's threads and locks
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(options, threads),
    )
    try:
        yield from _finished(pool, todo, workers)
    except BrokenProcessPool as error:
        raise BackendError(
            "a worker process died (killed, or out of memory?); the shards that were done are "
            "kept: run the command again, with fewer --workers where memory is short"
        ) from error
    finally:
        processes: Mapping[int, Any] = dict(getattr(pool, "_processes", None) or {})
        for process in processes.values():
            process.terminate()
        pool.shutdown(cancel_futures=True)  # and waits, so that nothing is left for Python's exit


def _finished(
    pool: ProcessPoolExecutor, todo: Sequence[Shard], workers: int
) -> Iterator[tuple[int, list[Row]]]:
    """Shards as they are done; a few pieces wait at a time, so that memory does not grow with the
    run.
    """
    running: dict[Future[list[Row]], tuple[int, int]] = {}  # the shard, and the place in it
    missing = {number: len(photos) for number, photos in todo}
    parts: dict[int, dict[int, list[Row]]] = {number: {} for number in missing}
    waiting = _pieces(todo, workers)
    while True:
        while len(running) < 2 * workers and (piece := next(waiting, None)) is not None:
            number, first, photos = piece
            running[pool.submit(_work, photos)] = (number, first)
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            number, first = running.pop(future)
            parts[number][first] = future.result()
            missing[number] -= len(parts[number][first])
            if not missing[number]:
                rows = parts.pop(number)
                yield number, [row for first in sorted(rows) for row in rows[first]]


def _pieces(todo: Sequence[Shard], workers: int) -> Iterator[tuple[int, int, list[str]]]:
    """Shard, place in it, and photos; the pieces grow small, so that the workers end together."""
    left = sum(len(photos) for _, photos in todo)
    for number, photos in todo:
        first = 0
        while first < len(photos):
            size = min(max(_PIECE.start, left // (4 * workers)), _PIECE[-1])
            piece = photos[first : first + size]
            yield number, first, piece
            first, left = first + len(piece), left - len(piece)


class _RayPoser:
    """`Poser` for Ray Data: a batch is one shard."""

    def __init__(self, options: BulkOptions) -> None:
        self._poser = Poser(options, options.threads or 1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import json

        numbers, photos = batch["number"], batch["photos"]
        rows = [json.dumps(self._poser.rows(json.loads(each))) for each in photos]
        return {"number": numbers, "rows": rows}


def _on_ray(
    todo: Sequence[Shard], options: BulkOptions, address: str
) -> Iterator[tuple[int, list[Row]]]:
    require("ray", extra="ray", why="cfpose bulk --ray")
    import json

    ray: Any = importlib.import_module("ray")
    importlib.import_module("ray.data")
    ray.init(address=None if address == "local" else address, ignore_reinit_error=True)
    items = [{"number": number, "photos": json.dumps(photos)} for number, photos in todo]
    workers = options.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    posed = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _RayPoser,
        fn_constructor_args=(options,),
        batch_size=1,
        concurrency=min(workers, len(items)),
    )
    for row in posed.iter_rows():
        yield int(row["number"]), json.loads(row["rows"])
