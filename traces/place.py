"""Where runs are kept and what they are called."""

from __future__ import annotations

import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")


def default_directory() -> Path:
    """Where runs go: `$KEEPWARM_TRACE_DIR`, else `keepwarm/runs` in the user's XDG state folder.

    A user without a home gets one below `/`, which cannot be written: the run says so as its problem.
    """
    configured = os.environ.get("KEEPWARM_TRACE_DIR")
    if configured:
        return Path(configured).expanduser()
    # As all state folders: the standard says that a relative one counts as not set.
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        home = Path("/", Path.home())
    except RuntimeError:
        home = Path("/")
    base = state if state.is_absolute() else home / ".local" / "state"
    return base / "keepwarm" / "runs"


def new_run_id() -> str:
    """An id that sorts by time: `20261121T134501Z-1f0c9a`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """`run_id` itself.

    Raises:
        ValueError: it cannot be a file's name.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"run_id {run_id!r} cannot name a file. Allowed: 1 to 120 letters, digits, '.', '_' and "
            "'-', not starting with '.' or '-'."
        )
    return run_id
