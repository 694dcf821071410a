"""Images in a GPU's memory are read as their protocol says, or refused with a way out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.arrays import WHOLE_GPU, GpuImage
from cfpose_sdk.errors import ImageError
from cfpose_sdk.media.frames import load_frame
from cfpose_sdk.media.gpu_image import gpu_image, on_host
from cfpose_sdk.media.image import check_image

IMAGE = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)
KINDS = ("cuda array", "cuda array, version 2", "cuda array, per-thread stream", "dlpack",
         "dlpack before 1.0", "capsule")  # fmt: skip


@pytest.fixture
def make(gpu: Any, fake_arrays: ModuleType) -> Callable[..., Any]:
    """An image of another library, of a kind."""
    fake_arrays.deleted.clear()

    def made(kind: str = "cuda array", **changes: Any) -> Any:
        return fake_arrays.KINDS[kind](fake_arrays.Memory(gpu, IMAGE), **changes)

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_protocol_names_place_and_stream(make: Callable[..., Any], kind: str) -> None:
    array = make(kind)
    memory = None if kind == "capsule" else array._memory
    image = gpu_image(array)
    assert image is not None
    assert image.shape == IMAGE.shape
    # its own stream; another in each thread, or none named: all of them; DLPack: CUDA's default
    rest = WHOLE_GPU if kind.startswith("cuda array") else 1
    assert image.stream == (memory.handle if kind == "cuda array" else rest)
    assert memory is None or image.address == memory.address
    assert image.given is (None if kind == "capsule" else array)


@pytest.mark.parametrize(("stream", "told"), [(None, None), (0, WHOLE_GPU), (1, 1), (77, 77)])
def test_streams_of_the_interface(
    make: Callable[..., Any], stream: int | None, told: int | None
) -> None:
    image = gpu_image(make(stream=stream))
    assert image is not None
    assert image.stream == told


@pytest.mark.parametrize("kind", ["dlpack", "dlpack before 1.0", "capsule"])
def test_a_capsule_is_deleted_once_and_after_its_image(
    make: Callable[..., Any], fake_arrays: ModuleType, kind: str
) -> None:
    array = make(kind)
    image = gpu_image(array)
    gc.collect()
    assert fake_arrays.deleted == []
    if kind == "capsule":
        with pytest.raises(ImageError, match="was used before"):
            gpu_image(array)
    del image
    gc.collect()
    assert len(fake_arrays.deleted) == 1


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("cuda array", {"typestr": "<f4"}, "must be uint8 in 0..255, got float32"),
    ("cuda array", {"shape": (3, 40, 50)}, r"\(H, W, 3\), BGR, got \(3, 40, 50\).*permute"),
    ("cuda array", {"shape": (40, 50)}, r"must have shape \(H, W, 3\)"),
    ("cuda array", {"shape": (0, 50, 3)}, r"must have shape \(H, W, 3\)"),
    ("cuda array", {"strides": (160, 3, 1)}, r"\(150, 3, 1\), got \(160, 3, 1\); make it so"),
    ("cuda array", {"strides": (150, 3, -1)}, "cupy.ascontiguousarray"),
    ("cuda array", {"mask": object()}, "must have no mask"),
    ("cuda array", {"data": None}, "not as it should be"),
    ("dlpack", {"code": 2, "bits": 32}, "must be uint8 in 0..255, got float32"),
    ("dlpack", {"lanes": 3}, "got uint8x3"),
    ("dlpack", {"strides": (1, 40, 2000)}, r"got \(1, 40, 2000\); make it so"),
    ("dlpack", {"ndim": 2}, r"must have shape \(H, W, 3\)"),
    ("dlpack", {"major": 2}, "is of DLPack 2, and 1 is read here"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), BAD)
def test_what_engines_do_not_read_is_refused(
    make: Callable[..., Any], fake_arrays: ModuleType, kind: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        load_frame(make(kind, **changes))
    fake_arrays.forget()  # what nobody took is not deleted: these capsules have no destructor


def test_strides_of_single_rows_and_offsets(make: Callable[..., Any]) -> None:
    """The step between rows means nothing where there is one; an offset moves the start."""
    assert gpu_image(make(shape=(1, 50, 3), strides=(1, 3, 1))) is not None
    array = make("dlpack", byte_offset=150, shape_hw3=(39, 50, 3))
    moved = gpu_image(array)
    assert moved is not None
    assert moved.address == array._memory.address + 150


def test_what_is_not_on_a_gpu_is_left_alone() -> None:
    torch = pytest.importorskip("torch")
    for value in (IMAGE, "a.png", None, 3, [IMAGE], torch.from_numpy(IMAGE)):
        assert gpu_image(value) is None


def test_dlpack_on_the_host_is_an_image_as_any() -> None:
    """Objects and capsules, of NumPy and of PyTorch."""
    torch = pytest.importorskip("torch")

    class Other:
        def __dlpack__(self, **others: Any) -> Any:
            return IMAGE.__dlpack__(**others)

        def __dlpack_device__(self) -> Any:
            return IMAGE.__dlpack_device__()

    tensor = torch.from_numpy(IMAGE.copy())
    for value in (Other(), IMAGE.__dlpack__(), tensor.__dlpack__(), tensor):
        frame = load_frame(value)
        assert isinstance(frame.image, np.ndarray)
        np.testing.assert_array_equal(frame.image, IMAGE)
    used = tensor.__dlpack__()
    check_image(used)
    with pytest.raises(ImageError, match="no DLPack tensor, or was used before"):
        check_image(used)


def test_a_picture_is_copied_to_the_host_where_it_is_asked_for(make: Callable[..., Any]) -> None:
    image = gpu_image(make())
    assert isinstance(image, GpuImage)
    with pytest.warns(RuntimeWarning, match="a CudaArray in a GPU's memory, is copied .*: so"):
        host = on_host(image, "so")
    np.testing.assert_array_equal(host, IMAGE)
    assert on_host(host, "so") is host
    np.testing.assert_array_equal(check_image(make()), IMAGE)  # no warning
    alone = gpu_image(make("capsule"))
    assert alone is not None
    with pytest.raises(ImageError, match="give the array that it was made of"):
        _ = alone.host


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (IMAGE[:3], r"becomes uint8 \(3, 50, 3\)"),
        (None, "cannot be copied to the host: not here"),
        (IMAGE, "it has neither cpu"),
    ],
)
def test_a_library_that_does_not_copy(make: Callable[..., Any], host: Any, said: str) -> None:
    array = make()

    def get() -> Any:
        if host is None:
            raise TypeError("not here")
        return host if host is not IMAGE else object()

    array.get = get
    image = gpu_image(array)
    assert image is not None
    with pytest.raises(ImageError, match=said):
        _ = image.host
