"""The pump: what follows from any change of bytes, leases or time.

Order matters. What is resident serves first; what has a reason to leave leaves; devices that are
over their ceiling shed; claims whose bytes are free load; pinned engines load; then those who wait
look for bytes, in rank order; and what nobody needs now may serve what is planned.
"""

from __future__ import annotations

from budget.actions import Alert, Prepare
from budget.admission import Choice
from budget.claims import Claim
from budget.desk import PIN_RANK, Desk
from budget.engines import NO_TIMEOUT, EngineRecord
from budget.ledger import UNJUDGED_AT_MOST_S
from budget.preemption import Preemption
from budget.prefetch import Prefetcher, unused_first
from budget.refusals import never_fits, no_room, too_late
from budget.residency import DORMANT, State
from budget.victims import choose_victims
from budget.waiting import Rank, Waiting


class Scheduler:
    """Brings the desk to rest after a change."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.load_pins = False
        self.prefetcher = Prefetcher(desk)
        self.preemption = Preemption(desk)
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
        """Do everything that can be done now."""
        if not any(self._reasons) and not self.prefetcher.busy:
            # So it is at the end of most leases: nothing can follow.
            return
        desk = self._desk
        desk.admission.start_pass()
        if desk.queue:
            self._expire(now)
            for engine_id in desk.queue.engines():
                self.serve(desk.residents[engine_id], now)
        self.prefetcher.forget(now)
        if desk.restless:
            self._let_leave(now)
        if desk.unsettled:
            self._relieve(now)
        if desk.claims:
            self._advance_claims(now)
        if self.load_pins:
            self._load_pins(now)
        if desk.queue:
            self._admit_waiting(now)
        for engine_id in sorted(desk.claims.spared):
            if engine_id in desk.residents:
                self.serve(desk.residents[engine_id], now)
        desk.claims.spared.clear()
        self.preemption.ask()
        self.prefetcher.look_ahead(now)

    def serve(self, engine: EngineRecord, now: float) -> None:
        """Grant what waits for a resident engine, in order, while slots last."""
        desk = self._desk
        if not engine.resident:
            return
        for request in list(desk.queue.of(engine.engine_id) or ()):
            # What asks for no slot waits for none.
            if request.want != "lease" and desk.grantable(engine, request, now):
                desk.dequeue(request)
                desk.grant(engine, request, now)
        while (waits := desk.queue.of(engine.engine_id)) is not None:
            request = waits.head(now, desk.settings.max_wait_s)
            if not desk.grantable(engine, request, now):
                return
            desk.dequeue(request)
            desk.grant(engine, request, now)

    def _expire(self, now: float) -> None:
        for request in self._desk.queue:
            if request.deadline is not None and request.deadline <= now:
                self._desk.end(request, too_late(request.model, now - request.arrived_at), now)

    # Leaving

    def _let_leave(self, now: float) -> None:
        """Evict what is idle and has a reason to go."""
        for engine in list(self._desk.restless.values()):
            if engine.state is State.LOADING and engine.retired and not engine.demand:
                self._desk.evict(engine, now, "retired")
            if engine.state is not State.IDLE:
                self._desk.restless.pop(engine.engine_id, None)
                continue
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

    def _relieve(self, now: float) -> None:
        """Bring devices that are over their ceiling back under it, and say when that changes."""
        desk = self._desk
        for device in sorted(desk.unsettled):
            ledger = desk.residents.books[device]
            over = ledger.room_bytes < 0
            if over and (excess := -ledger.room_bytes - ledger.leaving_bytes) > 0:
                self._shed(device, excess, now)
            if over != ledger.over_limit:
                ledger.over_limit = over
                desk.actions.append(
                    Alert(device, over, ledger.reserved_bytes, ledger.ceiling_bytes)
                )
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

    def _advance_claims(self, now: float) -> None:
        desk = self._desk
        for claim in sorted(desk.claims, key=lambda c: desk.claim_rank(c, now)):
            if desk.claims.ready(claim):
                desk.load(claim, now)
            elif desk.claims.hopeless(claim) or desk.admission.outdated(claim, now):
                desk.claims.drop(claim.engine.engine_id)

    def _load_pins(self, now: float) -> None:
        for engine in list(self._desk.residents.pinned):
            if engine.state in DORMANT:
                if now >= engine.retry_at:
                    self._admit(engine, PIN_RANK, now, "pinned", aged=True, priority=None)
                else:
                    self._desk.timers.wake_at(engine.retry_at)

    def _admit_waiting(self, now: float) -> None:
        desk = self._desk
        max_wait = desk.settings.max_wait_s
        wanted = []
        for engine_id in desk.queue.engines():
            engine = desk.residents[engine_id]
            waits = desk.queue.of(engine_id)
            if waits is not None and engine.state in DORMANT:
                head = waits.head(now, max_wait)
                wanted.append((head.rank(now, max_wait), head, engine))
        for rank, head, engine in sorted(wanted, key=lambda w: w[0]):
            self._admit_for(engine, head, rank, now)

    def _admit_for(self, engine: EngineRecord, head: Waiting, rank: Rank, now: float) -> None:
        desk = self._desk
        if not desk.fitting.feasible(engine):
            for request in list(desk.queue.of(engine.engine_id) or ()):
                desk.end(request, never_fits(request.model, desk.fitting.shortfall(engine)), now)
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
            if request.aged(now, desk.settings.max_wait_s):
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
