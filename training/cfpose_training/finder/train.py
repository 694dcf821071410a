"""Train the finder: from a recipe and a labelling detector to a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cfpose_sdk.boxes import iou_matrix, letterbox, nms
from cfpose_sdk.errors import ArtifactError, TrainingError
from cfpose_sdk.spec import FinderSpec, Start
from cfpose_training.checkpoints.files import misfits, save_finder
from cfpose_training.checkpoints.foreign import read_state
from cfpose_training.checkpoints.starts import starts_of
from cfpose_training.config import FinderConfig, Recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.loader import batches_per_epoch, epoch_batches
from cfpose_training.data.photo_cache import PhotoCache, cache_photos
from cfpose_training.data.photo_sizes import other_sizes
from cfpose_training.finder.boxes import PhotoTruth, label_photos, list_photos
from cfpose_training.finder.data import PAD_VALUE, FinderDataset
from cfpose_training.finder.stage import FinderStage
from cfpose_training.nets.efficientnet import EfficientNetLite
from cfpose_training.nets.finder import FinderNet, candidates
from cfpose_training.nets.pose_net import Normalise
from cfpose_training.processes import is_first_process, wait_for_processes
from cfpose_training.run.loop import RunOptions, fit
from cfpose_training.run.state import FREE_OPTIM_FIELDS, Record, recorded, recorded_files

FINDER_FILE = "finder.safetensors"
MATCH_IOU = 0.5
HEAT_KEY = "heat.0.0.weight"  # of a finder's checkpoint
LATER = "box_refiner."  # keys of what may join a finder that is trained already


def finder_spec(config: FinderConfig) -> FinderSpec:
    """The contract of the finder that a recipe trains."""
    return FinderSpec(
        name=config.name,
        size_wh=config.artifact_size_wh,
        threshold=config.threshold,
        nms_iou=config.nms_iou,
        pad_value=PAD_VALUE,
        trained_on=config.trained_on,
        license=config.license,
    )


def train_finder(
    recipe: Recipe,
    labeller: Path,
    data: DataOptions,
    options: RunOptions,
    *,
    init: Path | None = None,
) -> Path | None:
    """Train the recipe's finder. Returns its checkpoint, or None when time ran out first.

    `init` holds ImageNet weights of the body, or is a finder's checkpoint to go on from. Raises
    TrainingError when the recipe has no finder, or one whose body takes no weights; ArtifactError
    when they do not fit.
    """
    config = recipe.finder
    if config is None:
        raise TrainingError("the recipe has no [finder] table")
    optim = config.optim
    visits = [
        (p, source.repeat) for source in config.sources for p in list_photos(source, data.root)
    ]
    photos = [photo for photo, _ in visits]
    repeat = np.array([count for _, count in visits], dtype=np.intp)
    per_epoch = batches_per_epoch(repeat, optim)
    cache = cache_photos([photo.path for photo in photos], data.cache)
    warn_of_sizes(photos, cache)
    labelled = label_photos(photos, cache, labeller, config, data.cache or options.folder)
    dataset = FinderDataset(labelled, cache, config.size_wh, config.augment, optim.seed)
    dev = FinderDevelopmentSet(config, data)
    torch.manual_seed(optim.seed)
    network = FinderNet(config.net)
    if init is not None:
        _start_from(network, init)
    started = () if init is None else starts_of(init, config.started_from)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = epoch_batches(dataset, repeat, optim, pin_memory=options.uses_cuda)
    finished = fit(
        FinderStage(network), batches, per_epoch, optim, options,
        after_epoch=lambda _, module: dev.figures(module),
        record=_record(config, recorded_files({"labeller": labeller, "init": init})),
        save_checkpoint=lambda path, module, metrics: write_finder(
            path, module, config, metrics, started
        ),
    )  # fmt: skip
    if not finished:
        return None
    checkpoint = options.folder / FINDER_FILE
    if is_first_process():  # the others have batch-norm statistics that the log has not measured
        write_finder(checkpoint, network, config, dev.figures(network), started)
    wait_for_processes()
    return checkpoint


def warn_of_sizes(photos: Sequence[PhotoTruth], cache: PhotoCache) -> None:
    """Count on stderr the photos of another size than annotated."""
    found = cache.sizes_wh
    annotated = [photo.size_wh or size for photo, size in zip(photos, found, strict=True)]
    problem = other_sizes([photo.path for photo in photos], annotated, found)
    if problem and is_first_process():
        print(f"cfpose-train: warning: {problem}", file=sys.stderr)


def write_finder(
    path: Path,
    network: nn.Module,
    config: FinderConfig,
    metrics: Mapping[str, float],
    started: tuple[Start, ...],
) -> None:
    """The checkpoint of a finder that the recipe's table describes, with its figures and start."""
    assert isinstance(network, FinderNet)
    spec = dataclasses.replace(finder_spec(config), metrics=metrics, started_from=started)
    save_finder(path, network, spec)


def _record(config: FinderConfig, files: Record) -> Record:
    """The fields that decide a run's result; others only describe or tune its artifact."""
    free = FREE_OPTIM_FIELDS | {
        "name",
        "threshold",
        "nms_iou",
        "trained_on",
        "license",
        "started_from",
        "deploy_size_wh",
    }
    return {"stage": "finder", **recorded(config, "finder", free), **files}


def _start_from(network: FinderNet, path: Path) -> None:
    if path.suffix == ".safetensors" and HEAT_KEY in (state := read_state(path)):
        new = {}
        if not any(key.startswith(LATER) for key in state):  # half of one is damage
            new = {k: v for k, v in network.state_dict().items() if k.startswith(LATER)}
        if problems := misfits(network.state_dict(), {**new, **state}):
            raise ArtifactError(f"{path} does not fit the recipe's finder: {'; '.join(problems)}")
        network.load_state_dict({**new, **state})
        print(f"{path.name} gives the whole finder" + (", but for its second look" if new else ""))
        return
    if not isinstance(network.body, EfficientNetLite):
        raise TrainingError(
            f"the recipe's finder has a {network.config.body} body, which takes no {path.name}; "
            f"set finder.net.body to 'efficientnet-lite0', or leave --init out"
        )
    dropped = network.body.load_imagenet(read_state(path))
    print(f"{path.name} gives the body; {len(dropped)} tensors of the file are not used")


class FinderDevelopmentSet:
    """The held-out photos: recall on annotated people, false boxes on photos without people.

    A photo counts as without people where its source has no annotations and is named so in the
    recipe (`empty = true`).
    """

    def __init__(self, config: FinderConfig, data: DataOptions) -> None:
        self.config = config
        self.photos: list[PhotoTruth] = []
        self.empty: list[bool] = []
        for source in config.sources:
            if source.annotations or source.empty:
                held_out = list_photos(source, data.root, held_out=True)
                self.photos += held_out
                self.empty += [source.empty] * len(held_out)
        self.cache: PhotoCache = cache_photos([photo.path for photo in self.photos], data.cache)

    def figures(self, network: nn.Module) -> dict[str, float]:
        """dev_recall at IoU 0.5, dev_false per annotated photo, dev_false_empty per empty one."""
        hits = people = 0
        false = {True: 0, False: 0}
        for index, photo in enumerate(self.photos):
            boxes = self._find(network, index)
            overlap = iou_matrix(boxes, np.concatenate([photo.people, photo.crowds]))
            if len(photo.counted) and len(boxes):
                hits += int((iou_matrix(photo.counted, boxes).max(axis=1) >= MATCH_IOU).sum())
            people += len(photo.counted)
            unmatched = len(boxes)
            if len(boxes) and overlap.shape[1]:
                unmatched = int((overlap.max(axis=1) < MATCH_IOU).sum())
            false[self.empty[index]] += unmatched
        return {
            "dev_recall": hits / max(1, people),
            "dev_false": false[False] / max(1, self.empty.count(False)),
            "dev_false_empty": false[True] / max(1, self.empty.count(True)),
        }

    def _find(self, network: nn.Module, index: int) -> NDArray[np.float64]:
        """(N, 4) xyxy boxes in photo pixels above the recipe's threshold, after NMS."""
        device = next(network.parameters()).device
        size_wh = self.config.artifact_size_wh
        canvas, scale = letterbox(self.cache[index], size_wh, PAD_VALUE)
        was_training = network.training
        network.eval()
        with torch.no_grad():
            images = Normalise().to(device)(torch.from_numpy(canvas[None]).to(device))
            assert isinstance(network, FinderNet)
            boxes, scores = network.find(images, candidates(size_wh))
        network.train(was_training)
        kept = scores[0].cpu().numpy() >= self.config.threshold
        xyxy = boxes[0].cpu().numpy()[kept].astype(np.float64) / scale
        chosen = nms(xyxy, scores[0].cpu().numpy()[kept], self.config.nms_iou)
        return xyxy[chosen]
