"""The console commands' common boundary: one line, an exit code."""

from __future__ import annotations

import pytest

from cfpose_sdk import commands
from cfpose_sdk.errors import BackendError, InputError, MissingDependencyError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("two\nlines"), 2),
        (MissingDependencyError("run pip"), 2),
        (BackendError("no"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
@pytest.mark.parametrize("name", ["cfpose", "train", "export", "bench"])
def test_every_command_has_the_same_error_boundary(
    name: str,
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def import_module(module: str) -> object:
        asked.append(module)
        raise error

    monkeypatch.setattr("cfpose_sdk.commands.importlib.import_module", import_module)
    assert getattr(commands, name)() == code
    package = (
        "cfpose_sdk"
        if name == "cfpose"
        else {"train": "cfpose_training", "export": "cfpose_export", "bench": "cfpose_bench"}[name]
    )
    assert asked == [f"{package}.cli"]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(module: str) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr("cfpose_sdk.commands.importlib.import_module", import_module)
    with pytest.raises(ZeroDivisionError):
        commands.cfpose()
