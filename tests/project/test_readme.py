"""The documents keep their word: links, commands, flags, and the Python in README."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, *(ROOT / name for name in ("benchmarks", "cfpose_sdk", "docs", "examples",
                                                    "export", "training")))
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
    if not {"node_modules", "generated", "_build"} & set(path.parts)
)  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}


def _blocks(language: str, document: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[document], re.MULTILINE | re.DOTALL)


def _shell_lines(document: str) -> list[list[str]]:
    lines = "\n".join(_blocks("bash", document)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


@cache
def _help(script: str, *words: str) -> str:
    command = [str(Path(sys.executable).parent / script), *words, "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, f"{' '.join(command)}: {run.stderr}"
    return run.stdout


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[document]):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        if path.startswith("generated/"):
            continue  # made by `make docs`, whose test looks at its links
        file = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert file.exists(), f"{document} links to {target}"
        assert ROOT in (file, *file.parents), f"{document} links out of the tree: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{document} links to {target}"


def test_readme_sets_up_with_two_commands() -> None:
    first = _shell_lines("README.md")[:2]
    assert first == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_verbs_exist(document: str) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    named = {line[1] for line in _shell_lines(document) if line[0] == "make"}
    named |= set(re.findall(r"`make (\w+)", TEXTS[document]))
    assert named <= set(phony.group(1).split())


def test_every_make_verb_is_phony_and_has_a_rule() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()
    assert set(re.findall(r"^([a-z]+):", text, re.MULTILINE)) == set(phony)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_flags_exist(document: str) -> None:
    for script, *words in _shell_lines(document):
        if not script.startswith("cfpose"):
            continue
        assert script in PROJECT["scripts"]
        verb = words[:1] if words and re.fullmatch(r"[a-z][a-z0-9]*", words[0]) else []
        if (
            verb
            and words[1:2]
            and re.search(rf"[{{,]{re.escape(words[1])}[,}}]", _help(script, *verb))
        ):
            verb = words[:2]  # data fetch: an action of its own
        flags = {word.partition("=")[0] for word in words if word.startswith("-")}
        known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", _help(script, *verb)))
        assert flags <= known | {"--help"}, f"{document}: {script} {' '.join(words)}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_extras_exist(document: str) -> None:
    for named in re.findall(r"pip install '[^']*\[([\w,-]+)\]'", TEXTS[document]):
        assert set(named.split(",")) <= set(EXTRAS)
        assert not {"cpu", "gpu"} <= set(named.split(","))


@pytest.mark.parametrize("number", range(len(_blocks("python", "README.md"))))
def test_the_python_of_readme_runs(number: int, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    command = [sys.executable, "-c", _blocks("python", "README.md")[number]]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr


def test_readme_is_read_from_start_to_end() -> None:
    order = ["Try it", "Five lines", "Install", "Results", "What comes out", "Public names",
             "Not there yet", "Licence and data", "Citation"]  # fmt: skip
    headings = re.findall(r"^## (.*)$", TEXTS["README.md"], re.MULTILINE)
    assert [heading for heading in headings if heading in order] == order
    assert TEXTS["README.md"].count("<!-- results:begin -->") == 1
    assert TEXTS["README.md"].count("<!-- results:end -->") == 1
