"""The folder and the children of a tune vanish with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfpose_sdk.errors import InputError
from cfpose_sdk.tuning.workplace import Workplace

HELD = """
import subprocess, sys, time
from pathlib import Path
from cfpose_sdk.tuning.workplace import Workplace
with Workplace(Path(sys.argv[1])) as work:
    (work.folder / "graph.onnx").write_bytes(b"half")
    print(work.folder, flush=True)
    time.sleep(60)
"""


def gone(path: Path, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not path.exists()


def test_the_folder_goes_with_the_block(tmp_path: Path) -> None:
    with Workplace(tmp_path / "cache") as work:
        assert work.environment["TMPDIR"] == str(work.folder)
        (work.folder / "deep").mkdir()
        (work.folder / "deep" / "file").write_text("x")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(ZeroDivisionError), Workplace(tmp_path / "cache"):
        raise ZeroDivisionError
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_the_folder_goes_when_the_process_is_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip())
    assert (folder / "graph.onnx").exists()
    child.kill()
    child.wait()
    child.stdout.close()
    assert gone(folder)


def test_a_commands_output_and_code(tmp_path: Path) -> None:
    with Workplace(tmp_path) as work:
        done = work.command("export", "--help")
        assert done.returncode == 0
        assert "usage: cfpose-export" in done.stdout
        done = work.command("export", "inspect", "absent.onnx")
        assert done.returncode == 2
        assert "absent.onnx" in done.stderr


def test_a_command_ends_with_its_parent(tmp_path: Path) -> None:
    """What it runs for is dead: the end of its standard input says so."""
    from cfpose_sdk.tuning import workplace

    code = workplace._COMMAND.format(name="export").replace("from cfpose_sdk", "#")
    code = code.partition("#")[0] + "import time; print('on', flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    child.stdin.close()
    assert child.wait(20) == 1
    child.stdout.close()


@pytest.mark.skipif(os.name == "nt" or not os.getuid(), reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="set CFPOSE_CACHE to another folder"):
        Workplace(tmp_path / "cache")


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="set CFPOSE_CACHE to another folder"):
        Workplace(tmp_path / "cache")
