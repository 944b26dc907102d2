"""Claims: bytes that are coming free, each promised to one engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from budget.books.engines import EngineRecord, PlacementOption
from budget.books.queue import Rank
from budget.books.residents import Residents


@dataclass(slots=True)
class Claim:
    """Bytes that are coming free for an engine which is not resident yet.

    `draining` are engines whose leases are running out; everything else it needs is free or
    leaving.
    """

    engine: EngineRecord
    option_index: int
    rank: Rank
    reason: str
    forced: bool
    draining: set[str] = field(default_factory=set)

    @property
    def option(self) -> PlacementOption:
        """The placement whose bytes are claimed."""
        return self.engine.spec.options[self.option_index]


class Claims:
    """Every claim, by the engine it is for. An engine drains for one claim at most."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self._books = residents.books
        self.by_engine: dict[str, Claim] = {}
        """To be read; the same object for good."""
        self.spared: set[str] = set()
        """Engines that drained for a claim which was dropped, and may serve again."""

    def __len__(self) -> int:
        return len(self.by_engine)

    def __iter__(self) -> Iterator[Claim]:
        return iter(list(self.by_engine.values()))

    def __contains__(self, engine_id: object) -> bool:
        return engine_id in self.by_engine

    def __getitem__(self, engine_id: str) -> Claim:
        return self.by_engine[engine_id]

    def get(self, engine_id: str) -> Claim | None:
        """The claim for an engine, or None."""
        return self.by_engine.get(engine_id)

    def add(self, claim: Claim) -> None:
        """Promise bytes to an engine."""
        self.by_engine[claim.engine.engine_id] = claim
        for engine_id in claim.draining:
            self._residents[engine_id].draining_for = claim.engine.engine_id

    def drop(self, engine_id: str) -> None:
        """Withdraw a claim; engines that were draining for it serve on."""
        claim = self.by_engine.pop(engine_id, None)
        if claim is None:
            return
        for victim in claim.draining:
            if victim in self._residents:
                self._residents[victim].draining_for = None
                self.spared.add(victim)

    def drained(self, engine: EngineRecord) -> None:
        """An engine that drained for a claim leaves now, or died: the claim waits for it no more."""
        for claim in self.by_engine.values():
            claim.draining.discard(engine.engine_id)

    @contextmanager
    def set_aside(self, claim: Claim) -> Iterator[None]:
        """Look at the books as if a claim were not there."""
        del self.by_engine[claim.engine.engine_id]
        try:
            yield
        finally:
            self.by_engine[claim.engine.engine_id] = claim

    def clear(self) -> None:
        """Withdraw all claims; no engine drains any more."""
        self.by_engine.clear()
        self.spared.clear()
        for engine in self._residents:
            engine.draining_for = None

    def available(self, device: str) -> int:
        """Bytes that are free or leaving and not promised; negative when over the limit."""
        coming = self._books.ledgers[device].coming_bytes
        for claim in self.by_engine.values():
            coming -= self._promised(claim, device)
        return coming

    def _promised(self, claim: Claim, device: str) -> int:
        need = sum(amount for d, amount in claim.option.bookings if d == device)
        if need:
            for engine_id in claim.draining:
                bookings = self._residents[engine_id].bookings
                need -= sum(amount for d, amount in bookings if d == device)
        return max(0, need)

    def ready(self, claim: Claim) -> bool:
        """Whether a claim's bytes are all free."""
        ledgers = [(self._books[device], amount) for device, amount in claim.option.bookings]
        return all(not b.over_limit and b.room_bytes >= amount for b, amount in ledgers)

    def hopeless(self, claim: Claim) -> bool:
        """Whether nothing that leaves or drains can fill a claim any more (bytes were corrected)."""
        if claim.draining:
            return False
        return any(self._books[d].coming_bytes < amount for d, amount in claim.option.bookings)
