"""What Perfetto's UI shows first: the groups of a trace in reading order, unfolded.

That UI sorts groups by how many slices they have, whatever they are called. It takes commands with the
address that opens it; these build a workspace of the groups in their own order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from traces.reading.stored_events import BadTrace, lines_in, opened_events

WORKSPACE: Final = "keepwarm"
MOST_GROUPS: Final = 60
"""Of a trace with more groups the UI's own order is as good as any."""
UNFOLDED_ENGINES: Final = 3
"""So many engines are shown with their slots; of more, each is one row, so that all fit the screen."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_ ]+")


def startup_commands(trace: Path) -> str:
    """The commands for a trace, as JSON; empty for one without groups of ours, or with too many.

    Raises:
        OSError: the trace cannot be read.
    """
    groups = sorted((name[:1], pid, name) for pid, name in _groups(trace))
    if not 0 < len(groups) <= MOST_GROUPS or not all(kind in "1234" for kind, _, _ in groups):
        return ""
    commands: list[dict[str, Any]] = [_command("CreateWorkspace", WORKSPACE)]
    shown = [_pattern(pid, name) for _, pid, name in groups]
    commands += [_command("CopyTracksToWorkspaceByRegex", one, WORKSPACE) for one in shown]
    commands.append(_command("SwitchWorkspace", WORKSPACE))
    engines = [kind for kind, _, _ in groups if kind in "34"]
    unfolded = [
        one
        for (kind, _, _), one in zip(groups, shown, strict=True)
        if kind in "12" or len(engines) <= UNFOLDED_ENGINES
    ]
    commands += [_command("ExpandTracksByRegex", one) for one in unfolded]
    return json.dumps(commands, separators=(",", ":"))


def _command(name: str, *args: str) -> dict[str, Any]:
    return {"id": f"dev.perfetto.{name}", "args": list(args)}


def _pattern(pid: int, name: str) -> str:
    """What matches a group's title: its name, whose odd letters may be shown otherwise, and its number."""
    return f"^{'.*'.join(_PLAIN.findall(name))}.* {pid}$"


def _groups(trace: Path) -> Iterator[tuple[int, str]]:
    """The number and the name of each group, in the order of their first use."""
    # A file that is no trace is Perfetto's to judge.
    with suppress(BadTrace), opened_events(trace) as file:
        for line in lines_in(trace, file):
            if b'"process_name"' in line:
                try:
                    event = json.loads(line.strip().strip(b"[,"))
                    yield int(event["pid"]), str(event["args"]["name"])
                except (ValueError, KeyError, TypeError):
                    continue
