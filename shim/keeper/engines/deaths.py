"""How engines ended, and which of the requests that used one may be the cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from budget.errors import KeepwarmError

DEATHS_KEPT: Final = 256
"""Clients can still ask for the errors of so many past deaths."""


@dataclass(frozen=True, slots=True)
class _End:
    error: KeepwarmError
    leases: tuple[str, ...]
    """Those that used the engine, in the order in which they were granted."""


class Deaths:
    """The last engines that ended otherwise than by an unload, by the id of their load."""

    def __init__(self) -> None:
        self._ends: dict[str, _End] = {}

    def note(self, load_id: str, error: KeepwarmError, leases: tuple[str, ...]) -> None:
        """Remember an end, while the leases of the engine still stand. The first account of it counts."""
        self._ends.setdefault(load_id, _End(error, leases))
        if len(self._ends) > DEATHS_KEPT:
            del self._ends[next(iter(self._ends))]

    def error_for(self, load_id: str, lease: str | None) -> dict[str, Any] | None:
        """The error of an end, on the wire, as the request of a lease gets it; None while the engine runs.

        Facts: `requests` (how many used the engine) and `suspected`, whether this one may be the cause.
        The only one may be, and so may the one that began last, because what ends an engine or hangs it
        mostly does so at once. None is where the engine was at a step that began before all of them.

        Args:
            load_id: the load of the engine that ended.
            lease: the lease of the request; None for one that never reached the engine.
        """
        end = self._ends.get(load_id)
        if end is None:
            return None
        suspected, said = _suspicion(end, lease)
        wire = end.error.to_wire()
        wire["message"] = f"{wire['message']} {said}"
        wire["facts"] = {**wire["facts"], "requests": len(end.leases), "suspected": suspected}
        return wire


def _suspicion(end: _End, lease: str | None) -> tuple[bool, str]:
    count = len(end.leases)
    if lease not in end.leases:
        return False, "This request had not reached it."
    if end.error.facts.get("left_over"):
        return False, "Its step was that of an earlier request, and not this one's."
    if count == 1:
        return True, "This was the only request that used it."
    if lease == end.leases[-1]:
        return True, f"{count} requests used it, and this one began last: it may be the cause."
    return False, f"{count} requests used it. This one did not begin last, and is hardly the cause."
