"""The repository itself: size, names, rooms, length of files, nothing of anybody's machine."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024
LARGE = 1_000_000  # bytes of a file
LARGE_FILES: set[str] = set()  # that are there all the same, beside the bundled weights
WEIGHTS = {".engine", ".onnx", ".pt", ".pth", ".safetensors"}
SOURCES = {
    ".cfg", ".cpp", ".css", ".html", ".ini", ".js", ".json", ".md", ".mjs", ".py", ".sh", ".toml",
    ".txt", ".yaml", ".yml",
}  # fmt: skip
BARE_NAMES = {".ci/run", ".dockerignore", ".gitattributes", ".gitignore", "Dockerfile", "Makefile"}
NO_PACKAGE = ("training", "export", "benchmarks", "studies", "tests", "examples")
PACKAGES = {
    "cfpose_sdk": "cfpose_sdk",
    "cfpose_training": "training/cfpose_training",
    "cfpose_export": "export/cfpose_export",
    "cfpose_bench": "benchmarks/cfpose_bench",
}
MOST_FLOORS = {"SDK floors": 9, "Training floors": 9, "Export floors": 5, "Bench floors": 5}
MOST_IN_A_PACKAGE, MOST_IN_A_ROOM = 14, 9  # modules beside `__init__`
MOST_IN_THE_WHEEL = 256  # as many as there are

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
    assert sum(path.stat().st_size for path in tracked) <= 60 * MIB


def test_no_file_is_large(root: Path, tracked: list[Path]) -> None:
    bundled = {path for path in tracked if path.parent == root / "cfpose_sdk" / "models"}
    large = {
        path.relative_to(root).as_posix()
        for path in tracked
        if path.stat().st_size > LARGE and not (path in bundled and path.suffix == ".onnx")
    }
    assert large <= LARGE_FILES, "keep it out of the history: make it smaller, or make it anew"


def test_the_weights_are_small(root: Path, tracked: list[Path]) -> None:
    weights = {p: p.stat().st_size for p in tracked if p.suffix in WEIGHTS}
    bundled = {path for path in weights if (root / "cfpose_sdk" / "models") in path.parents}
    assert bundled, "no bundled model is in cfpose_sdk/models"
    assert sum(weights.values()) < 40 * 1000 * 1000


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


def _modules(folder: Path) -> list[Path]:
    """Every module below a package's folder, without the `__init__` of each room."""
    return [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_are_small(root: Path, package: str) -> None:
    top = root / PACKAGES[package]
    rooms: dict[Path, list[str]] = {}
    for path in _modules(top):
        rooms.setdefault(path.parent, []).append(path.name)
    assert top in rooms
    full = {
        room.relative_to(root).as_posix(): names
        for room, names in rooms.items()
        if len(names) > (MOST_IN_A_PACKAGE if room == top else MOST_IN_A_ROOM)
    }
    assert full == {}, "give a part of it a room of its own"


def test_the_wheel_holds_few_modules(root: Path) -> None:
    assert sum(len(_modules(root / top)) for top in PACKAGES.values()) <= MOST_IN_THE_WHEEL


def test_the_floors_are_few(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    floors = {c["name"]: len(c["layers"]) for c in contracts if c["name"] in MOST_FLOORS}
    assert floors.keys() == MOST_FLOORS.keys()
    assert {name: n for name, n in floors.items() if n > MOST_FLOORS[name]} == {}


def _imports_on_loading(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when a module is loaded: none inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (n for part in node.orelse for n in _imports_on_loading(part))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports_on_loading(node)


def _import_graph(top: Path) -> dict[str, set[str]]:
    """Module → the modules of the same package that it imports when it is loaded."""
    files = {}
    for path in top.rglob("*.py"):
        parts = path.relative_to(top.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in _imports_on_loading(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = {alias.name for alias in node.names}
            else:
                assert node.level == 0, f"{path} has a relative import; write the whole name"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                targets = (inside & files.keys()) | ({str(node.module)} - {name})
                if inside <= files.keys():
                    targets.discard(str(node.module))
            graph[name] |= targets & files.keys()
    return graph


def _circle(top: Path) -> list[str]:
    """The modules of an import circle, the first twice; [] where there is none."""
    try:
        graphlib.TopologicalSorter(_import_graph(top)).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other_in_a_circle(root: Path, package: str) -> None:
    assert _circle(root / PACKAGES[package]) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    room = tmp_path / "house" / "room"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text("from house.room.first import A\n")
    first = "try:\n    from house import second\nexcept OSError:\n    A = 1\n"
    (room / "first.py").write_text(first)
    second = room.parent / "second.py"
    second.write_text("def later():\n    import house.room\n")
    assert _circle(room.parent) == []
    second.write_text("if TYPE_CHECKING:\n    import house.room\n")
    assert _circle(room.parent) == []
    second.write_text("class A:\n    import house.room\n")
    circle = _circle(room.parent)
    assert sorted(circle[1:]) == ["house.room", "house.room.first", "house.second"]


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
