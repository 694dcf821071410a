"""`tuned:M` and `--precision tuned`: the setting that cfpose tune kept, finder and all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfpose_bench.cli import _as_tuned
from cfpose_bench.models.open import open_finder, open_model, parse_name
from cfpose_sdk.backends import tuned
from cfpose_sdk.backends.bundled import BUNDLED_MODEL
from cfpose_sdk.backends.tuned import Setting, Way
from cfpose_sdk.errors import ArtifactError, BackendError
from cfpose_sdk.files import CACHE_VARIABLE, digest

pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A tuned file of the default model in a cache of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    setting = Setting(Way("openvino"), Way("openvino"), 1)
    record = {
        **tuned.record_of(BUNDLED_MODEL),
        "tuned": tuned.plain(setting),
        "float32": tuned.plain(Setting()),
        "measured": {"date": "2026-11-29", "told": "twice"},
    }
    file = tuned.tuned_file(BUNDLED_MODEL, digest(BUNDLED_MODEL))
    file.parent.mkdir()
    file.write_text(tuned.signed(record))
    return setting


def test_names() -> None:
    name = parse_name("tuned:default")
    assert (name.label, name.path, name.tuned) == ("default, tuned", BUNDLED_MODEL, True)
    assert parse_name("tuned:a/b.onnx").label == "b.onnx, tuned"
    assert not parse_name("default").tuned
    with pytest.raises(ArtifactError, match="no bundled model"):
        parse_name("tuned:cfpose-x")
    assert list(map(_as_tuned("tuned"), ["default", "a.onnx", "movenet:b.onnx"])) == [
        "tuned:default", "tuned:a.onnx", "movenet:b.onnx",
    ]  # fmt: skip
    assert _as_tuned(None)("default") == "default"


def test_the_kept_setting_runs(kept: Setting, root: Path) -> None:
    opened = open_model(parse_name("tuned:default"), find=True, device="cpu")
    assert opened.facts.name == "default, tuned"
    assert str(opened.facts.provider).startswith("OpenVINO")
    assert opened.finder is not None
    assert opened.finder._finder.provider.startswith("OpenVINO")
    assert len(opened.model.predict(root / "examples" / "photos" / "street.jpg")) > 2
    opened.close()
    plain = open_model(parse_name("default"), find=True, device="cpu")
    assert plain.facts.provider == "CPUExecutionProvider"
    plain.close()
    finder = open_finder(None, threads=2, tuned=tuned.read_tuned(BUNDLED_MODEL))
    assert finder.provider.startswith("OpenVINO")
    finder.close()


def test_without_a_file_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(BackendError, match="run: cfpose tune"):
        open_model(parse_name("tuned:default"), device="cpu")
