"""Downloads from a server of the test's own, that cuts connections, lies, and cannot resume."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cfpose_bench.data import dataset, download
from cfpose_bench.data.download import COCO_VAL, Archive, fetch, fetch_archives
from cfpose_sdk.errors import DatasetError


class Host(http.server.ThreadingHTTPServer):
    """Serves `files`; the first `cuts` answers end half way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str | None] = []
        self.cuts = 0
        self.resumes = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        data, wanted = self.server.files.get(self.path), self.headers.get("Range")
        self.server.asked.append(wanted)
        if data is None:
            self.send_error(404)
            return
        start = 0
        if wanted and self.server.resumes:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        rest = data[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def host() -> Iterator[Host]:
    server = Host()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


DATA = np.random.default_rng(0).bytes(3_000_000)
INSTEAD = "pass --data-root with the data set"


def test_a_cut_download_goes_on_where_it_stopped(host: Host, tmp_path: Path) -> None:
    host.files["/f"], host.cuts = DATA, 3
    fetch(f"{host.url}/f", tmp_path / "f", len(DATA), instead=INSTEAD)
    assert (tmp_path / "f").read_bytes() == DATA
    assert host.asked[0] is None
    starts = [int(str(r)[6:-1]) for r in host.asked[1:]]
    assert starts == [1_500_000, 2_250_000, 2_625_000]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_what_an_earlier_run_fetched_is_kept(host: Host, tmp_path: Path) -> None:
    host.files["/f"] = DATA
    (tmp_path / "f.part").write_bytes(DATA[:1000])
    fetch(f"{host.url}/f", tmp_path / "f", len(DATA), instead=INSTEAD)
    assert host.asked == ["bytes=1000-"]
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_host_that_cannot_resume_sends_all_again(host: Host, tmp_path: Path) -> None:
    host.files["/f"], host.cuts, host.resumes = DATA, 1, False
    fetch(f"{host.url}/f", tmp_path / "f", len(DATA), instead=INSTEAD)
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_file_of_another_size_or_an_absent_one_is_refused(host: Host, tmp_path: Path) -> None:
    host.files["/f"] = DATA
    with pytest.raises(DatasetError, match="has 3000000 bytes, expected 2999999"):
        fetch(f"{host.url}/f", tmp_path / "f", len(DATA) - 1, instead=INSTEAD)
    host.asked.clear()
    with pytest.raises(DatasetError, match=r"404.*0 of 5 bytes.*again, or pass --data-root"):
        fetch(f"{host.url}/none", tmp_path / "g", 5, instead=INSTEAD)
    assert len(host.asked) == 5
    assert not (tmp_path / "f").exists()
    (tmp_path / "h.part").write_bytes(DATA + b"x")  # of another file of that name
    with pytest.raises(DatasetError, match="more than the published 3000000 bytes"):
        fetch(f"{host.url}/f", tmp_path / "h", len(DATA), instead=INSTEAD)
    fetch(f"{host.url}/f", tmp_path / "h", len(DATA), instead=INSTEAD)
    assert (tmp_path / "h").read_bytes() == DATA


def test_what_is_no_address_or_no_web_server_is_said(tmp_path: Path) -> None:
    for url in ("mirror.example/f", "ftp://mirror.example/f", "", "http://[::1/f"):
        with pytest.raises(DatasetError, match=r"is no address; expected .* http://"):
            fetch(url, tmp_path / "f", 5, instead=INSTEAD)
    for size in (5, None):
        with pytest.raises(DatasetError, match=r"can't contain control characters.*or pass"):
            fetch("http://a mirror/f", tmp_path / "f", size, instead=INSTEAD)


@pytest.mark.parametrize("text", ["{bad", "[]", b"\xff"])
def test_a_broken_record_of_downloads_is_named(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "downloads.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=r"downloads.json is no record.*delete it"):
        fetch_archives(COCO_VAL, tmp_path)


def packed(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def coco_like(host: Host, folder: Path) -> tuple[Archive, ...]:
    """The two archives of COCO, over the photos and annotations of a small data set."""
    truth = (folder / "annotations.json").read_bytes()
    name = "annotations/person_keypoints_val2017.json"
    photos = {f"val2017/{p.name}": p.read_bytes() for p in (folder / "images").iterdir()}
    contents = (packed({name: truth, "annotations/other.json": b"{}"}), packed(photos))
    archives = []
    for archive, data in zip(COCO_VAL, contents, strict=True):
        host.files[f"/{archive.place}"] = data
        digest = hashlib.sha256(data).hexdigest()
        archives.append(Archive(archive.place, len(data), digest, archive.wanted))
    return tuple(archives)


def test_coco_is_fetched_once_checked_and_opened(
    host: Host,
    dataset_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archives = coco_like(host, dataset_folder)
    monkeypatch.delenv("CFPOSE_DATA", raising=False)
    monkeypatch.setenv("CFPOSE_CACHE", str(tmp_path / "cache"))
    found = dataset.find_dataset("coco-val", mirror=host.url, archives=archives)
    assert (found.name, found.image_ids) == ("coco-val", (1, 2, 3))
    said = capsys.readouterr().err
    assert "CC BY 4.0" in said
    assert "Flickr" in said
    assert len(host.asked) == 2
    folder = tmp_path / "cache" / "coco"
    assert sorted(p.name for p in folder.iterdir()) == ["annotations", "downloads.json", "val2017"]
    assert [p.name for p in (folder / "annotations").iterdir()] == ["person_keypoints_val2017.json"]
    seen = json.loads((folder / "downloads.json").read_text())
    assert seen == {a.name: a.sha256 for a in archives}
    dataset.find_dataset("coco-val", mirror=host.url, archives=archives)
    assert len(host.asked) == 2  # all is there
    assert capsys.readouterr().err == ""


def test_another_content_is_refused_and_an_unpublished_hash_is_recorded(
    host: Host, dataset_folder: Path, tmp_path: Path
) -> None:
    first, second = coco_like(host, dataset_folder)
    wrong = Archive(first.place, first.bytes, "0" * 64, first.wanted)
    with pytest.raises(DatasetError, match="SHA-256"):
        fetch_archives((wrong,), tmp_path / "a", host=host.url)
    assert not (tmp_path / "a" / first.name).exists()
    unpublished = Archive(second.place, second.bytes, None, second.wanted)
    fetch_archives((unpublished,), tmp_path / "b", host=host.url)
    seen = json.loads((tmp_path / "b" / "downloads.json").read_text())
    assert seen == {second.name: second.sha256}


def test_the_cache_is_below_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CFPOSE_CACHE", raising=False)
    monkeypatch.setattr(download.Path, "home", lambda: tmp_path)
    assert download.coco_cache() == tmp_path / ".cache" / "cfpose" / "coco"
