"""The process that turns bytes of strangers into pixels: `python -m cfpose_sdk.serving.decoder`.

It reads frames from its standard input and answers on its standard output, until its input ends.
A request is the length of a picture's file (8 bytes, big-endian) and the file. An answer is the
length of a JSON object, that object, and, where it holds a `shape`, as many bytes as the BGR uint8
array has; else it holds `status`, an HTTP status, and `detail`, the reason.

It may be killed at any time. Pixels are counted by OpenCV before it decodes
(OPENCV_IO_MAX_IMAGE_PIXELS, which must be set when the process starts).
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2

from cfpose_sdk.errors import ImageError
from cfpose_sdk.media.image import Image, decode_image

SMALLEST_SIDE = 16  # px: nobody can be seen in less
_TOO_MANY_PIXELS = "CV_IO_MAX_IMAGE"  # of OpenCV's messages: pixels, width or height
_NO_MEMORY = re.compile("Insufficient memory|Failed to allocate")  # of them, too


def main(memory_mb: int) -> None:
    """Answer until the input ends, in at most so many MiB more than the process has now."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    _limit(memory_mb)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # a file of several pictures: the first one is taken
    requests = sys.stdin.buffer
    while len(head := requests.read(8)) == 8:
        _answer(answers, requests.read(int.from_bytes(head, "big")))


def _answer(answers: BinaryIO, data: bytes) -> None:
    image, said = decode(data)
    head = json.dumps(said).encode()
    answers.write(len(head).to_bytes(8, "big") + head)
    if image is not None:
        answers.write(image.data)
    answers.flush()


def decode(data: bytes) -> tuple[Image | None, dict[str, object]]:
    """The picture and its `shape`, or None with `status` and `detail`."""
    if not data:
        return None, {"status": 400, "detail": "the body is empty (0 bytes); expected a photo"}
    try:
        image = decode_image(data, "the photo")
    except (ImageError, MemoryError, cv2.error) as error:
        text = str(error)
        if _TOO_MANY_PIXELS in text:
            most = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "too many")
            text = f"the photo has more than {most} pixels; send a smaller one"
            return None, {"status": 413, "detail": text}
        if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
            text = "the photo needs more memory than a decoder may take; send a smaller one"
            return None, {"status": 413, "detail": text}
        return None, {"status": 422, "detail": text}
    if min(image.shape[:2]) < SMALLEST_SIDE:
        text = (
            f"the photo is {image.shape[1]} x {image.shape[0]} pixels; expected "
            f"{SMALLEST_SIDE} or more a side"
        )
        return None, {"status": 422, "detail": text}
    return image, {"shape": image.shape}


def _limit(memory_mb: int) -> None:
    """Bound the address space on Linux; elsewhere time and pixels alone are bounded."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    import resource  # not on Windows

    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    most = taken + memory_mb * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has no file to write


if __name__ == "__main__":
    main(int(sys.argv[1]))
