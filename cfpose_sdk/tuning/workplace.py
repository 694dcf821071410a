"""Child processes that end with this one, and a folder that vanishes with it, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from cfpose_sdk.errors import InputError

# waits for the end of its standard input, which comes with the end of the parent, and removes the
# folder; twice, because another child may be writing its last file
_KEEPER = """
import os, shutil, sys, time
while os.read(0, 4096):
    pass
for pause in (0.0, 0.3, 1.0):
    time.sleep(pause)
    if os.path.isdir(sys.argv[1]):
        shutil.rmtree(sys.argv[1], ignore_errors=True)
    elif pause:
        break
"""
# a command of cfpose that ends when its standard input does
_COMMAND = """
import os, sys, threading
def follow():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=follow, daemon=True).start()
from cfpose_sdk.commands import {name}
sys.exit({name}())
"""


class Workplace:
    """`with Workplace(parent) as work: work.folder`; also gone when this process is killed.

    A keeper process waits for the end of this one. Raises InputError where `parent` cannot be
    written to.
    """

    def __init__(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=".work-", dir=parent))
        except OSError as error:
            raise InputError(
                f"the cache {parent} cannot be written: {error}; set CFPOSE_CACHE to another folder"
            ) from error
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C, and what else ends the group, must not end it
        )

    @property
    def environment(self) -> dict[str, str]:
        """Of child processes: their temporary files lie in the folder, too."""
        return {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.folder))}

    def command(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `cfpose-NAME WORDS…` to its end; its output and messages as text."""
        with tempfile.TemporaryFile(dir=self.folder) as complaints:
            child = subprocess.Popen(
                [sys.executable, "-c", _COMMAND.format(name=name), *words],
                stdin=subprocess.PIPE,  # held open: its end is the child's
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=self.environment,
                start_new_session=True,
            )
            try:
                assert child.stdout is not None
                said, code = child.stdout.read(), child.wait()
            finally:
                end(child)
            complaints.seek(0)
            complaint = complaints.read().decode(errors="replace")
        return subprocess.CompletedProcess(words, code, said, complaint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._keeper, patience_s=10.0)


def end(child: subprocess.Popen[str] | subprocess.Popen[bytes], patience_s: float = 0.0) -> None:
    """Close a child's standard input, wait so long, and kill it if it is still there."""
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    try:
        child.wait(patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
