"""Admission: where an engine goes, who leaves for it, and which bytes wait for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from budget.actions import Candidate, DecisionRecord
from budget.engines import Bookings, EngineRecord, EngineSpec, Option
from budget.placing import place_together
from budget.policies.base import EvictionPolicy
from budget.residency import State
from budget.residents import DORMANT, Residents
from budget.victims import Need, choose_victims
from budget.waiting import Rank

OPTIONS_WEIGHED = 2
"""Of more options than this only so many are weighed: those whose device has been idle longest."""
DEVICES_RANKED = 16
"""How long devices have been idle is compared among so many of them, taken in turns."""
LEASED_LOSS = 1e9
"""Added to the loss of an engine that is in use: a forced claim drains it only when it must."""


@dataclass(slots=True)
class Claim:
    """Bytes that are coming free for an engine which is not resident yet.

    `draining` are engines whose leases are running out; everything else it needs is free or leaving.
    """

    engine: EngineRecord
    option_index: int
    rank: Rank
    reason: str
    forced: bool
    draining: set[str] = field(default_factory=set)

    @property
    def option(self) -> Option:
        """The placement whose bytes are claimed."""
        return self.engine.spec.options[self.option_index]


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to admit an engine: at this option, once these have left or drained."""

    option_index: int
    candidates: tuple[Candidate, ...] = ()
    victims: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    loss: float = 0.0
    leftover_bytes: int = 0


class Admission:
    """Decides; changes nothing but its own claims."""

    def __init__(self, residents: Residents, policy: EvictionPolicy) -> None:
        self._residents = residents
        self._books = residents.books
        self.policy = policy
        self.claims: dict[str, Claim] = {}
        self._records = 0
        self._feasible: dict[str, tuple[tuple[int, int, int], EngineSpec, list[int]]] = {}
        self.spared: set[str] = set()
        """Engines that drained for a claim which was dropped, and may serve again."""
        self._barred: set[str] = set()
        """Devices on which nothing more is admitted in this pass: somebody before waits there."""
        self._turn_taken: set[str] = set()
        """Devices on which nobody more is drained for in this pass: somebody before waits there."""

    # What can ever be

    def feasible(
        self, engine: EngineRecord, first: int | None = None, *, measured: bool = False
    ) -> list[int]:
        """The options of the lowest tier that fit beside all pins; empty when none ever can.

        `first`: the first option to look at; by default the first not known to be refused.
        `measured`: against what devices were measured to have room for, not their limits.
        """
        if first is not None or measured:
            return self._fitting(engine, engine.min_option if first is None else first, measured)
        key = (self._residents.pins_version, self._books.settings_version, engine.min_option)
        known = self._feasible.get(engine.engine_id)
        if known is None or known[0] != key or known[1] is not engine.spec:
            fitting = self._fitting(engine, engine.min_option, measured)
            known = self._feasible[engine.engine_id] = (key, engine.spec, fitting)
        return known[2]

    def _fitting(self, engine: EngineRecord, first: int, measured: bool) -> list[int]:  # noqa: FBT001
        pinned = self._pinned_bytes(engine)
        fitting = [
            index
            for index, option in enumerate(engine.spec.options)
            if index >= first and self._holds(option, pinned, measured=measured)
        ]
        if not fitting:
            return []
        tier = min(engine.spec.options[i].tier for i in fitting)
        return [i for i in fitting if engine.spec.options[i].tier == tier]

    def pinnable(self, engine: EngineRecord) -> bool:
        """Whether an engine can stay beside all pins where it is, or be loaded beside them."""
        if engine.state in DORMANT or engine.state is State.EVICTING:
            return bool(self.feasible(engine))
        here = Option(engine.bookings, 0.0)
        return self._holds(here, self._pinned_bytes(engine), measured=False)

    def place_pins(self) -> EngineRecord | None:
        """Choose options for the pinned engines that hold nothing, so that all fit together.

        Returns:
            None when they do, else one that finds no place; then no choice changes.
        """
        pinned = list(self._residents.pinned)
        room = {ledger.device: ledger.limit_bytes for ledger in self._books}
        for engine in pinned:
            for device, amount in engine.bookings:
                room[device] -= amount
        # Choosing an option anew changes what a pin will take.
        self._residents.pins_version += 1
        coming = [engine for engine in pinned if not engine.bookings]
        coming.sort(key=lambda e: len(e.spec.options))
        return place_together(coming, room)

    def shortfall(
        self, engine: EngineRecord, *, measured: bool = False
    ) -> tuple[str, int, int, int]:
        """Device, limit, bytes held by pins and bytes requested of the option that misses least.

        `measured`: what misses is judged by what devices were measured to have room for.
        """
        pinned = self._pinned_bytes(engine)

        def missing(row: tuple[str, int, int, int]) -> int:
            ledger = self._books[row[0]]
            room = ledger.ceiling_bytes if measured else ledger.limit_bytes
            return row[3] + row[2] - room

        worst = [
            max(
                (
                    (device, self._books[device].limit_bytes, pinned.get(device, 0), amount)
                    for device, amount in option.bookings
                ),
                key=missing,
            )
            for option in engine.spec.options[engine.min_option :]
        ]
        return min(worst, key=missing)

    def _holds(self, option: Option, pinned: dict[str, int], *, measured: bool) -> bool:
        for device, amount in option.bookings:
            ledger = self._books[device]
            ceiling = ledger.ceiling_bytes if measured else ledger.limit_bytes
            if amount + pinned.get(device, 0) > ceiling:
                return False
        return True

    def _pinned_bytes(self, but: EngineRecord) -> dict[str, int]:
        pinned: dict[str, int] = {}
        for engine in self._residents.pinned:
            if engine is not but:
                for device, amount in engine.bookings or engine.option.bookings:
                    pinned[device] = pinned.get(device, 0) + amount
        return pinned

    # What can be now

    def available(self, device: str) -> int:
        """Bytes that are free or leaving and promised to nobody; negative when over the limit."""
        ledger = self._books[device]
        if not self.claims:
            return ledger.room_bytes + ledger.leaving_bytes
        promised = 0
        for claim in self.claims.values():
            promised += self._promised(claim, device)
        return ledger.room_bytes + ledger.leaving_bytes - promised

    def _promised(self, claim: Claim, device: str) -> int:
        need = sum(amount for d, amount in claim.option.bookings if d == device)
        if need:
            for engine_id in claim.draining:
                bookings = self._residents[engine_id].bookings
                need -= sum(amount for d, amount in bookings if d == device)
        return max(0, need)

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
        best: Choice | None = None
        found = 0
        indices = self.feasible(engine, measured=True) if measured else []
        for index in self._promising(engine, indices or self.feasible(engine)):
            if found == OPTIONS_WEIGHED:
                break
            choice = self._choice(engine, index, now, may_drain, loading=loading, spare=spare)
            if choice is None:
                continue
            found += 1
            if best is None or _preference(choice) < _preference(best):
                best = choice
        return best

    def _promising(self, engine: EngineRecord, indices: list[int]) -> list[int]:
        """Of many options the one that fits best without a victim, else all, the idlest first."""
        if len(indices) <= OPTIONS_WEIGHED:
            return indices
        options, books = engine.spec.options, self._books.ledgers
        free = []
        for index in indices:
            device, amount = options[index].bookings[0]
            ledger = books[device]
            if ledger.room_bytes + ledger.leaving_bytes >= amount:
                left = self._left(options[index].bookings)
                if left is not None:
                    free.append((left, index))
        if free:
            return [min(free)[1]]
        step = -(-len(indices) // DEVICES_RANKED)
        first = self._records % step
        ranked = indices[first::step]
        idle_longest = self._residents.idle_longest
        ranked.sort(key=lambda i: max([idle_longest(d) for d, _ in options[i].bookings]))
        return [*ranked, *(index for n, index in enumerate(indices) if n % step != first)]

    def _left(self, bookings: Bookings) -> int | None:
        """The bytes that stay available beside these without a victim; None when some are missing."""
        total = 0
        for device, amount in bookings:
            left = self.available(device) - amount
            if left < 0 or device in self._barred:
                return None
            total += left
        return total

    def _choice(
        self,
        engine: EngineRecord,
        index: int,
        now: float,
        may_drain: Drain | None,
        *,
        loading: bool,
        spare: Drain | None,
    ) -> Choice | None:
        option = engine.spec.options[index]
        shortage: dict[str, int] = {}
        leftover = 0
        for device, amount in option.bookings:
            if device in self._barred:
                return None
            left = self.available(device) - amount
            leftover += left
            if left < 0:
                shortage[device] = -left
        if not shortage:
            return Choice(index, leftover_bytes=leftover)
        candidates = self.candidates(shortage, now, may_drain, loading=loading)
        if spare is not None:
            candidates = [c for c in candidates if not spare(self._residents[c.engine_id])]
        victims = self._victims(Need(engine.engine_id, shortage, candidates, now))
        if victims is None:
            return None
        states = {v.engine_id: self._residents[v.engine_id].state for v in victims}
        in_use = {engine_id for engine_id, state in states.items() if state is State.LEASED}
        return Choice(
            index,
            tuple(candidates),
            tuple(v.engine_id for v in victims if v.engine_id not in in_use),
            tuple(sorted(in_use)),
            sum(v.loss for v in victims),
        )

    def _victims(self, need: Need) -> list[Candidate] | None:
        chosen = self.policy.victims(need)
        if chosen is None:
            return choose_victims(need.candidates, need.shortage, ordered=self.policy.ordered)
        return [c for c in need.candidates if c.engine_id in chosen]

    def candidates(
        self,
        devices: Iterable[str],
        now: float,
        may_drain: Drain | None,
        *,
        loading: bool = False,
    ) -> list[Candidate]:
        """The engines on these devices that may leave, with their losses."""
        found: dict[str, Candidate] = {}
        for device in devices:
            for engine in self._residents.on_device(device):
                if engine.engine_id in found or engine.pins or engine.draining_for is not None:
                    continue
                if engine.state is State.IDLE or engine.abandonable:
                    loss = 0.0 if engine.released else self.policy.loss(engine, now)
                elif (loading and engine.state is State.LOADING) or (
                    may_drain is not None and self._drainable(engine) and may_drain(engine)
                ):
                    loss = LEASED_LOSS + self.policy.loss(engine, now)
                else:
                    continue
                found[engine.engine_id] = Candidate(engine.engine_id, loss, engine.bookings)
        return list(found.values())

    def _drainable(self, engine: EngineRecord) -> bool:
        if engine.state is not State.LEASED:
            return False
        return all(device not in self._turn_taken for device, _ in engine.bookings)

    # Claims

    def claim(self, engine: EngineRecord, choice: Choice, rank: Rank, reason: str) -> Claim:
        """Promise the bytes of a choice to an engine."""
        claim = Claim(
            engine, choice.option_index, rank, reason, bool(choice.draining), set(choice.draining)
        )
        self.claims[engine.engine_id] = claim
        for engine_id in choice.draining:
            self._residents[engine_id].draining_for = engine.engine_id
        return claim

    def drop(self, engine_id: str) -> None:
        """Withdraw a claim; engines that were draining for it serve on."""
        claim = self.claims.pop(engine_id, None)
        if claim is None:
            return
        for victim in claim.draining:
            if victim in self._residents:
                self._residents[victim].draining_for = None
                self.spared.add(victim)

    def drained(self, engine: EngineRecord) -> None:
        """An engine that drained for a claim leaves now, or died: the claim waits for it no more."""
        for claim in self.claims.values():
            claim.draining.discard(engine.engine_id)

    def start_pass(self) -> None:
        """Those who wait are looked at anew, in rank order."""
        self._barred.clear()
        self._turn_taken.clear()

    def bar(self, engine: EngineRecord, now: float, may_drain: Drain) -> None:
        """Let nobody pass a request whose turn it is and that cannot even claim its bytes yet.

        Nobody after it drains engines on its devices: what was drained for is immune for a while,
        and with two immune in turns it would never have both. If it waits for nothing but loads
        to end, nobody loads there either: loads that overlap would keep it out for ever.
        """
        coming = self.choose(engine, now, may_drain=may_drain, measured=True, loading=True)
        if coming is not None:
            self._barred.update(d for d, _ in engine.spec.options[coming.option_index].bookings)
        for index in self.feasible(engine):
            self._turn_taken.update(d for d, _ in engine.spec.options[index].bookings)

    def outdated(self, claim: Claim, now: float) -> bool:
        """Whether a claim waits for leases to end and could do without by now."""
        if not claim.draining:
            return False
        del self.claims[claim.engine.engine_id]
        better = self.choose(claim.engine, now, may_drain=None)
        self.claims[claim.engine.engine_id] = claim
        return better is not None

    def ready(self, claim: Claim) -> bool:
        """Whether a claim's bytes are all free."""
        return all(
            not self._books[d].over_limit and self._books[d].room_bytes >= amount
            for d, amount in claim.option.bookings
        )

    def hopeless(self, claim: Claim) -> bool:
        """Whether nothing that leaves or drains can fill a claim any more (bytes were corrected)."""
        if claim.draining:
            return False
        return any(
            self._books[d].room_bytes + self._books[d].leaving_bytes < amount
            for d, amount in claim.option.bookings
        )

    # Records

    def record(
        self, wanted: str, requested: Bookings, choice: Choice, now: float, reason: str
    ) -> DecisionRecord:
        """The decision record of one choice."""
        self._records += 1
        free = tuple((device, self._books[device].room_bytes) for device, _ in requested)
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
        )


Drain = Callable[[EngineRecord], bool]
"""Whether an engine may be drained, or must be spared, for the request at hand."""


def _preference(choice: Choice) -> tuple[bool, float, int, int]:
    """Nobody leaves, then the least loss, then the tightest fit (large holes stay), then the first."""
    leaves = bool(choice.victims or choice.draining)
    return (leaves, choice.loss, choice.leftover_bytes, choice.option_index)
