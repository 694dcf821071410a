"""The repository itself: size, names, length of files, nothing of anybody's machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

MIB = 1024 * 1024
WEIGHTS = {".engine", ".onnx", ".pt", ".pth", ".safetensors"}
SOURCES = {
    ".cfg", ".cpp", ".css", ".html", ".ini", ".js", ".json", ".md", ".mjs", ".py", ".sh", ".toml",
    ".txt", ".yaml", ".yml",
}  # fmt: skip
BARE_NAMES = {".ci/run", ".gitattributes", ".gitignore", "Makefile"}
NO_PACKAGE = ("training", "export", "benchmarks", "studies", "tests", "examples")

# The brackets keep this file from matching itself.
FOREIGN = {
    "a path of one machine": r"(?<![\w.\-])/(?:hom[e]|roo[t]|wor[k]|far[m]|User[s]|mn[t])/\w",
    "a temporary path": r"(?<![\w.\-])/tm[p]/\w",
    "a registry host": r"pyp[i]\.org|pythonhoste[d]|npmj[s]\.|deb\.debia[n]|downloa[d]\.pytorch",
    "a tracker's number": r"\b[Ii]ssu[e] #?\d",
}


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    """Every file that is, or is about to be, under version control."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git: there is no list of tracked files")
    # safe.directory: a build machine may check out as one user and test as another
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout
    names = sorted({name for name in listed.decode().split("\0") if name})
    return [root / name for name in names if (root / name).is_file()]


def _texts(root: Path, tracked: list[Path]) -> list[tuple[str, str]]:
    return [
        (name, path.read_text(encoding="utf-8"))
        for path in tracked
        if (name := path.relative_to(root).as_posix()) in BARE_NAMES or path.suffix in SOURCES
    ]


def test_the_tree_is_small(tracked: list[Path]) -> None:
    assert sum(path.stat().st_size for path in tracked) <= 40 * MIB


def test_the_weights_are_small(root: Path, tracked: list[Path]) -> None:
    weights = {p: p.stat().st_size for p in tracked if p.suffix in WEIGHTS}
    bundled = {path for path in weights if (root / "cfpose_sdk" / "models") in path.parents}
    assert bundled, "no bundled model is in cfpose_sdk/models"
    assert sum(weights.values()) < 20 * 1000 * 1000


def test_no_source_is_long(root: Path, tracked: list[Path]) -> None:
    lengths = {
        name: text.count("\n")
        for name, text in _texts(root, tracked)
        if not name.endswith((".json", ".md"))
    }
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_no_file_is_named_after_nothing(tracked: list[Path]) -> None:
    nothing = {"common", "helper", "helpers", "misc", "tools", "util", "utils"}
    assert [path for path in tracked if path.stem in nothing or path.parent.name in nothing] == []


@pytest.mark.parametrize("folder", NO_PACKAGE)
def test_workshop_folders_are_no_packages(root: Path, folder: str) -> None:
    assert (root / folder).is_dir()
    assert not (root / folder / "__init__.py").exists()


def test_tests_are_no_packages(root: Path) -> None:
    assert list((root / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("what", FOREIGN)
def test_the_project_speaks_of_itself_alone(root: Path, tracked: list[Path], what: str) -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for name, text in _texts(root, tracked)
        for match in re.finditer(FOREIGN[what], text)
    ]
    assert found == [], f"{what} stands in the tree"


def test_the_patterns_of_foreign_words_do_match() -> None:
    samples = {
        "a path of one machine": ["/" + "home/someone/x", "see /" + "root/x", '"/' + "work/x"],
        "a temporary path": ["/" + "tmp/x"],
        "a registry host": ["https://" + "pypi" + ".org/simple"],
        "a tracker's number": ["iss" + "ue 12", "Iss" + "ue #3"],
    }
    innocent = "benchmarks/results, ../shared/data, the issue is /dev/null"
    for what, texts in samples.items():
        assert all(re.search(FOREIGN[what], text) for text in texts), what
        assert not re.search(FOREIGN[what], innocent), what


def test_ci_runs_the_tests_and_nothing_else(root: Path) -> None:
    script = root / ".ci" / "run"
    lines = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    verbs = ["make test", "exec make slow"]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', *verbs]


@pytest.mark.parametrize(
    ("verb", "arguments"), [("test", "-n $(JOBS) --dist loadfile"), ("slow", "tests/slow")]
)
def test_the_test_verbs_end_with_pytest(root: Path, verb: str, arguments: str) -> None:
    recipe = (root / "Makefile").read_text().split(f"\n{verb}:", 1)[1].split("\n\n", 1)[0]
    command = f"\t@OMP_NUM_THREADS=1 $(BIN)/python -m pytest {arguments}"
    assert recipe.splitlines()[-1] == command


def test_only_make_slow_collects_the_slow_tests(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["pytest"]
    assert "slow" in settings["ini_options"]["norecursedirs"]
    assert list((root / "tests" / "slow").glob("test_*.py"))


def test_node_packages_name_no_registry_and_stay_out(root: Path, tracked: list[Path]) -> None:
    locks = [path for path in tracked if path.name == "package-lock.json"]
    assert locks
    assert [path for path in locks if '"resolved"' in path.read_text()] == []
    assert [
        path for path in tracked if "node_modules" in path.parts or path.suffix == ".wasm"
    ] == []
