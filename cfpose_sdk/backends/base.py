"""Backend, the interface of every runtime: run and close; its options, devices and held images."""

from __future__ import annotations

import functools
import json
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, NamedTuple, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.files import FINDER_KEY, SPEC_KEY

Cuda = Literal["cuda-bindings", "pycuda"]
DeviceKind = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
Device = str  # a DeviceKind; of several GPUs "cuda:1" or "tensorrt:1" is the second
# what a runtime computes in, by OpenVINO's names; the types inside a graph are "fp32", "fp16", …
ArithmeticPrecision = Literal["f32", "bf16", "int8"]


class Place(NamedTuple):
    """A device in parts."""

    kind: DeviceKind
    gpu: int = 0  # which one, from 0 on


def place_of(device: Device) -> Place:
    """A device by its name. Raises InputError for one that cfpose does not know."""
    kind, colon, index = str(device).partition(":")
    numbered = kind in ("cuda", "tensorrt") and re.fullmatch("[0-9]{1,3}", index) is not None
    if kind not in get_args(DeviceKind) or (colon and not numbered):
        kinds = ", ".join(get_args(DeviceKind))
        raise InputError(f"device must be one of {kinds}, or cuda:N or tensorrt:N, got {device!r}")
    return Place(cast(DeviceKind, kind), int(index or 0))


class HeldImage:
    """An image in a device's memory: uploaded once for all the models there that take frames.

    `Backend.hold` makes one, and `Backend.adopt` of an image that is there already. `array` is the
    image on the host; `handle` is the runtime's own, and only models that share its `store`
    understand it. Its memory goes back with `close`, or when nobody refers to it any more.
    """

    def __init__(
        self,
        image: NDArray[np.uint8] | GpuImage,
        store: object,
        handle: Any,
        give_back: Callable[[Any], None],
    ) -> None:
        self._image, self.store, self.handle = image, store, handle
        self.close = weakref.finalize(self, give_back, handle)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The image on the host; one that was adopted is copied there."""
        return self._image.host if isinstance(self._image, GpuImage) else self._image

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, 3)."""
        return self._image.shape


Feeds = Mapping[str, NDArray[Any]]
Given = Mapping[str, "NDArray[Any] | HeldImage"]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class RuntimeOptions:
    """Choices that some runtimes have. Raises InputError when a value is out of range.

    One that is not at its default is refused by a runtime without it.
    """

    # OpenVINO, where the CPU has it. bf16: all convolutions and products of the graph; int8: those
    # that `cfpose-export lower` quantised, and an error when none runs so
    precision: ArithmeticPrecision = "f32"
    # onnxruntime: its threads spin while a call lasts and sleep after it: fewer milliseconds a
    # call, at the cost of what else wants the cores then, the person finder of a stream for one
    spin: bool = False
    # onnxruntime on a GPU: float32 products may round their inputs to 10 bits. An engine has it or
    # has it not, from its build on
    tf32: bool = False
    cuda: Cuda = "cuda-bindings"  # engines: the package that reaches the GPU's memory
    workers: int = 1  # engines: threads that run at the same time, each with memory of its own

    def __post_init__(self) -> None:
        choices_of = {"precision": get_args(ArithmeticPrecision), "cuda": get_args(Cuda)}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if self.workers < 1:
            raise InputError(f"workers must be 1 or more, got {self.workers}")

    def check_unused(self, names: Collection[str], runtime: str) -> None:
        """Raise InputError when one of `names`, which `runtime` does not have, was chosen."""
        plain = RuntimeOptions()
        if chosen := [name for name in names if getattr(self, name) != getattr(plain, name)]:
            raise InputError(f"{runtime} has no option {chosen}; leave it at its default")


class Backend(ABC):
    """One opened model. `with open_backend(path) as model: model.run({"crops": crops})`.

    Threads may share it. The arrays that `run` returns belong to the caller. A subclass of your own
    sets `path`, `provider`, `inputs`, `outputs` and `metadata`; a PoseEstimator takes it in the
    place of a model's file.
    """

    path: Path
    provider: str  # what really runs it, by the runtime's own name
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    # of each input, where the runtime tells; None stands for a side that is left open
    input_shapes: Mapping[str, tuple[int | None, ...]] = MappingProxyType({})
    output_shapes: Mapping[str, tuple[int | None, ...]] = MappingProxyType({})  # likewise
    input_types: Mapping[str, str] = MappingProxyType({})  # by onnxruntime's names
    max_batch: int | None = None  # people that one run takes; None: any number
    finder: Path | None = None  # the person finder that was built to go along, where there is one
    # what runs elsewhere than on the device that was asked for, in words; "": nothing, or not told
    fallen: str = ""
    least_side: int = 2  # pixels of a frame's sides; there is nothing to sample in a single row
    store: object | None = None  # models that have the same one take each other's held images

    def run(self, feeds: Given) -> Arrays:
        """Run the model once; `feeds` holds an array, or a held image, for each of `inputs`.

        Raises BackendError when a feed is missing or unknown, or when the runtime fails.
        """
        if feeds.keys() != set(self.inputs):
            raise BackendError(
                f"{self.path.name} takes inputs {sorted(self.inputs)}, got {sorted(feeds)}"
            )
        mine = {
            name: value.array
            if isinstance(value, HeldImage) and not self._can_read(value)
            else value
            for name, value in feeds.items()
        }
        if size := self._fixed_batch:
            return self._run_in_chunks(cast(Arrays, mine), size)
        return self._run(cast(Feeds, mine))

    def hold(self, image: NDArray[np.uint8]) -> HeldImage | None:
        """The image in the device's memory, to be fed as `frame` any number of times.

        None where nothing is gained: on the CPU, and for a model that does not take frames of that
        size. Raises BackendError when the device fails.
        """
        del image
        return None

    def adopt(self, image: GpuImage) -> HeldImage | None:
        """`hold` for an image that lies on the device already, which is read where it is.

        It must stay as it is until the runs with it have ended. None where the model cannot do so.
        Raises ImageError when it lies on another device, BackendError when the device fails.
        """
        del image
        return None

    def _can_read(self, held: HeldImage) -> bool:
        """Whether a held image is still there, and in a store of this model's."""
        return self.store is not None and held.store == self.store and held.close.alive

    @functools.cached_property
    def _fixed_batch(self) -> int:
        """People that one run takes, no fewer and no more; 0: any number.

        An adopted network's spec says so, or the shape of a graph that was simplified to a batch.
        Graphs of others are run as they are: their outputs need not have a row for each input.
        """
        if FINDER_KEY in self.metadata:
            return self.input_shapes.get("images", (None,))[0] or 0
        if SPEC_KEY not in self.metadata:
            return 0
        for name in ("crops", "boxes"):
            if size := self.input_shapes.get(name, (None,))[0]:
                return size
        try:
            adopted = json.loads(self.metadata[SPEC_KEY]).get("adopted") or {}
            return int(adopted.get("batch", 0))
        except (AttributeError, TypeError, ValueError):
            return 0  # whoever reads the spec says what is wrong with it

    def _run_in_chunks(self, feeds: Arrays, size: int) -> Arrays:
        """Any number of people through runs of exactly `size`; the last is filled with zeros."""
        people = next(name for name in ("boxes", "crops", *feeds) if name in feeds)
        count, parts = len(feeds[people]), []
        for first in range(0, max(1, count), size):
            given = feeds[people][first : first + size]
            full = np.zeros((size, *given.shape[1:]), given.dtype)
            full[: len(given)] = given
            outputs = self._run({**feeds, people: full})
            parts.append({name: value[: len(given)] for name, value in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _check_feed(self, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
        """Raise BackendError for a feed of another type or shape than `input_shapes` tells."""
        shape = self.input_shapes[name]
        fits = len(shape) == array.ndim and all(
            side in (None, length) for side, length in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            sides = ", ".join("N" if side is None else str(side) for side in shape)
            raise BackendError(
                f"{self.path.name} failed to run: {name} must be {dtype} of shape ({sides}), got "
                f"{array.dtype} {array.shape}"
            )

    @property
    def device(self) -> str:
        """Where it computes: `cpu` or `cuda`."""
        gpu = ("CUDA", "TensorRT", "Tensorrt", "NvTensorRTRTX")
        return "cuda" if self.provider.startswith(gpu) else "cpu"

    @abstractmethod
    def _run(self, feeds: Feeds) -> Arrays:
        """Run with checked feed names. A model that holds images gets those of its own `store`."""

    @abstractmethod
    def close(self) -> None:
        """Free the model; a second call does nothing, a later `run` raises BackendError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def onnxruntime_type(dtype: np.dtype[Any]) -> str:
    """onnxruntime's name of a type: float32 is "tensor(float)"."""
    names = {"float32": "float", "float64": "double", "bool": "bool"}
    return f"tensor({names.get(dtype.name, dtype.name)})"
