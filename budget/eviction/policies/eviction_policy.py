"""The protocol of an eviction policy: pure, silent, and told of every use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from budget.books.declared_uses import DeclaredUses
from budget.books.engines import EngineRecord
from budget.books.residents import Residents
from budget.eviction.victims import Need


class EvictionPolicy(Protocol):
    """Says what losing an engine would cost. Never acts, never reads a clock."""

    @property
    def name(self) -> str:
        """As it is called in a configuration and in decision records."""
        ...

    @property
    def followed(self) -> str:
        """What its losses follow now, in words; empty where the name says it all."""
        ...

    @property
    def ordered(self) -> bool:
        """True: victims go strictly from the least loss up. False: the set of least total loss."""
        ...

    def attach(self, residents: Residents, declared_uses: DeclaredUses) -> None:
        """Take engines, books and declared uses, to be read; called once, before anything else."""
        ...

    def used(self, engine_id: str, now: float) -> None:
        """A request for this engine arrived."""
        ...

    def booked(self, engine: EngineRecord, now: float) -> None:
        """A load of this engine starts; its bookings are final."""
        ...

    def reconfigured(self, successors: Mapping[str, str]) -> None:
        """The configuration was read anew; engines that are gone may still be leaving.

        `successors`: the engine that runs a model now, by the one that ran it before.
        """
        ...

    def losses(self, engines: Sequence[EngineRecord], now: float) -> Sequence[float]:
        """The cost of losing each engine now; at least 0 and finite, in the policy's own unit."""
        ...

    def victims(self, need: Need) -> Sequence[str] | None:
        """The set that leaves when the policy knows better than a sum of losses; else None."""
        ...

    def export_state(self) -> dict[str, Any]:
        """What was learned, JSON-serialisable, to be kept over a restart."""
        ...

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `export_state` gave; anything else is an error.

        Raises:
            ConfigError: the state is damaged or of another version; nothing was taken over.
        """
        ...


class Stateless:
    """A base for policies that read everything they need from the engine's record."""

    ordered: bool = True
    followed: str = ""

    def attach(self, residents: Residents, declared_uses: DeclaredUses) -> None:
        """Nothing to take: losses come from the engines' records."""

    def used(self, engine_id: str, now: float) -> None:
        """Nothing to note: the engine's record has its last use."""

    def booked(self, engine: EngineRecord, now: float) -> None:
        """Nothing to note: the engine's record has its bookings."""

    def reconfigured(self, successors: Mapping[str, str]) -> None:
        """Nothing to move: records belong to their engines."""

    def victims(self, need: Need) -> Sequence[str] | None:
        """None: victims follow from the losses."""
        return None

    def export_state(self) -> dict[str, Any]:
        """An empty state: nothing is learned."""
        return {}

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is learned."""
