"""`data fetch`: resumed, checked, unpacked; what has no address is described and recognised."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfpose_sdk.errors import DatasetError, InputError
from cfpose_training.archives import fetch
from cfpose_training.archives.catalogue import SETS, FileSet
from cfpose_training.archives.fetch import fetch_set
from cfpose_training.cli import main


class Host(http.server.ThreadingHTTPServer):
    """Serves `files`; the first `cuts` answers end half way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cuts = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Host

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        data = self._answer(start)
        if data is not None:
            if self.server.cuts:
                self.server.cuts -= 1
                data = data[: len(data) // 2]
            self.wfile.write(data)

    def _answer(self, start: int | None) -> bytes | None:
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return None
        rest = data[start or 0 :]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        return rest

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


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.getvalue()


def small_coco(host: Host) -> FileSet:
    """COCO's set with small archives of the same layout."""
    contents = (
        zipped({f"annotations/{kind}_{split}2017.json": split.encode()
                for kind in ("person_keypoints", "captions") for split in ("train", "val")}),
        zipped({f"val2017/{n}.jpg": b"v" for n in range(3)}),
        zipped({"train2017/": b"", **{f"train2017/{n}.jpg": bytes(500) for n in range(4)}}),
    )  # fmt: skip
    files = []
    for file, data, entries in zip(SETS["coco"].files, contents, (None, 3, 4), strict=True):
        host.files["/" + file.url.split("/", 3)[3]] = data
        files.append(
            dataclasses.replace(
                file, size=len(data), sha256=hashlib.sha256(data).hexdigest(), entries=entries
            )
        )
    return FileSet(SETS["coco"].notice, tuple(files))


def test_coco_comes_resumed_and_checked_and_is_not_fetched_again(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, root = small_coco(host), tmp_path / "data"
    host.cuts = 2
    assert fetch_set(coco, root, mirror=host.url) == []
    said = capsys.readouterr().err
    assert said.index("CC BY 4.0") < said.index("fetching http://")
    assert sum(range_ is not None for _, range_ in host.asked) == 2
    assert sorted(p.name for p in (root / "annotations").iterdir()) == [
        "person_keypoints_train2017.json", "person_keypoints_val2017.json",
    ]  # fmt: skip
    assert len(list((root / "train2017").iterdir())) == 4
    assert not list(root.glob("*.zip*"))
    assert json.loads((root / "downloads.json").read_text()).keys() == {
        "annotations_trainval2017.zip", "val2017.zip", "train2017.zip",
    }  # fmt: skip
    count = len(host.asked)
    fetch_set(coco, root, mirror=host.url)
    assert len(host.asked) == count
    assert "photos of train2017: here" in capsys.readouterr().err
    (root / "train2017" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match="holds 3 entries, photos of train2017 has 4"):
        fetch_set(coco, root, mirror=host.url)


def test_an_archive_that_was_not_unpacked_to_its_end_is_unpacked_again(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = small_coco(host)
    monkeypatch.setattr(
        fetch.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        fetch_set(coco, tmp_path, mirror=host.url)
    monkeypatch.undo()
    assert (tmp_path / "annotations_trainval2017.zip").is_file()
    asked = len(host.asked)
    fetch_set(coco, tmp_path, mirror=host.url)
    assert len(host.asked) == asked + 2
    assert (tmp_path / "annotations" / "person_keypoints_val2017.json").read_bytes() == b"val"


def test_another_content_is_refused(host: Host, tmp_path: Path) -> None:
    coco = small_coco(host)
    wrong = FileSet("", (dataclasses.replace(coco.files[0], sha256="0" * 64),))
    with pytest.raises(DatasetError, match=r"SHA-256 .* expected 0000.*it was deleted"):
        fetch_set(wrong, tmp_path, mirror=host.url)
    assert not list(tmp_path.glob("*.zip"))
    weights = SETS["imagenet-hrnet"]
    host.files["/mmpose/pretrain_models/hrnet_w32-36af842e.pth"] = b"other weights"
    with pytest.raises(DatasetError, match="expected 36af842e…"):
        fetch_set(weights, tmp_path, mirror=host.url)
    with pytest.raises(DatasetError, match=r"cannot be reached.*404"):
        fetch_set(FileSet("", weights.files[1:]), tmp_path, mirror=host.url)


def test_files_without_an_address_are_described_and_recognised(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = "crowdpose_annotations/{}"
    names = ("mmpose_crowdpose_trainval.json", "mmpose_crowdpose_test.json", "notes.txt",
             "det_for_crowd_test_0.1_0.5.json")  # fmt: skip
    data = tarred({inside.format(name): b"[]" for name in names})
    host.files["/mmpose/datasets/crowdpose_annotations.tar"] = data
    root = tmp_path / "data"
    assert main(["data", "fetch", "crowdpose", "--into", str(root), "--mirror", host.url]) == 1
    said = capsys.readouterr()
    assert "take it as data for research" in said.err
    assert "BY HAND: CrowdPose's photos, images.zip, 20,000 of them: has no stable" in said.out
    assert sorted(p.name for p in (root / "annotations").iterdir()) == sorted(
        {*names} - {"notes.txt"}
    )
    assert main(["data", "fetch", "boxes", "--into", str(root), "--mirror", host.url]) == 1
    assert "the folder person_detection_results; put it at" in capsys.readouterr().out
    boxes = root / "person_detection_results" / "COCO_val2017_detections_AP_H_56_person.json"
    boxes.parent.mkdir()
    boxes.write_text(json.dumps([{}] * 5))
    with pytest.raises(DatasetError, match="holds 5 entries"):
        main(["data", "fetch", "boxes", "--into", str(root)])
    boxes.write_text(json.dumps([0] * 104_125))
    assert main(["data", "fetch", "boxes", "--into", str(root)]) == 0


def test_a_place_or_a_mirror_that_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(InputError, match=r"--into .*taken is no folder; give another --into"):
        main(["data", "fetch", "coco", "--into", str(taken)])
    command = ["data", "fetch", "coco", "--into", str(tmp_path / "data"), "--mirror"]
    with pytest.raises(DatasetError, match=r"mirror.example/.*zip is no address"):
        main([*command, "mirror.example"])
    with pytest.raises(DatasetError, match=r"0 of 252907541 bytes.* or give --mirror another host"):
        main([*command, "http://127.0.0.1:1"])


def test_a_name_of_weights_carries_the_hash_that_is_checked() -> None:
    for file in SETS["imagenet-hrnet"].files:
        assert file.name.endswith(f"-{file.sha256}.pth")
        assert file.targets == (f"imagenet/{file.name}",)
