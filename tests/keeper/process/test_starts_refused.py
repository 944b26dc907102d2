"""A keeper that cannot run: its starter gets the reason."""

from __future__ import annotations

import json
import os

import pytest

from budget.errors import ConfigError
from shim.keeper.process import daemon


@pytest.mark.parametrize(
    ("error", "answer", "code"),
    [
        (ConfigError("no such device"), "ConfigError", 1),
        (OSError(24, "Too many open files"), "KeeperUnavailable", 1),
        (RuntimeError("can't start new thread"), "KeeperUnavailable", 1),
        (KeyError("ghost"), "InternalError", 3),
    ],
    ids=["refused", "machine", "threads", "ours"],
)
def test_whatever_keeps_a_keeper_from_running_is_a_typed_error(
    error: Exception, answer: str, code: int
) -> None:
    """What the machine refuses is not called a bug of ours."""
    reader, writer = os.pipe()

    def run() -> None:
        raise error

    with daemon._reported(writer) as failed:
        run()
    with os.fdopen(reader) as said:
        wire = json.loads(said.readline())
    assert (wire["error"], failed) == (answer, [code])
