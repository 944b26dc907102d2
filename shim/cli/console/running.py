"""Asks the running keeper. Nothing here starts a keeper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget.errors import KeeperUnavailable
from shim.cli.console.output import counted
from shim.paths import runtime_dir
from shim.wire.json_lines import Message
from shim.wire.launch import running_connection, try_connect


def ask_running(op: str, *, runtime: Path | None = None, **fields: Any) -> Message | None:
    """The answer of the running keeper, or None when no keeper runs.

    Raises:
        KeeperUnavailable: a keeper is there and does not respond.
        KeepwarmError: the op's own error.
    """
    line = running_connection(runtime or runtime_dir())
    if line is None:
        return None
    try:
        return line.ask(op, **fields)
    except KeeperUnavailable:
        if not line.is_gone:
            raise
        # The keeper ended between connecting and answering.
        return None
    finally:
        line.close()


def is_running(runtime: Path | None = None) -> bool:
    """Whether a keeper runs.

    Raises:
        KeeperUnavailable: a keeper is there and does not respond.
    """
    sock = try_connect(runtime or runtime_dir())
    if sock is not None:
        sock.close()
    return sock is not None


def keepers_name(status: Mapping[str, Any], said: str) -> str:
    """The keeper's name of what it is asked for; an unknown reference is returned as it is."""
    return str(status.get("references", {}).get(said, said))


def engine_row(status: Mapping[str, Any], said: str) -> Message | None:
    """The row of a model's engine in a keeper's status, or None. `said`: what the keeper is asked for."""
    rows: list[Message] = status["engines"]
    name = keepers_name(status, said)
    return next((row for row in rows if name in row["models"]), None)


def unavailable(error: Mapping[str, Any]) -> str:
    """What is said of a model that the keeper does not run. An older keeper does not know of overrides."""
    count = error.get("overridden_by", 0)
    others = f"is overridden by {counted(count, 'program')}, and cannot be run by others"
    return others if count else "cannot be run"
