"""Admission: which placement an engine gets now, and which engines leave for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import islice

from budget.actions import DecisionRecord, EvictionCandidate
from budget.admission.fits import Fitting
from budget.books.claims import Claim, Claims
from budget.books.engines import Bookings, EngineRecord
from budget.books.residents import Residents
from budget.books.states import IDLE, LEASED, LOADING
from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.victims import Need, choose_victims, frees_enough

ONE_WEIGHED = 64
"""Of so many options one is weighed, each in its turn. Of fewer, more are weighed; of up to eight, all.

With many devices turns alone do nearly as well as the best choice; with few they do not.
"""
LEASED_LOSS = 1e9
"""Added to the loss of an engine that is in use: a forced claim drains it only when it must."""

Drain = Callable[[EngineRecord], bool]
"""Whether an engine may be drained, or must be spared, for the request at hand."""


@dataclass(slots=True)
class Choice:
    """One way to admit an engine: at this option, once these have left or drained."""

    option_index: int
    candidates: tuple[EvictionCandidate, ...] = ()
    victims: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    loss: float = 0.0
    leftover_bytes: int = 0

    @property
    def preference(self) -> tuple[bool, float, int, int]:
        """No victims, then the least loss, then the tightest fit (large holes stay), then the first."""
        leaves = bool(self.victims or self.draining)
        return (leaves, self.loss, self.leftover_bytes, self.option_index)


@dataclass(frozen=True, slots=True)
class _Terms:
    """Under which an engine is to be admitted; see `Admission.choose`."""

    now: float
    may_drain: Drain | None
    loading: bool
    spare: Drain | None


class Admission:
    """Decides; changes nothing but which devices are barred in the pass at hand."""

    def __init__(
        self, residents: Residents, fitting: Fitting, claims: Claims, policy: EvictionPolicy
    ) -> None:
        self._residents = residents
        self._books = residents.books
        self._fitting = fitting
        self._claims = claims
        self.policy = policy
        self._records = 0
        self._barred: set[str] = set()
        """Devices on which nothing more is admitted in this pass: an earlier request waits there."""
        self._turn_taken: set[str] = set()
        """Devices on which no more engines are drained in this pass: an earlier request waits there."""

    # Which placement

    def choose(
        self,
        engine: EngineRecord,
        now: float,
        *,
        may_drain: Drain | None,
        measured: bool = False,
        loading: bool = False,
        spare: Drain | None = None,
    ) -> Choice | None:
        """The best way to admit an engine now, or None when leases and pins are in the way.

        `may_drain` says which engines in use may be drained for it; None: none. `measured`: what
        other programs hold is taken as theirs to keep, and a higher tier chosen if that is what
        is left. `loading`: count on the bytes of engines that load for others, too. `spare`: says
        which engines may not leave for it.
        """
        terms = _Terms(now, may_drain, loading, spare)
        indices = self._fitting.feasible(engine, measured=True) if measured else []
        promising = self._promising(engine, indices or self._fitting.feasible(engine))
        choices = (self._choice(engine, index, terms) for index in promising)
        weighed = max(1, ONE_WEIGHED // len(promising)) if promising else 0
        possible = islice((c for c in choices if c is not None), weighed)
        return min(possible, key=lambda choice: choice.preference, default=None)

    def _promising(self, engine: EngineRecord, indices: list[int]) -> list[int]:
        """Of several options the one that fits best without a victim, else all, beginning in turns."""
        if len(indices) > 1 and self._books.most_coming_bytes >= engine.least_bytes:
            best = self._tightest(engine, indices)
            if best is not None:
                return [best]
        first = self._records % len(indices) if indices else 0
        return indices[first:] + indices[:first] if first else indices

    def _tightest(self, engine: EngineRecord, indices: list[int]) -> int | None:
        """The option that needs no victim and leaves the least room beside it, or None."""
        options, ledgers = engine.spec.options, self._books.ledgers
        free = []
        for index in indices:
            bookings = options[index].bookings
            device, amount = bookings[0]
            if ledgers[device].coming_bytes >= amount:
                left = self._left(bookings)
                if left is not None:
                    free.append((left, index))
        return min(free)[1] if free else None

    def _left(self, bookings: Bookings) -> int | None:
        """The bytes that stay available beside these without a victim; None when some are missing."""
        total = 0
        for device, amount in bookings:
            left = self._claims.available(device) - amount
            if left < 0 or device in self._barred:
                return None
            total += left
        return total

    def _choice(self, engine: EngineRecord, index: int, terms: _Terms) -> Choice | None:
        shortage: dict[str, int] = {}
        leftover = 0
        for device, amount in engine.spec.options[index].bookings:
            if device in self._barred:
                return None
            left = self._claims.available(device) - amount
            leftover += left
            if left < 0:
                shortage[device] = -left
        if not shortage:
            return Choice(index, leftover_bytes=leftover)
        candidates = self._candidates(shortage, terms)
        victims = self._victims(Need(engine.engine_id, shortage, candidates, terms.now))
        if victims is None:
            return None
        leased = [v.engine_id for v in victims if self._residents[v.engine_id].leases]
        return Choice(
            index,
            tuple(candidates),
            tuple([v.engine_id for v in victims if v.engine_id not in leased]),
            tuple(sorted(leased)),
            sum([v.loss for v in victims]),
        )

    # Which engines may leave

    def _victims(self, need: Need) -> list[EvictionCandidate] | None:
        chosen = self.policy.victims(need)
        if chosen is None:
            return choose_victims(need.candidates, need.shortage, ordered=self.policy.ordered)
        victims = [c for c in need.candidates if c.engine_id in chosen]
        if frees_enough(victims, need.shortage):
            return victims
        # None leaves for nothing, whatever a policy thinks, and none waits for a policy's mistake.
        return choose_victims(need.candidates, need.shortage, ordered=self.policy.ordered)

    def candidates(self, device: str, now: float) -> list[EvictionCandidate]:
        """The engines on a device that may leave at once, with their losses."""
        return self._candidates([device], _Terms(now, None, loading=False, spare=None))

    def _candidates(self, devices: Collection[str], terms: _Terms) -> list[EvictionCandidate]:
        engines, surcharges = [], []
        for engine in self._on(devices):
            surcharge = self._surcharge(engine, terms)
            if surcharge is not None:
                engines.append(engine)
                surcharges.append(surcharge)
        losses = self.policy.losses(engines, terms.now)
        return [
            EvictionCandidate(
                engine.engine_id,
                0.0 if engine.released and not surcharge else loss + surcharge,
                engine.bookings,
            )
            for engine, surcharge, loss in zip(engines, surcharges, losses, strict=True)
        ]

    def _on(self, devices: Collection[str]) -> Iterable[EngineRecord]:
        """The engines on any of these devices, each once."""
        on_device = self._residents.on_device
        if len(devices) == 1:
            return on_device(*devices)
        return dict.fromkeys(engine for device in devices for engine in on_device(device))

    def _surcharge(self, engine: EngineRecord, terms: _Terms) -> float | None:
        """What an engine's leaving costs beside its loss, since it is in use; None when it may not."""
        if engine.pins or engine.draining_for is not None:
            return None
        if terms.spare is not None and terms.spare(engine):
            return None
        if engine.state is IDLE or engine.abandonable:
            return 0.0
        if (terms.loading and engine.state is LOADING) or self._drainable(engine, terms):
            return LEASED_LOSS
        return None

    def _drainable(self, engine: EngineRecord, terms: _Terms) -> bool:
        if terms.may_drain is None or engine.state is not LEASED:
            return False
        taken = any(device in self._turn_taken for device, _ in engine.bookings)
        return not taken and terms.may_drain(engine)

    # Turns

    def start_pass(self) -> None:
        """Begin a pass: waiting requests are looked at anew, in rank order."""
        self._barred.clear()
        self._turn_taken.clear()

    def bar(self, engine: EngineRecord, now: float, may_drain: Drain) -> None:
        """Let no request pass one whose turn it is and that cannot even claim its bytes yet.

        No later request drains engines on its devices, because an engine that was drained for is immune for
        a while, and with two immune in turns the request would never have both. If it waits for nothing but
        loads to end, no engine loads there either, because loads that overlap would keep it out for ever.
        """
        coming = self.choose(engine, now, may_drain=may_drain, measured=True, loading=True)
        if coming is not None:
            self._barred.update(d for d, _ in engine.spec.options[coming.option_index].bookings)
        for index in self._fitting.feasible(engine):
            self._turn_taken.update(d for d, _ in engine.spec.options[index].bookings)

    def outdated(self, claim: Claim, now: float) -> bool:
        """Whether a claim waits for leases to end although its engine would fit without that by now."""
        if not claim.draining:
            return False
        with self._claims.set_aside(claim):
            return self.choose(claim.engine, now, may_drain=None) is not None

    # Records

    def record(
        self, wanted: str, requested: Bookings, choice: Choice, now: float, reason: str
    ) -> DecisionRecord:
        """The decision record of one choice."""
        self._records += 1
        free = tuple([(device, self._books[device].room_bytes) for device, _ in requested])
        return DecisionRecord(
            self._records,
            now,
            wanted,
            reason,
            self.policy.name,
            requested,
            free,
            choice.candidates,
            choice.victims,
            choice.draining,
            self.policy.followed,
        )
