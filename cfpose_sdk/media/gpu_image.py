"""Images of other libraries in a GPU's memory: CUDA arrays and DLPack, taken without a copy.

Two protocols tell where an array lies and what must end before it is read: Numba's
`__cuda_array_interface__`, versions 2 and 3, and DLPack, `__dlpack__` or its capsule. CuPy,
PyTorch, JAX, Numba and NVIDIA's decoders speak one or both. DLPack is asked first: it knows
PyTorch's stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import WHOLE_GPU, GpuImage
from cfpose_sdk.errors import ImageError

# CUDA's handles of the default streams. The second is another one in each thread, and a frame may
# be handed to a thread that reads it
_LEGACY, _PER_THREAD = 1, 2
_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13  # DLDeviceType
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}  # DLDataTypeCode
_MAJOR = 1  # of DLPack's versions, the newest that is read here
_FLAT = "(H, W, 3), BGR"


class OnGpu(Protocol):
    """What tells of itself by `__cuda_array_interface__`."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]: ...


class Dlpack(Protocol):
    """What gives itself by DLPack."""

    def __dlpack_device__(self) -> tuple[int, int]: ...


OtherImage = OnGpu | Dlpack


def gpu_image(value: object) -> GpuImage | None:
    """The image of a CUDA array, a DLPack object or capsule; None: it does not lie on a GPU.

    Nothing is copied, and the GPU is not asked. Raises ImageError unless it is uint8 (H, W, 3) and
    contiguous.
    """
    if isinstance(value, np.ndarray | str | os.PathLike):
        return None
    if _is_capsule(value):
        on_gpu = _capsule_device(value) in (_CUDA, _CUDA_MANAGED)
        return _from_capsule(value, None) if on_gpu else None
    array = value.detach() if _is_torch(value) else value  # type: ignore[attr-defined]
    if dlpack_device(array) in (_CUDA, _CUDA_MANAGED):
        return _from_capsule(_export(array), value)
    interface: Any = None
    with contextlib.suppress(Exception):  # PyTorch's raises for some of its tensors
        interface = getattr(array, "__cuda_array_interface__", None)
    return _from_interface(interface, value) if isinstance(interface, Mapping) else None


def on_host(image: NDArray[np.uint8] | GpuImage, why: str) -> NDArray[np.uint8]:
    """The image where NumPy reads it; one on a GPU is copied, with a warning that says why."""
    if isinstance(image, GpuImage):
        what = "a DLPack capsule" if image.given is None else f"a {type(image.given).__name__}"
        warnings.warn(
            f"the image, {what} in a GPU's memory, is copied to the host: {why}. An engine that "
            f"takes whole frames, with its finder, reads it where it is: cfpose-export engine",
            RuntimeWarning,
            stacklevel=2,
        )
        return image.host
    return image


def dlpack_device(value: object) -> int | None:
    """DLPack's type of the device where an array lies; None: it does not tell."""
    if not hasattr(value, "__dlpack__"):
        return None
    with contextlib.suppress(Exception):  # whatever the object's own code raises
        return int(value.__dlpack_device__()[0])  # type: ignore[attr-defined]
    return None


def host_array(value: object) -> NDArray[Any] | None:
    """The array of a DLPack object or capsule on the host; None: it is none of these."""
    if _is_capsule(value) and _capsule_device(value) in (_CPU, _CUDA_HOST):
        value = _Shelf(value)
    if dlpack_device(value) in (_CPU, _CUDA_HOST):
        return np.from_dlpack(value)  # type: ignore[arg-type]
    return None


def _from_interface(interface: Mapping[str, Any], value: object) -> GpuImage:
    """Of the interface's version 3 the stream counts; the versions before it name none."""
    if interface.get("mask") is not None:
        raise ImageError("an image in a GPU's memory must have no mask")
    try:
        shape = tuple(int(side) for side in interface["shape"])
        kind, address = np.dtype(interface["typestr"]), int(interface["data"][0])
        strides = interface.get("strides")
        stream = interface.get("stream") if interface.get("version", 0) >= 3 else WHOLE_GPU
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ImageError(f"__cuda_array_interface__ is not as it should be: {error!r}") from error
    _check(kind.name, shape, strides)
    if stream in (0, _PER_THREAD):  # 0 might be either default stream
        stream = WHOLE_GPU
    return _image(address, shape, stream, value, value)


def _check(kind: str, shape: tuple[int, ...], strides: Sequence[int] | None) -> None:
    """Raise ImageError for what engines do not read in place; strides are bytes, of uint8."""
    if kind != "uint8":
        raise ImageError(
            f"an image must be uint8 in 0..255, got {kind}; convert it on the GPU, for values in "
            f"[0, 1] with (image * 255).round() and its type uint8"
        )
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ImageError(
            f"an image in a GPU's memory must have shape {_FLAT}, got {shape}; convert it there: "
            f"channels first with permute(1, 2, 0).contiguous() or transpose(1, 2, 0) and "
            f"ascontiguousarray"
        )
    whole = (shape[1] * 3, 3, 1)
    steps = whole if strides is None else tuple(strides)
    if any(a != b for a, b, side in zip(steps, whole, shape, strict=True) if side > 1):
        raise ImageError(
            f"an image in a GPU's memory must be contiguous, with strides {whole}, got {steps}; "
            f"make it so there: image.contiguous() of PyTorch, cupy.ascontiguousarray(image)"
        )


def _image(
    address: int, shape: tuple[int, ...], stream: int | None, owner: object, given: object | None
) -> GpuImage:
    size = (shape[0], shape[1], 3)
    return GpuImage(address, size, stream, owner, given, lambda: _copied(given, size))


def _copied(given: object | None, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """To the host, by the library that the array is of."""
    if given is None:
        raise ImageError(
            "a DLPack capsule in a GPU's memory cannot be copied to the host; give the array that "
            "it was made of, or a numpy array"
        )
    kind, array = type(given).__name__, given.detach() if _is_torch(given) else given  # type: ignore[attr-defined]
    ways = [getattr(array, name, None) for name in ("cpu", "get", "copy_to_host", "numpy")]
    try:
        host = np.asarray(next((way() for way in ways if callable(way)), array))
        if host.dtype == object:
            raise TypeError("it has neither cpu(), get(), copy_to_host() nor numpy()")
    except Exception as error:  # whatever the library raises
        raise ImageError(
            f"this {kind} cannot be copied to the host: {error}; give a numpy array"
        ) from error
    if host.shape != shape or host.dtype != np.uint8:
        raise ImageError(
            f"this {kind} becomes {host.dtype} {host.shape} on the host, expected uint8 {shape}; "
            f"give a numpy array"
        )
    return np.ascontiguousarray(host)


def _is_torch(value: object) -> bool:
    return type(value).__module__.startswith("torch") and hasattr(value, "detach")


class _Shelf:
    """A capsule as the object that gives it, as numpy.from_dlpack wants it."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


_Delete = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor, as it was before DLPack 1.0."""

    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Delete)]


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", _Delete), ("flags", ctypes.c_uint64), ("tensor", _Tensor),
    ]  # fmt: skip


_NAMES: dict[bytes, Any] = {b"dltensor": _Managed, b"dltensor_versioned": _Versioned}
# a capsule keeps the pointer to its name, so these bytes stay
_USED = {name: ctypes.c_char_p(b"used_" + name) for name in _NAMES}
_object, _text = ctypes.py_object, ctypes.c_char_p
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, _object, _text)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, _object, _text)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, _object, _text)(("PyCapsule_SetName", ctypes.pythonapi))


class _Taken:
    """The memory of a capsule that was taken over; it goes back when nobody refers to this."""

    def __init__(self, deleter: Callable[[int], None], pointer: int) -> None:
        weakref.finalize(self, deleter, pointer)


def _is_capsule(value: object) -> bool:
    return type(value).__name__ == "PyCapsule"


def _opened(capsule: object) -> tuple[bytes, int, Any]:
    """A capsule's name, its pointer, and the struct there."""
    for name, layout in _NAMES.items():
        if _is_valid(capsule, name):
            pointer = int(_pointer(capsule, name))
            return name, pointer, layout.from_address(pointer)
    raise ImageError("the capsule is no DLPack tensor, or was used before; each can be read once")


def _capsule_device(capsule: object) -> int:
    managed = _opened(capsule)[2]
    _check_version(managed)
    return int(managed.tensor.device_type)


def _check_version(managed: Any) -> None:
    if isinstance(managed, _Versioned) and managed.major > _MAJOR:
        raise ImageError(f"the capsule is of DLPack {managed.major}, and {_MAJOR} is read here")


def _export(array: Any) -> object:
    """The capsule of an array, whose stream CUDA's default stream now waits for."""
    try:
        try:
            return array.__dlpack__(stream=_LEGACY, max_version=(_MAJOR, 0))
        except TypeError:  # written before DLPack 1.0
            return array.__dlpack__(stream=_LEGACY)
    except Exception as error:  # whatever the object's own code raises
        raise ImageError(
            f"this {type(array).__name__} cannot be read by DLPack: {error}"
        ) from error


def _from_capsule(capsule: object, given: object | None) -> GpuImage:
    """Takes the capsule over once it is known to be an image."""
    name, pointer, managed = _opened(capsule)
    _check_version(managed)
    tensor = managed.tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    kind = f"{_CODES.get(tensor.code, 'type ')}{tensor.bits}"
    _check(kind if tensor.lanes == 1 else f"{kind}x{tensor.lanes}", shape, strides)
    address, deleter = int(tensor.data) + int(tensor.byte_offset), managed.deleter
    _rename(capsule, _USED[name])
    owner = (given, _Taken(deleter, pointer) if deleter else None)
    return _image(address, shape, _LEGACY, owner, given)
