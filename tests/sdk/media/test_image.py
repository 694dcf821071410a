"""Reading and checking images: accept what is exact, refuse the rest with the cause."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import ImageError
from cfpose_sdk.media.image import check_image, quiet_opencv, read_image

RNG = np.random.default_rng(1)
PICTURE = cv2.resize(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8), (160, 120))


def encoded(suffix: str, image: np.ndarray = PICTURE) -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "картина ö 写真.png"
    path.write_bytes(encoded(".png"))
    np.testing.assert_array_equal(read_image(path), PICTURE)
    np.testing.assert_array_equal(read_image(str(path)), PICTURE)


def test_jpeg_is_bgr(tmp_path: Path) -> None:
    blue = np.zeros((16, 16, 3), np.uint8)
    blue[..., 0] = 250
    (tmp_path / "blue.jpg").write_bytes(encoded(".jpg", blue))
    assert read_image(tmp_path / "blue.jpg")[8, 8].argmax() == 0


def test_grey_and_alpha_files_become_bgr(tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(encoded(".png", PICTURE[..., 0]))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), PICTURE[..., :1].repeat(3, 2))
    alpha = np.dstack([PICTURE, PICTURE[..., 0]])
    (tmp_path / "alpha.png").write_bytes(encoded(".png", alpha))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), PICTURE)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    # one IFD entry, orientation (0x0112) = 6: the camera was turned, show it rotated clockwise
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    data = encoded(".jpg")
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    plain.write_bytes(data)
    turned.write_bytes(data[:2] + segment + data[2:])
    expected = cv2.rotate(read_image(plain), cv2.ROTATE_90_CLOCKWISE)
    np.testing.assert_array_equal(read_image(turned), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused_quietly(
    tmp_path: Path, suffix: str, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match="cut"):
        read_image(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("missing", [1, 2, 3, 100])
def test_jpeg_that_lacks_its_last_bytes_is_truncated(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(".jpg")[:-missing])
    with pytest.raises(ImageError, match="truncated JPEG"):
        read_image(path)


def test_end_marker_of_a_thumbnail_does_not_complete_a_jpeg(tmp_path: Path) -> None:
    thumbnail = encoded(".jpg", PICTURE[:32, :32])
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = encoded(".jpg")
    whole = data[:2] + segment + data[2:]
    path = tmp_path / "thumb.jpg"
    for cut in (whole[:-200], data[:2] + segment):  # the second ends with an end marker
        path.write_bytes(cut)
        with pytest.raises(ImageError, match="truncated JPEG"):
            read_image(path)
    path.write_bytes(whole + b"appended by a camera")
    assert read_image(path).shape == PICTURE.shape


def test_progressive_and_restart_jpegs_are_complete(tmp_path: Path) -> None:
    for name, flags in (
        ("progressive", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        ("restart", [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
    ):
        data = cv2.imencode(".jpg", PICTURE, flags)[1].tobytes()
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(data)
        assert read_image(path).shape == PICTURE.shape
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match="truncated"):
            read_image(path)


def test_what_is_no_photo_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, nothing = tmp_path / "notes.jpg", tmp_path / "nothing.jpg"
    text.write_text("not a picture")
    nothing.write_bytes(b"")
    for path, cause in (
        (tmp_path / "absent.jpg", "does not exist"),
        (tmp_path, "is a folder"),
        (text, "not an image"),
        (nothing, "0 bytes"),
        (Path("nul\0.jpg"), "cannot be read"),
    ):
        with pytest.raises(ImageError, match=cause):
            read_image(path)
    assert capfd.readouterr().err == ""


def test_log_level_of_opencv_is_left_as_it_was(tmp_path: Path) -> None:
    logging: Any = getattr(cv2.utils, "logging", cv2)  # of OpenCV 4.13 and later, or before
    before, silent, fatal = logging.getLogLevel(), 0, 1
    logging.setLogLevel(fatal)
    try:
        (tmp_path / "bad.tiff").write_bytes(encoded(".tiff")[:500])
        with pytest.raises(ImageError):
            read_image(tmp_path / "bad.tiff")
        with quiet_opencv(), quiet_opencv():
            assert logging.getLogLevel() == silent
        assert logging.getLogLevel() == fatal
    finally:
        logging.setLogLevel(before)


@pytest.mark.parametrize("moved", [False, True])
def test_log_level_has_two_places(monkeypatch: pytest.MonkeyPatch, moved: bool) -> None:
    levels = [3]  # of an OpenCV before 4.13, in `cv2` itself, and of a later one
    logging = SimpleNamespace(getLogLevel=lambda: levels[-1], setLogLevel=levels.append)
    if moved:
        monkeypatch.setattr(cv2, "utils", SimpleNamespace(logging=logging))
    else:
        monkeypatch.setattr(cv2, "utils", SimpleNamespace())
        monkeypatch.setattr(cv2, "getLogLevel", logging.getLogLevel, raising=False)
        monkeypatch.setattr(cv2, "setLogLevel", logging.setLogLevel, raising=False)
    with quiet_opencv():
        assert levels == [3, 0]
    assert levels == [3, 0, 3]


def test_arrays_that_are_exact_are_accepted() -> None:
    assert check_image(PICTURE) is PICTURE
    grey = PICTURE[..., 0]
    for given in (grey, grey[..., None]):
        np.testing.assert_array_equal(check_image(given), np.stack([grey] * 3, axis=-1))
    view = PICTURE[::-1, ::2, ::-1]
    checked = check_image(view)
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, view)
    assert check_image(PICTURE[:1, :1]).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (PICTURE.astype(np.float32), "uint8 in 0..255, got float32"),
        (PICTURE.astype(np.uint16), "got uint16"),
        (PICTURE[..., 0] > 7, "got bool"),
        (np.zeros((4, 5, 4), np.uint8), "COLOR_RGBA2BGR"),
        (np.zeros((4, 5, 2), np.uint8), r"\(4, 5, 2\)"),
        (np.zeros((3, 40, 50), np.uint8), r"\(3, 40, 50\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"\(1, 4, 5, 3\)"),
        (np.zeros(7, np.uint8), r"\(7,\)"),
        (np.zeros((0, 5, 3), np.uint8), "must have pixels"),
        (np.zeros((5, 0), np.uint8), "must have pixels"),
        ([PICTURE], "predict_batch"),
        (None, "NoneType"),
    ],
)
def test_arrays_that_are_not_are_refused(image: object, cause: str) -> None:
    with pytest.raises(ImageError, match=cause):
        check_image(image)


def test_images_of_pil_and_torch() -> None:
    pil = pytest.importorskip("PIL.Image")
    image = pil.fromarray(np.ascontiguousarray(PICTURE[:, :, ::-1]))
    np.testing.assert_array_equal(check_image(image), PICTURE)
    grey = np.stack([np.asarray(image.convert("L"))] * 3, axis=-1)
    np.testing.assert_array_equal(check_image(image.convert("L")), grey)
    assert check_image(image.convert("RGBA")).shape == PICTURE.shape
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(check_image(torch.from_numpy(PICTURE.copy())), PICTURE)
    first = torch.from_numpy(PICTURE.copy()).permute(2, 0, 1)
    for bad, cause in (
        (first, r"channels first.*transpose"),
        (first / 255, "channels first"),
        (torch.zeros(4, 5, 3, requires_grad=True), "uint8 in 0..255"),
        (torch.zeros(4, 5, 3, dtype=torch.bfloat16), "cannot be converted"),
    ):
        with pytest.raises(ImageError, match=cause):
            check_image(bad)


def test_a_png_with_a_wrong_checksum_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encoded(".png")
    for damaged_at in (len(whole) // 2, 20):  # the picture's data, its header
        data = bytearray(whole)
        data[damaged_at] ^= 0x55
        (tmp_path / "damaged.png").write_bytes(data)
        with pytest.raises(ImageError, match=r"damaged\.png is a damaged PNG"):
            read_image(tmp_path / "damaged.png")
    assert capfd.readouterr().err == ""  # libpng would have printed
    text = b"tEXtkey\0value"
    chunk = (len(text) - 4).to_bytes(4, "big") + text + bytes(4)  # no decoder needs this one
    (tmp_path / "text.png").write_bytes(whole[:33] + chunk + whole[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "text.png"), PICTURE)
