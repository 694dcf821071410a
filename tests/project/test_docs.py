"""The pages in docs/ keep their word: their Python and commands run, what they name is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import pytest

import cfpose_sdk
from cfpose_sdk import PoseEstimator, Poses
from cfpose_sdk.backends.bundled import BUNDLED_MODEL

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
# commands of the pages that tests run as they stand; what others need (GPUs, checkpoints, hours)
# has tests of its own, and its options are compared with --help by test_readme
RUN = ("start", "predict", "videos", "serve", "troubleshooting")
NOT_RUN = {
    "cfpose serve --port 8000": "tests/sdk/serving",
    "cfpose doctor": "tests/sdk/diagnostics",
}


def _blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def _commands(page: str) -> list[str]:
    lines = "\n".join(_blocks("bash", page)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("cfpose") and line not in NOT_RUN]


@pytest.fixture
def place(tmp_path: Path, root: Path) -> Path:
    """A folder as the pages assume it: the examples, a model of one's own, and a short video."""
    (tmp_path / "examples").symlink_to(root / "examples")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "mine.onnx").symlink_to(BUNDLED_MODEL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").symlink_to(root / "examples" / "photos" / "street.jpg")
    photo = cv2.imread(str(root / "examples" / "photos" / "street.jpg"))
    assert photo is not None
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (640, 480)
    )
    for shift in range(3):
        writer.write(photo[50:530, shift : shift + 640].copy())
    writer.release()
    return tmp_path


@pytest.mark.parametrize(
    ("page", "number"), [(page, n) for page in PAGES for n in range(len(_blocks("python", page)))]
)
def test_python_runs(page: str, number: int, place: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", _blocks("python", page)[number]]
    run = subprocess.run(
        command, cwd=place, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", [page for page in RUN if _commands(page)])
def test_commands_run(page: str, place: Path) -> None:
    for line in _commands(page):
        script, *words = shlex.split(line)
        command = [str(Path(sys.executable).parent / script), *words]
        run = subprocess.run(
            command, cwd=place, capture_output=True, text=True, check=False, timeout=300
        )
        assert run.returncode == 0, f"{line}: {run.stderr}"
    if page == "serve":
        rows = _rows_of(place)
        assert [Path(row["image"]).suffix for row in rows] == [".jpg", ".jpg"]
        assert (place / "models" / "cfpose" / "1" / "model.py").is_file()


def _rows_of(place: Path) -> list[dict[str, object]]:
    """What the reader of the page `serve` gives for the run of that page."""
    (code,) = (block for block in _blocks("python", "serve") if "def rows" in block)
    code += "\nprint(json.dumps(list(rows('poses'))))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True
    )
    rows: list[dict[str, object]] = json.loads(run.stdout)
    return rows


def test_messages_are_those_of_the_code() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for package in ("cfpose_sdk", "export/cfpose_export")
        for path in (ROOT / package).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # strings that go on in the next line
    rows = re.findall(r"^\| `([^`]+)`", PAGES["troubleshooting"], re.MULTILINE)
    assert len(rows) > 20
    assert [row for row in rows if row not in joined] == []


def test_names_on_the_pages_exist() -> None:
    owners = {"poses": Poses, "estimator": PoseEstimator}
    fields = set(Poses.__dataclass_fields__)
    for page, text in PAGES.items():
        for owner, name in re.findall(r"(?<![\w.])(poses|estimator)\.(\w+)", text):
            known = hasattr(owners[owner], name) or (owner == "poses" and name in fields)
            assert known or name in ("jpg", "csv", "json"), f"{page}: {owner}.{name}"
    public = set(re.findall(r"\.\. autoclass:: (\w+)$", PAGES["api"], re.MULTILINE))
    assert public <= set(cfpose_sdk.__all__)
    assert public | set(re.findall(r"``(\w+)``", PAGES["api"])) >= {
        name for name in cfpose_sdk.__all__ if "Error" not in name and name != "__version__"
    }


def test_every_extra_is_on_the_first_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert [extra for extra in extras if f"`{extra}`" not in PAGES["start"]] == []


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = "\n".join(re.findall(r"```{toctree}\n(.*?)```", PAGES["index"], re.DOTALL))
    assert set(PAGES) - {"index"} <= set(listed.split())


def test_nothing_of_a_build_is_left_in_the_tree() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, or no git")
    command = ["git", "-c", "safe.directory=*", "ls-files", "docs"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not re.search(r"docs/(_build|generated)/", files)
