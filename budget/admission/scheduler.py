"""The pump: what follows from any change of bytes, leases or time.

Order matters. Resident engines serve first; engines with a reason to leave leave; devices that are over
their ceiling shed engines; claims whose bytes are free load; pinned engines load; then waiting requests
look for bytes, in rank order; and bytes that no request needs now may serve declared uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeVar

from budget.actions import Alert, Prepare
from budget.admission.admission import Choice
from budget.admission.pin_cycles import end_cycles
from budget.admission.pins import keep_out, lateness, pin_aside
from budget.admission.preemption import Preemption
from budget.admission.prefetch import Prefetcher, unused_first
from budget.admission.refusals import no_room
from budget.admission.state import PIN_RANK, CoreState
from budget.books.claims import Claim
from budget.books.engines import NO_TIMEOUT, EngineRecord
from budget.books.ledger import UNJUDGED_AT_MOST_S
from budget.books.queue import Rank, Waiting
from budget.books.states import DORMANT, State
from budget.eviction.victims import choose_victims
from budget.recovery.repair import broke_down, drop, failed, part_failed, put_right

Item = TypeVar("Item")
MOST_PASSES: Final = 8
"""Each pass that follows another has let a request end or a pin load, so that few ever do."""
SCHEDULER: Final = "the scheduler"
AHEAD: Final = "looking ahead"
BEHIND: Final = "forgetting what was looked ahead for"
YIELDING: Final = "asking leases to yield"
UNTYING: Final = "finding pins that wait for each other"
"""The names of the core's parts, as its faults call them; all but the first are optional."""


class Scheduler:
    """Decides all that follows from a change. A failure at one engine or device stays with it."""

    def __init__(self, state: CoreState) -> None:
        self._state = state
        self.prefetcher = Prefetcher(state)
        self.preemption = Preemption(state)
        self._blind: Exception | None = None
        """The error with which the list of wanted engines failed in this pass; else None."""
        self._reasons = (
            state.queue.by_id,
            state.restless,
            state.unsettled,
            state.claims.by_engine,
            state.claims.spared,
            state.prefetched,
            state.declared_uses.by_name,
            state.residents.pinned_ids,
        )
        """Tables that are empty while there is nothing to do; looked at after every lease."""

    def pump(self, now: float) -> None:
        """Do everything that can be done now. Never raises: a failure becomes a fault."""
        if not any(self._reasons) and not self.prefetcher.busy:
            # Nothing can follow, as at the end of most leases.
            return
        failing = self._bring_to_rest(now)
        if failing:
            # What was put right after a fault may let others be served: once more.
            self._bring_to_rest(now)
        if self._blind is not None:
            for request in list(self._state.queue.by_id.values()):
                drop(self._state, request, broke_down(self._blind))
            put_right(self._state, now)

    def _bring_to_rest(self, now: float) -> bool:
        """Passes until pins are where they were before; returns whether anything failed.

        A pin that ends, or takes another place, in the middle of a pass may let those in that were
        passed over before.
        """
        state = self._state
        faults_before, self._blind = state.faults.total, None
        for _ in range(MOST_PASSES):
            pins = state.residents.pins_version
            try:
                self._pass(now)
            except Exception as error:
                failed(state, SCHEDULER, error, now)
                self._blind = error
            if state.residents.pins_version == pins or not state.queue:
                break
        return state.faults.total > faults_before

    def _pass(self, now: float) -> None:
        state = self._state
        state.admission.start_pass()
        if state.queue:
            self._each("ending late requests", self._late, self._expire, now)
            self._each("serving", self._awaited, self._serve_engine, now, give_up=self._give_up)
        self._optionally(BEHIND, self.prefetcher.forget, now)
        if state.restless:
            self._each(
                "letting engines leave",
                lambda _: list(state.restless.values()),
                self._let_leave,
                now,
            )
        if state.unsettled:
            self._each("making room", lambda _: sorted(state.unsettled), self._relieve, now)
        if state.claims:
            self._each("using freed bytes", self._claims, self._advance, now)
        if state.queue.aside:
            self._each("pinning", self._aside, self._pin_aside, now, give_up=self._give_up_one)
        if state.started:
            self._each("loading pins", lambda _: list(state.residents.pinned), self._load_pin, now)
        if state.queue:
            self._each("admitting", self._wanting, self._admit_for, now, give_up=self._give_up)
        if state.claims.spared:
            self._each("serving", self._spared, self._serve_engine, now, give_up=self._give_up)
            state.claims.spared.clear()
        if state.queue:
            self._optionally(UNTYING, partial(end_cycles, state), now)
        self._optionally(YIELDING, self.preemption.ask, now)
        self._optionally(AHEAD, self.prefetcher.look_ahead, now)

    # Faults

    def _each(
        self,
        what: str,
        items: Callable[[float], Iterable[Item]],
        do: Callable[[Item, float], None],
        now: float,
        give_up: Callable[[Item, Exception, float], None] | None = None,
    ) -> None:
        """One step for each item. One that fails is tried once more after the tables were put right."""
        try:
            found = items(now)
        except Exception as error:
            failed(self._state, what, error, now)
            if give_up is not None:
                self._blind = error
            return
        for item in found:
            try:
                do(item, now)
            except Exception as error:
                failed(self._state, what, error, now)
                try:
                    do(item, now)
                except Exception as again:
                    failed(self._state, what, again, now)
                    if give_up is not None:
                        give_up(item, again, now)

    def _optionally(self, part: str, do: Callable[[float], None], now: float) -> None:
        """One step that nothing depends on."""
        faults = self._state.faults
        if part in faults.left_out:
            return
        try:
            do(now)
        except Exception as error:
            part_failed(self._state, part, error, now)
        else:
            if faults.in_row:
                faults.fine(part)

    def _give_up(self, engine_id: str, error: Exception, now: float) -> None:
        """End the requests that wait for an engine about which no decision succeeds."""
        for request in list(self._state.queue.by_id.values()):
            if request.engine_id == engine_id:
                drop(self._state, request, broke_down(error))
        put_right(self._state, now)

    def _give_up_one(self, request: Waiting, error: Exception, now: float) -> None:
        if request.request_id in self._state.queue:
            drop(self._state, request, broke_down(error))
        put_right(self._state, now)

    # Serving

    def _late(self, now: float) -> list[Waiting]:
        return [r for r in self._state.queue if r.deadline is not None and r.deadline <= now]

    def _expire(self, request: Waiting, now: float) -> None:
        if request.request_id in self._state.queue:
            self._state.end(request, lateness(self._state, request, now), now)

    def _aside(self, _now: float) -> list[Waiting]:
        return list(self._state.queue.aside.values())

    def _pin_aside(self, request: Waiting, now: float) -> None:
        pin_aside(self._state, request, now)

    def _awaited(self, _now: float) -> list[str]:
        return self._state.queue.engines()

    def _spared(self, _now: float) -> list[str]:
        return sorted(self._state.claims.spared)

    def _serve_engine(self, engine_id: str, now: float) -> None:
        engine = self._state.residents.get(engine_id)
        if engine is not None and engine.resident:
            self._serve(engine, now)

    def _serve(self, engine: EngineRecord, now: float) -> None:
        """Grant what waits for a resident engine, in order, while slots last."""
        state = self._state
        for request in list(state.queue.of(engine.engine_id) or ()):
            # What asks for no slot waits for none.
            if request.want != "lease" and state.grantable(engine, request, now):
                state.grant(engine, request, now)
        while (waits := state.queue.of(engine.engine_id)) is not None:
            request = waits.head(now, state.settings.max_wait_s)
            if not state.grantable(engine, request, now):
                return
            state.grant(engine, request, now)

    # Leaving

    def _let_leave(self, engine: EngineRecord, now: float) -> None:
        """Evict what is idle and has a reason to go."""
        if engine.state is State.LOADING and engine.retired and not engine.demand:
            self._state.evict(engine, now, "retired")
        if engine.state is not State.IDLE:
            self._state.restless.pop(engine.engine_id, None)
            return
        reason = self._reason_to_leave(engine, now)
        if reason:
            self._state.evict(engine, now, reason)

    def _reason_to_leave(self, engine: EngineRecord, now: float) -> str:
        if engine.pins:
            self._state.restless.pop(engine.engine_id, None)
            return ""
        if engine.draining_for is not None:
            return f"drained for {engine.draining_for}"
        if engine.retired:
            return "no longer configured"
        if engine.leave_when_idle:
            return "asked to leave"
        if engine.keep_alive_s == NO_TIMEOUT or not engine.used_since_load:
            # Loaded ahead and not used yet is not idle: its keep_alive has not begun.
            self._state.restless.pop(engine.engine_id, None)
            return ""
        due = engine.idle_since + engine.keep_alive_s
        if now < due:
            self._state.timers.wake_at(due)
            return ""
        return f"keep_alive of {engine.keep_alive_s:g} s is over"

    def _relieve(self, device: str, now: float) -> None:
        """Bring a device that is over its ceiling back under it, and say when that changes."""
        state = self._state
        ledger = state.residents.books[device]
        over = ledger.room_bytes < 0
        if over and (excess := -ledger.room_bytes - ledger.leaving_bytes) > 0:
            self._shed(device, excess, now)
        if over != ledger.over_limit:
            ledger.over_limit = over
            state.actions.append(Alert(device, over, ledger.reserved_bytes, ledger.ceiling_bytes))
        if not over:
            state.unsettled.discard(device)

    def _shed(self, device: str, excess: int, now: float) -> None:
        candidates = unused_first(self._state, self._state.admission.candidates(device, now))
        ordered = self._state.policy.ordered
        enough = choose_victims(candidates, {device: excess}, ordered=ordered)
        victims = tuple(c.engine_id for c in (candidates if enough is None else enough))
        if victims:
            choice = Choice(0, tuple(candidates), victims)
            self._state.decide(f"room on {device}", ((device, 0),), choice, now, "over the limit")

    # Coming

    def _claims(self, now: float) -> list[Claim]:
        state = self._state
        return sorted(state.claims, key=lambda claim: state.claim_rank(claim, now))

    def _advance(self, claim: Claim, now: float) -> None:
        state = self._state
        if state.claims.get(claim.engine.engine_id) is not claim:
            return
        if state.claims.ready(claim):
            state.load(claim, now)
        elif state.claims.hopeless(claim) or state.admission.outdated(claim, now):
            state.claims.drop(claim.engine.engine_id)

    def _load_pin(self, engine: EngineRecord, now: float) -> None:
        if engine.state in DORMANT:
            if now >= engine.retry_at:
                self._admit(engine, PIN_RANK, now, "pinned", aged=True, priority=None)
            else:
                self._state.timers.wake_at(engine.retry_at)

    def _wanting(self, now: float) -> list[str]:
        """The engines that requests wait for and that hold nothing, in the order of their first ones."""
        state = self._state
        wanted = []
        for engine_id in state.queue.engines():
            rank = state.head_rank(engine_id, now)
            if rank is not None and state.residents[engine_id].state in DORMANT:
                wanted.append((rank, engine_id))
        return [engine_id for _, engine_id in sorted(wanted)]

    def _admit_for(self, engine_id: str, now: float) -> None:
        state = self._state
        engine, waits = state.residents.get(engine_id), state.queue.of(engine_id)
        if engine is None or waits is None or engine.state not in DORMANT:
            return
        head = waits.head(now, state.settings.max_wait_s)
        rank = head.rank(now, state.settings.max_wait_s)
        if not state.fitting.feasible(engine):
            for request in list(waits):
                keep_out(state, engine, request, now)
            return
        aged = head.aged(now, state.settings.max_wait_s)
        if self._admit(engine, rank, now, "requested", aged=aged, priority=head.priority):
            return
        if aged and not state.fitting.feasible(engine, measured=True):
            self._deny_aged(engine, now)

    def _deny_aged(self, engine: EngineRecord, now: float) -> None:
        """Other programs hold the bytes, and these have waited long enough for them."""
        state = self._state
        shortfall = state.fitting.shortfall(engine, measured=True)
        ledger = state.residents.books[shortfall[0]]
        if ledger.unjudged_since is not None:
            # The ceiling is outdated, and the next measurement is seconds away.
            until = ledger.unjudged_since + UNJUDGED_AT_MOST_S
            if now < until:
                state.timers.wake_at(until)
                return
        for request in list(state.queue.of(engine.engine_id) or ()):
            kept_out = state.fitting.eventually(engine, {request.client_id}, measured=True)
            if not kept_out and request.aged(now, state.settings.max_wait_s):
                waited_s = now - request.arrived_at
                state.end(
                    request, no_room(request.model, waited_s, shortfall, ledger.ceiling_bytes), now
                )

    def _admit(
        self,
        engine: EngineRecord,
        rank: Rank,
        now: float,
        reason: str,
        *,
        aged: bool,
        priority: int | None,
    ) -> bool:
        """Load or claim for an engine if that can be now; returns whether it is under way."""
        state = self._state
        if engine.engine_id in state.claims:
            return True

        def may_drain(victim: EngineRecord) -> bool:
            if aged and now >= victim.immune_until:
                return True
            if aged:
                state.timers.wake_at(victim.immune_until)
            return priority is not None and all(
                lease.priority < priority for lease in victim.leases.values()
            )

        choose = state.admission.choose
        choice = choose(engine, now, may_drain=None, measured=aged) or choose(
            engine, now, may_drain=may_drain, measured=aged
        )
        if choice is None:
            if aged:
                state.admission.bar(engine, now, may_drain)
            return False
        if choice.victims or choice.draining:
            requested = engine.spec.options[choice.option_index].bookings
            state.decide(engine.engine_id, requested, choice, now, reason)
        forced = bool(choice.draining)
        claim = Claim(engine, choice.option_index, rank, reason, forced, set(choice.draining))
        state.claims.add(claim)
        if state.claims.ready(claim):
            state.load(claim, now)
        elif not claim.draining:
            # Nothing but ends of processes is awaited: the start of the next overlaps with them.
            state.actions.append(Prepare(engine.engine_id, choice.option_index))
        return True
