"""What the metrics read off the books at one moment: plain data, made on the keeper's loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from budget.snapshot import snapshot
from shim.keeper.shell.actions_out import Shell


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes by device (and model), requests that wait and slots in use by model, faults by kind.

    `devices` are rows of the status; `free_bytes` is what no program uses, None where that is not known.
    """

    devices: tuple[Mapping[str, Any], ...] = ()
    free_bytes: Mapping[str, int | None] = field(default_factory=dict)
    resident_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    depth: Mapping[str, int] = field(default_factory=dict)
    age_s: Mapping[str, float] = field(default_factory=dict)
    busy: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


def read_books(shell: Shell, free_bytes: Mapping[str, int | None]) -> Reading:
    """Read the books; nothing is loaded, measured or reset."""
    state = snapshot(shell.core, time.monotonic())
    limits, label = shell.supervisor.catalog.limits, shell.supervisor.catalog.label
    depth = {name: 0 for row in state["engines"] for name in row["models"]}
    age_s = dict.fromkeys(depth, 0.0)
    for request in state["queue"]:
        name = request["model"]
        depth[name] = depth.get(name, 0) + 1
        age_s[name] = max(age_s.get(name, 0.0), request["waited_s"])
    return Reading(
        devices=tuple(row for row in state["devices"] if row["device"] in limits),
        free_bytes={device: free_bytes.get(device) for device in limits},
        resident_bytes={
            (device, label(engine["id"])): amount
            for engine in state["engines"]
            for device, amount in engine["bytes"].items()
            if device in limits
        },
        depth=depth,
        age_s=age_s,
        busy={label(engine["id"]): len(engine["leases"]) for engine in state["engines"]},
        faults={row["kind"]: row["count"] for row in shell.faults.rows()},
    )
