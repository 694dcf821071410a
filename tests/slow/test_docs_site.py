"""`make docs`: no warning, nothing fetched, and every link inside leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("sphinx", reason="the extra docs is not installed")
pytest.importorskip("furo", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(folder / "trees"), str(root / "docs"), str(folder / "html")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert run.returncode == 0, run.stderr
    return folder / "html"


class _Page(HTMLParser):
    """The links, loaded files and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    files = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    return {file: _Page(file.read_text(encoding="utf-8")) for file in files}


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, _Page]) -> None:
    assert len(pages) > 20
    for file, page in pages.items():
        assert [url for url in page.loaded if urlsplit(url).netloc] == [], file


def test_every_link_inside_leads_somewhere(pages: dict[Path, _Page]) -> None:
    for file, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "http", "mailto", "data"), f"{file}: {link}"
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.exists(), f"{file.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{file.name}: {link}"


def test_commands_and_fields_stand_on_the_pages(site: Path) -> None:
    text = (site / "generated" / "command-cfpose.html").read_text(encoding="utf-8")
    for option in ("--max-pixels", "--detect-every", "--shard-size", "--max-people"):
        assert option in text
    recipe = (site / "generated" / "recipe.html").read_text(encoding="utf-8")
    for field in ("oks_window", "mosaic_p", "ema_decay", "node_channels"):
        assert f">{field}<" in recipe
    api = (site / "api.html").read_text(encoding="utf-8")
    assert "predict_batch" in api
    assert "run_bulk" in api
