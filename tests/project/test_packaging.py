"""What a user installs: the wheel and the source archive, built from this tree."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

from cfpose_sdk.backends.bundled import BUNDLED_FINDER, bundled_models

PACKAGES = {"cfpose_bench", "cfpose_export", "cfpose_sdk", "cfpose_training"}
MODELS = {f"cfpose_sdk/models/{path.name}" for path in (*bundled_models().values(), BUNDLED_FINDER)}


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was built out of that archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(root)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    """Path in the wheel → content."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    """Paths in the source archive, without its leading folder."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def _dist_info(wheel: dict[str, bytes], file: str) -> str:
    (name,) = (name for name in wheel if name.endswith(f".dist-info/{file}"))
    return wheel[name].decode()


def test_the_wheel_installs_four_packages_and_nothing_else(wheel: dict[str, bytes]) -> None:
    tops = {PurePosixPath(name).parts[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_every_module_of_the_tree_is_in_the_wheel(root: Path, wheel: dict[str, bytes]) -> None:
    homes = {"cfpose_sdk": root, "cfpose_training": root / "training"}
    homes |= {"cfpose_export": root / "export", "cfpose_bench": root / "benchmarks"}
    expected = {
        path.relative_to(home).as_posix()
        for package, home in homes.items()
        for path in (home / package).rglob("*.py")
    }
    assert {name for name in wheel if name.endswith(".py")} == expected


def test_the_papers_recipes_are_in_the_wheel(root: Path, wheel: dict[str, bytes]) -> None:
    for name in ("paper-coco.toml", "paper-crowdpose.toml"):
        recipe = (root / "training" / "recipes" / name).read_bytes()
        assert wheel[f"cfpose_training/recipes/{name}"] == recipe


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_packages_are_typed(wheel: dict[str, bytes], package: str) -> None:
    assert f"{package}/py.typed" in wheel


def test_the_bundled_models_travel(wheel: dict[str, bytes], sdist: set[str]) -> None:
    assert {name for name in wheel if name.endswith(".onnx")} == MODELS
    assert sdist >= MODELS
    assert sum(len(wheel[name]) for name in MODELS) < 40 * 1000 * 1000


def test_the_demo_photos_travel(root: Path, wheel: dict[str, bytes]) -> None:
    photos = {path.name: path.read_bytes() for path in (root / "examples" / "photos").iterdir()}
    folder = "cfpose_sdk/photos/"
    assert {
        name.removeprefix(folder): data for name, data in wheel.items() if name.startswith(folder)
    } == photos
    assert {"people.json", "SOURCES.md", "street.jpg"} <= photos.keys()


def test_the_metadata(root: Path, wheel: dict[str, bytes]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    metadata = Parser().parsestr(_dist_info(wheel, "METADATA"))
    core = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert metadata["Name"] == "cfpose-sdk"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {r.split(">")[0] for r in core} == {"numpy", "opencv-python-headless"}
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert "Apache License" in _dist_info(wheel, "licenses/LICENSE")
    assert "MoveNet" in _dist_info(wheel, "licenses/NOTICE")


def test_the_version_is_the_packages_own(wheel: dict[str, bytes]) -> None:
    import cfpose_sdk

    assert Parser().parsestr(_dist_info(wheel, "METADATA"))["Version"] == cfpose_sdk.__version__


def test_the_entry_points(wheel: dict[str, bytes]) -> None:
    groups = ConfigParser(delimiters=["="])
    groups.read_string(_dist_info(wheel, "entry_points.txt"))
    assert set(groups.sections()) == {"console_scripts", "cfpose.backends"}
    assert dict(groups["cfpose.backends"]) == {
        "safetensors": "cfpose_training.checkpoint_backend:CheckpointBackend"
    }
    scripts = dict(groups["console_scripts"])
    assert set(scripts) == {"cfpose", "cfpose-bench", "cfpose-export", "cfpose-train"}
    assert {target.split(":")[0] for target in scripts.values()} == {"cfpose_sdk.commands"}


def test_no_extra_brings_both_onnxruntimes(root: Path) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]

    def expand(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in extras[extra]:
            if requirement.startswith("cfpose-sdk["):
                inner = requirement.removeprefix("cfpose-sdk[").rstrip("]").split(",")
                found |= set().union(*(expand(name.strip()) for name in inner))
            else:
                found.add(requirement.split(">")[0])
        return found

    for extra in extras:
        assert not {"onnxruntime", "onnxruntime-gpu"} <= expand(extra), extra


def test_the_source_archive_is_whole(sdist: set[str]) -> None:
    needed = {"LICENSE", "NOTICE", "README.md", "Makefile", "pyproject.toml", "tests/conftest.py"}
    assert sdist >= needed | {"examples/photos/street.jpg", "training/README.md"}
    strays = {name for name in sdist if name.startswith(("runs/", "out/", ".venv", "dist/"))}
    assert strays == set()
