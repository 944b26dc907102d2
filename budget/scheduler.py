"""The pump: what follows from any change of bytes, leases or time.

Order matters. What is resident serves first; what has a reason to leave leaves; devices that are
over their ceiling shed; claims whose bytes are free load; pinned engines load; then those who wait
look for bytes, in rank order; and what nobody needs now may serve what is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeVar

from budget.actions import Alert, Prepare
from budget.admission import Choice
from budget.claims import Claim
from budget.desk import PIN_RANK, Desk
from budget.engines import NO_TIMEOUT, EngineRecord
from budget.ledger import UNJUDGED_AT_MOST_S
from budget.mending import broke_down, drop, failed, part_failed, put_right
from budget.pin_cycles import end_cycles
from budget.pins import keep_out, lateness, pin_aside
from budget.preemption import Preemption
from budget.prefetch import Prefetcher, unused_first
from budget.refusals import no_room
from budget.residency import DORMANT, State
from budget.victims import choose_victims
from budget.waiting import Rank, Waiting

Item = TypeVar("Item")
MOST_PASSES: Final = 8
"""Each pass that follows another has let a request end or a pin load, so that few ever do."""
SCHEDULER: Final = "the scheduler"
AHEAD: Final = "looking ahead"
BEHIND: Final = "forgetting what was looked ahead for"
YIELDING: Final = "asking leases to yield"
UNTYING: Final = "finding pins that wait for each other"
"""Parts of the core as they are called where their faults are told; all but the first are optional."""


class Scheduler:
    """Brings the desk to rest after a change. Whatever fails at one engine or device stays with it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.prefetcher = Prefetcher(desk)
        self.preemption = Preemption(desk)
        self._blind: Exception | None = None
        """Why it could not even be seen in this pass who waits for what."""
        self._reasons = (
            desk.queue.by_id,
            desk.restless,
            desk.unsettled,
            desk.claims.by_engine,
            desk.claims.spared,
            desk.prefetched,
            desk.plans.by_name,
            desk.residents.pinned_ids,
        )
        """Where something stands while there is anything to do; looked at after every lease."""

    def pump(self, now: float) -> None:
        """Do everything that can be done now. Never raises: what fails is told as a fault."""
        if not any(self._reasons) and not self.prefetcher.busy:
            # So it is at the end of most leases: nothing can follow.
            return
        failing = self._bring_to_rest(now)
        if failing:
            # What was put right after a fault may let others be served: once more.
            self._bring_to_rest(now)
        if self._blind is not None:
            for request in list(self._desk.queue.by_id.values()):
                drop(self._desk, request, broke_down(self._blind))
            put_right(self._desk, now)

    def _bring_to_rest(self, now: float) -> bool:
        """Passes until pins are where they were before; returns whether anything failed.

        A pin that ends, or takes another place, in the middle of a pass may let those in that were
        passed over before.
        """
        desk = self._desk
        faults_before, self._blind = desk.faults.total, None
        for _ in range(MOST_PASSES):
            pins = desk.residents.pins_version
            try:
                self._pass(now)
            except Exception as error:
                failed(desk, SCHEDULER, error, now)
                self._blind = error
            if desk.residents.pins_version == pins or not desk.queue:
                break
        return desk.faults.total > faults_before

    def _pass(self, now: float) -> None:
        desk = self._desk
        desk.admission.start_pass()
        if desk.queue:
            self._each("ending late requests", self._late, self._expire, now)
            self._each("serving", self._awaited, self._serve_engine, now, give_up=self._give_up)
        self._optionally(BEHIND, self.prefetcher.forget, now)
        if desk.restless:
            self._each(
                "letting engines leave",
                lambda _: list(desk.restless.values()),
                self._let_leave,
                now,
            )
        if desk.unsettled:
            self._each("making room", lambda _: sorted(desk.unsettled), self._relieve, now)
        if desk.claims:
            self._each("using freed bytes", self._claims, self._advance, now)
        if desk.queue.aside:
            self._each("pinning", self._aside, self._pin_aside, now, give_up=self._give_up_one)
        if desk.started:
            self._each("loading pins", lambda _: list(desk.residents.pinned), self._load_pin, now)
        if desk.queue:
            self._each("admitting", self._wanting, self._admit_for, now, give_up=self._give_up)
        if desk.claims.spared:
            self._each("serving", self._spared, self._serve_engine, now, give_up=self._give_up)
            desk.claims.spared.clear()
        if desk.queue:
            self._optionally(UNTYING, partial(end_cycles, desk), now)
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
            failed(self._desk, what, error, now)
            if give_up is not None:
                self._blind = error
            return
        for item in found:
            try:
                do(item, now)
            except Exception as error:
                failed(self._desk, what, error, now)
                try:
                    do(item, now)
                except Exception as again:
                    failed(self._desk, what, again, now)
                    if give_up is not None:
                        give_up(item, again, now)

    def _optionally(self, part: str, do: Callable[[float], None], now: float) -> None:
        """One step that nothing depends on."""
        faults = self._desk.faults
        if part in faults.left_out:
            return
        try:
            do(now)
        except Exception as error:
            part_failed(self._desk, part, error, now)
        else:
            if faults.in_row:
                faults.fine(part)

    def _give_up(self, engine_id: str, error: Exception, now: float) -> None:
        """Those who wait for an engine that cannot be decided about are not left waiting."""
        for request in list(self._desk.queue.by_id.values()):
            if request.engine_id == engine_id:
                drop(self._desk, request, broke_down(error))
        put_right(self._desk, now)

    def _give_up_one(self, request: Waiting, error: Exception, now: float) -> None:
        if request.request_id in self._desk.queue:
            drop(self._desk, request, broke_down(error))
        put_right(self._desk, now)

    # Serving

    def _late(self, now: float) -> list[Waiting]:
        return [r for r in self._desk.queue if r.deadline is not None and r.deadline <= now]

    def _expire(self, request: Waiting, now: float) -> None:
        if request.request_id in self._desk.queue:
            self._desk.end(request, lateness(self._desk, request, now), now)

    def _aside(self, _now: float) -> list[Waiting]:
        return list(self._desk.queue.aside.values())

    def _pin_aside(self, request: Waiting, now: float) -> None:
        pin_aside(self._desk, request, now)

    def _awaited(self, _now: float) -> list[str]:
        return self._desk.queue.engines()

    def _spared(self, _now: float) -> list[str]:
        return sorted(self._desk.claims.spared)

    def _serve_engine(self, engine_id: str, now: float) -> None:
        engine = self._desk.residents.get(engine_id)
        if engine is not None and engine.resident:
            self._serve(engine, now)

    def _serve(self, engine: EngineRecord, now: float) -> None:
        """Grant what waits for a resident engine, in order, while slots last."""
        desk = self._desk
        for request in list(desk.queue.of(engine.engine_id) or ()):
            # What asks for no slot waits for none.
            if request.want != "lease" and desk.grantable(engine, request, now):
                desk.grant(engine, request, now)
        while (waits := desk.queue.of(engine.engine_id)) is not None:
            request = waits.head(now, desk.settings.max_wait_s)
            if not desk.grantable(engine, request, now):
                return
            desk.grant(engine, request, now)

    # Leaving

    def _let_leave(self, engine: EngineRecord, now: float) -> None:
        """Evict what is idle and has a reason to go."""
        if engine.state is State.LOADING and engine.retired and not engine.demand:
            self._desk.evict(engine, now, "retired")
        if engine.state is not State.IDLE:
            self._desk.restless.pop(engine.engine_id, None)
            return
        reason = self._reason_to_leave(engine, now)
        if reason:
            self._desk.evict(engine, now, reason)

    def _reason_to_leave(self, engine: EngineRecord, now: float) -> str:
        if engine.pins:
            self._desk.restless.pop(engine.engine_id, None)
            return ""
        if engine.draining_for is not None:
            return f"drained for {engine.draining_for}"
        if engine.retired:
            return "no longer configured"
        if engine.leave_when_idle:
            return "asked to leave"
        if engine.keep_alive_s == NO_TIMEOUT or not engine.used_since_load:
            # Loaded ahead and not used yet is not idle: its keep_alive has not begun.
            self._desk.restless.pop(engine.engine_id, None)
            return ""
        due = engine.idle_since + engine.keep_alive_s
        if now < due:
            self._desk.timers.wake_at(due)
            return ""
        return f"keep_alive of {engine.keep_alive_s:g} s is over"

    def _relieve(self, device: str, now: float) -> None:
        """Bring a device that is over its ceiling back under it, and say when that changes."""
        desk = self._desk
        ledger = desk.residents.books[device]
        over = ledger.room_bytes < 0
        if over and (excess := -ledger.room_bytes - ledger.leaving_bytes) > 0:
            self._shed(device, excess, now)
        if over != ledger.over_limit:
            ledger.over_limit = over
            desk.actions.append(Alert(device, over, ledger.reserved_bytes, ledger.ceiling_bytes))
        if not over:
            desk.unsettled.discard(device)

    def _shed(self, device: str, excess: int, now: float) -> None:
        candidates = unused_first(self._desk, self._desk.admission.candidates(device, now))
        ordered = self._desk.policy.ordered
        enough = choose_victims(candidates, {device: excess}, ordered=ordered)
        victims = tuple(c.engine_id for c in (candidates if enough is None else enough))
        if victims:
            choice = Choice(0, tuple(candidates), victims)
            self._desk.decide(f"room on {device}", ((device, 0),), choice, now, "over the limit")

    # Coming

    def _claims(self, now: float) -> list[Claim]:
        desk = self._desk
        return sorted(desk.claims, key=lambda claim: desk.claim_rank(claim, now))

    def _advance(self, claim: Claim, now: float) -> None:
        desk = self._desk
        if desk.claims.get(claim.engine.engine_id) is not claim:
            return
        if desk.claims.ready(claim):
            desk.load(claim, now)
        elif desk.claims.hopeless(claim) or desk.admission.outdated(claim, now):
            desk.claims.drop(claim.engine.engine_id)

    def _load_pin(self, engine: EngineRecord, now: float) -> None:
        if engine.state in DORMANT:
            if now >= engine.retry_at:
                self._admit(engine, PIN_RANK, now, "pinned", aged=True, priority=None)
            else:
                self._desk.timers.wake_at(engine.retry_at)

    def _wanting(self, now: float) -> list[str]:
        """The engines that requests wait for and that hold nothing, in the order of their first ones."""
        desk = self._desk
        wanted = []
        for engine_id in desk.queue.engines():
            rank = desk.head_rank(engine_id, now)
            if rank is not None and desk.residents[engine_id].state in DORMANT:
                wanted.append((rank, engine_id))
        return [engine_id for _, engine_id in sorted(wanted)]

    def _admit_for(self, engine_id: str, now: float) -> None:
        desk = self._desk
        engine, waits = desk.residents.get(engine_id), desk.queue.of(engine_id)
        if engine is None or waits is None or engine.state not in DORMANT:
            return
        head = waits.head(now, desk.settings.max_wait_s)
        rank = head.rank(now, desk.settings.max_wait_s)
        if not desk.fitting.feasible(engine):
            for request in list(waits):
                keep_out(desk, engine, request, now)
            return
        aged = head.aged(now, desk.settings.max_wait_s)
        if self._admit(engine, rank, now, "requested", aged=aged, priority=head.priority):
            return
        if aged and not desk.fitting.feasible(engine, measured=True):
            self._deny_aged(engine, now)

    def _deny_aged(self, engine: EngineRecord, now: float) -> None:
        """Other programs hold the bytes, and these have waited long enough for them."""
        desk = self._desk
        shortfall = desk.fitting.shortfall(engine, measured=True)
        ledger = desk.residents.books[shortfall[0]]
        if ledger.unjudged_since is not None:
            # The ceiling is outdated, and the next measurement is seconds away.
            until = ledger.unjudged_since + UNJUDGED_AT_MOST_S
            if now < until:
                desk.timers.wake_at(until)
                return
        for request in list(desk.queue.of(engine.engine_id) or ()):
            kept_out = desk.fitting.eventually(engine, {request.client_id}, measured=True)
            if not kept_out and request.aged(now, desk.settings.max_wait_s):
                waited_s = now - request.arrived_at
                desk.end(
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
        desk = self._desk
        if engine.engine_id in desk.claims:
            return True

        def may_drain(victim: EngineRecord) -> bool:
            if aged and now >= victim.immune_until:
                return True
            if aged:
                desk.timers.wake_at(victim.immune_until)
            return priority is not None and all(
                lease.priority < priority for lease in victim.leases.values()
            )

        choose = desk.admission.choose
        choice = choose(engine, now, may_drain=None, measured=aged) or choose(
            engine, now, may_drain=may_drain, measured=aged
        )
        if choice is None:
            if aged:
                desk.admission.bar(engine, now, may_drain)
            return False
        if choice.victims or choice.draining:
            requested = engine.spec.options[choice.option_index].bookings
            desk.decide(engine.engine_id, requested, choice, now, reason)
        forced = bool(choice.draining)
        claim = Claim(engine, choice.option_index, rank, reason, forced, set(choice.draining))
        desk.claims.add(claim)
        if desk.claims.ready(claim):
            desk.load(claim, now)
        elif not claim.draining:
            # Nothing but ends of processes is awaited: the start of the next overlaps with them.
            desk.actions.append(Prepare(engine.engine_id, choice.option_index))
        return True
