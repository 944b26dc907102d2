"""Asks the running keeper. Nothing here starts a keeper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from budget.errors import KeeperUnavailable
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


def engine_row(status: Message, model: str) -> Message | None:
    """The row of a model's engine in a keeper's status, or None."""
    rows: list[Message] = status["engines"]
    return next((row for row in rows if model in row["models"]), None)


def keepers_name(status: Message, file: Path | None, model: str) -> str:
    """What a keeper's status calls a model of the configuration in a file."""
    own = str(file) if file else None
    for row in status["projects"]:
        if row["file"] == own and model in row["names"]:
            return str(row["names"][model])
    return model
