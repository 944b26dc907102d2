"""The protocol of an eviction policy: pure, silent, and told of every use."""

from __future__ import annotations

from typing import Protocol

from budget.engines import EngineRecord


class EvictionPolicy(Protocol):
    """Says what losing an engine would cost. Never acts, never reads a clock."""

    name: str
    ordered: bool
    """True: victims go strictly from the least loss up. False: the set of least total loss goes."""

    def used(self, engine_id: str, now: float) -> None:
        """A request for this engine arrived."""
        ...

    def loss(self, engine: EngineRecord, now: float) -> float:
        """The cost of losing this engine now; at least 0, in the policy's own unit."""
        ...
