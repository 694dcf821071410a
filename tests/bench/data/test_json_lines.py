"""JSON lines: what an interrupted run left is read back, and a line that was cut off is dropped."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_bench.data.json_lines import JsonLines, read_whole_lines


def test_lines_are_added_behind_those_that_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    assert read_whole_lines(path) == []
    with closing(JsonLines(path)) as file:
        file.add({"a": 1})
        file.add({"b": "\u2028\u00e9"})  # a line separator inside a value
        assert len(read_whole_lines(path)) == 2  # before it is closed
    with path.open("ab") as file_cut_off:
        file_cut_off.write(b'{"c": [1, ')
    kept = read_whole_lines(path)
    assert [json.loads(line) for line in kept] == [{"a": 1}, {"b": "\u2028\u00e9"}]
    with closing(JsonLines(path, kept)) as file:
        file.add({"d": None})
    assert path.read_bytes() == b"".join(kept) + b'{"d":null}\n'
    JsonLines(path).close()  # nothing kept: begun anew
    assert path.read_bytes() == b""
    with pytest.raises(OSError, match="directory"):
        JsonLines(path / "below" / "b.jsonl")


@given(content=st.binary(max_size=60).map(lambda b: b.replace(b"\r", b"\n")))
def test_whole_lines_are_all_up_to_the_last_newline(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(content)
    lines = read_whole_lines(path)
    assert b"".join(lines) == content[: content.rfind(b"\n") + 1]
