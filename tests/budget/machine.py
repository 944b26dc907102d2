"""A shell for the core that plays keeper: it carries out actions when the test says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from budget import actions as act
from budget import events as ev
from budget.admission.pins import is_kept_out
from budget.admission.state import PREFETCH
from budget.books.engines import EngineSpec, ModelSpec, PlacementOption
from budget.books.states import State
from budget.core import BudgetCore
from budget.errors import KeepwarmError, LoadFailed, OutOfMemory
from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.settings import CoreSettings


def engine(name: str, size: int, *, device: str = "gpu", slots: int = 1) -> EngineSpec:
    """An engine with one placement on one device."""
    return EngineSpec(name, (PlacementOption(((device, size),), float(size)),), slots)


def model(name: str, engine_id: str | None = None, **more: object) -> ModelSpec:
    """A model entry; its engine has its name unless said otherwise."""
    return ModelSpec(name, engine_id or name, **more)  # type: ignore[arg-type]


def shell_of(
    limits: int | Mapping[str, int],
    engines: Iterable[EngineSpec],
    models: Iterable[ModelSpec] = (),
    *,
    policy: EvictionPolicy | None = None,
    **settings: Any,
) -> Shell:
    """A shell around a started core; engines that no model names get a model of their name."""
    specs = list(engines)
    entries = list(models)
    named = {entry.engine_id for entry in entries}
    entries += [model(s.engine_id) for s in specs if s.engine_id not in named]
    devices = {"gpu": limits} if isinstance(limits, int) else limits
    shell = Shell(BudgetCore(devices, entries, specs, policy, CoreSettings(**settings)))
    shell.send(ev.Started())
    return shell


@dataclass
class Shell:
    """Feeds events, remembers what is outstanding, and checks what must hold after each."""

    core: BudgetCore
    now: float = 0.0
    loading: dict[str, act.StartLoad] = field(default_factory=dict)
    unloading: dict[str, act.Unload] = field(default_factory=dict)
    staging: set[str] = field(default_factory=set)
    low: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    leases: dict[str, act.Grant] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    timer: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    log: list[act.Action] = field(default_factory=list)
    draining_recorded: set[str] = field(default_factory=set)
    requests: int = 0
    started: bool = False
    preemptible: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    may_fail: bool = False

    def send(self, event: ev.Event) -> list[act.Action]:
        """One event into the core; its actions are booked here and its invariants checked."""
        before = {e.engine_id: (e.state, bool(e.pins)) for e in self.core.state.residents}
        self.started = self.started or isinstance(event, ev.Started)
        if isinstance(event, ev.RequestArrived):
            self.waiting.add(event.request_id)
            if event.preemptible:
                self.preemptible.add(event.request_id)
        actions = self.core.handle(event, self.now)
        for action in actions:
            self._take(action, before)
            self._check_prefetch(action, before)
        self.log.extend(actions)
        self.check()
        return actions

    def _take(self, action: act.Action, before: dict[str, tuple[State, bool]]) -> None:
        match action:
            case act.StartLoad():
                assert action.engine_id not in self.loading | self.unloading
                self.loading[action.engine_id] = action
                for ledger in self.core.state.residents.books:
                    booked = dict(self.core.state.residents[action.engine_id].bookings)
                    if ledger.device in booked:
                        assert ledger.reserved_bytes <= ledger.ceiling_bytes
            case act.Unload():
                self.counts["evictions"] += 1
                assert not self.core.state.residents[action.engine_id].leases
                state, was_pinned = before[action.engine_id]
                assert state in (State.IDLE, State.LEASED, State.LOADING)
                assert action.abandon == (action.engine_id in self.loading)
                self.loading.pop(action.engine_id, None)
                self.unloading[action.engine_id] = action
                engine_ = self.core.state.residents[action.engine_id]
                assert not (was_pinned and engine_.pins), "a pinned engine is never evicted"
            case act.Grant():
                self._end(action.request_id, "granted")
                if action.slot is not None:
                    self.leases[action.request_id] = action
            case act.Deny():
                self._end(action.request_id, str(action.error["error"]))
            case act.Revoke():
                del self.leases[action.request_id]
            case act.SetTimer():
                self.timer = action.at
            case act.Record():
                self.draining_recorded.update(action.record.draining)
            case act.Alert():
                self.counts["alerts"] += 1
            case _:
                self._take_quiet(action)

    def _check_asked(self, action: act.AskYield) -> None:
        """Only what said it can be interrupted is asked, once, and for a higher priority."""
        state = self.core.state
        lease = state.leases[action.request_id].leases[action.request_id]
        assert action.request_id in self.preemptible
        assert action.request_id not in self.asked, "asked once"
        assert lease.interrupted_s < state.settings.max_wait_s
        waiting = [r for r in state.queue if r.engine_id == action.wanted]
        assert any(r.priority > lease.priority for r in waiting)
        self.asked.add(action.request_id)
        self.counts["asked to yield"] += 1

    def _take_quiet(self, action: act.Action) -> None:
        """Those that change no books."""
        match action:
            case act.StageFile():
                assert not self.staging, "one file is staged at a time"
                assert action.engine_id in self.core.state.declared_uses.next_uses(10**6)
                self.staging.add(action.engine_id)
                self.counts["stagings"] += 1
            case act.StopStaging():
                assert action.engine_id in self.staging
            case act.AskYield():
                self._check_asked(action)
            case act.Prepare():
                claim = self.core.state.claims.get(action.engine_id)
                dropped = claim is None and self.may_fail
                assert dropped or claim is not None
                if claim is not None:
                    assert (claim.option_index, claim.draining) == (action.option_index, set())
                self.counts["prepared"] += 1
            case act.Fault():
                if not self.may_fail:
                    raise AssertionError(f"the core failed at {action}") from action.error
                self.counts["faults"] += 1
            case act.LowMemory():
                assert action.low == (action.device not in self.low), "said once"
                (self.low.add if action.low else self.low.remove)(action.device)
                self.counts["low memory"] += 1
            case _:
                raise AssertionError(f"unknown action {action}")

    def _check_prefetch(self, action: act.Action, before: dict[str, tuple[State, bool]]) -> None:
        """An engine loaded ahead takes nothing from engines waited for, in use, pinned or needed sooner."""
        state = self.core.state
        nexts = state.declared_uses.next_uses(10**6)
        if isinstance(action, act.Record) and action.record.reason == PREFETCH:
            self.counts["prefetch evictions"] += 1
            assert not action.record.draining
            for victim in action.record.victims:
                assert not state.residents[victim].pins
                assert not state.residents[victim].demand
                assert nexts.get(victim, 10**6) > nexts[action.record.wanted]
        if isinstance(action, act.StartLoad) and action.reason == PREFETCH:
            self.counts["prefetches"] += 1
            booked = {device for device, _ in state.residents[action.engine_id].bookings}
            assert not booked & state.low
            for engine_id in state.queue.engines():
                other = state.residents[engine_id]
                if not other.resident and other.state is not State.LOADING:
                    wants = {d for option in other.spec.options for d, _ in option.bookings}
                    assert not wants & booked, f"{engine_id} waits for bytes on {booked}"

    def _end(self, request_id: str, outcome: str) -> None:
        assert request_id in self.waiting, f"{request_id} ends twice: {outcome}"
        self.waiting.discard(request_id)
        self.outcomes[request_id] = outcome

    def check(self) -> None:
        """The invariants that hold after every event."""
        self.core.validate()
        state = self.core.state
        assert {r.request_id for r in state.queue} == self.waiting
        assert set(state.leases) == set(self.leases)
        reading = self.core.prefetcher.staging
        assert self.staging == ({reading} if reading else set())
        for view in self.core.ledgers():
            assert view.reserved_bytes == view.protected_bytes + view.evictable_bytes
            assert view.free_bytes == view.limit_bytes - view.reserved_bytes
        for request in state.queue:
            engine_ = state.residents[request.engine_id]
            if request.request_id in state.queue.aside:
                leaving = engine_.state is State.EVICTING
                assert leaving or is_kept_out(state, engine_, request), request
            elif engine_.resident and engine_.free_slot() is not None:
                claimant = engine_.draining_for
                assert claimant is not None or engine_.leave_when_idle, (
                    f"{request.request_id} waits while {engine_!r} could serve it"
                )
                if claimant is not None and not engine_.leave_when_idle:
                    rank = request.rank(self.now, state.settings.max_wait_s)
                    assert state.claim_rank(state.claims[claimant], self.now) < rank
                    assert engine_.engine_id in self.draining_recorded

        self._check_leaving()
        self._check_timers()
        self._check_nobody_is_stuck()

    def _check_leaving(self) -> None:
        """An engine with a reason to leave is leaving; one that drains is in use and not pinned."""
        state = self.core.state
        for engine_ in state.residents:
            if engine_.engine_id in state.prefetched:
                assert engine_.state in (State.LOADING, State.IDLE), engine_
            if engine_.draining_for is not None:
                assert engine_.state is State.LEASED, engine_
                assert not engine_.pins, f"{engine_!r} is pinned and drains"
            if engine_.state is State.IDLE and not engine_.pins:
                assert not engine_.retired, engine_
                assert not engine_.leave_when_idle, engine_
                if engine_.used_since_load and engine_.keep_alive_s >= 0:
                    assert self.now < engine_.idle_since + engine_.keep_alive_s, engine_
        for claim in state.claims:
            assert claim.engine.demand or claim.engine.pins, f"claimed in vain: {claim}"
        for ledger in state.residents.books:
            assert ledger.over_limit == (ledger.room_bytes < 0), ledger.view()

    def _check_timers(self) -> None:
        """A timer is set for everything that the passing of time alone will change."""
        state = self.core.state
        dues = [
            e.idle_since + e.keep_alive_s
            for e in state.residents
            if e.state is State.IDLE and e.used_since_load and e.keep_alive_s > 0 and not e.pins
        ]
        for request in state.queue:
            dues.append(request.arrived_at + state.settings.max_wait_s)
            if request.deadline is not None:
                assert request.deadline > self.now, f"{request.request_id} is late and waits"
                dues.append(request.deadline)
        dues = [due for due in dues if due > self.now]
        if dues:
            assert self.timer is not None
            assert self.timer <= min(dues)

    def _check_nobody_is_stuck(self) -> None:
        """When nothing is under way and no other program holds bytes, no request waits, pins are in."""
        if self.loading or self.unloading or self.leases:
            return
        state = self.core.state
        stuck = self.waiting - self._kept_out()
        if any(ledger.ceiling_bytes < ledger.limit_bytes for ledger in state.residents.books):
            assert not stuck or self.timer is not None
            return
        assert not stuck, f"stuck: {sorted(stuck)} {list(state.residents)}"
        for engine_ in state.residents.pinned:
            if self.started and not engine_.resident and state.fitting.feasible(engine_):
                assert engine_.retry_at > self.now
                assert self.timer is not None
                assert self.timer <= engine_.retry_at

    def _kept_out(self) -> set[str]:
        """Requests that wait for pins of other clients to end, other programs' bytes counted."""
        state, found = self.core.state, set()
        for request in state.queue:
            engine_ = state.residents[request.engine_id]
            fits = state.fitting.feasible(engine_, measured=True)
            later = state.fitting.eventually(engine_, {request.client_id}, measured=True)
            if is_kept_out(state, engine_, request) or (not fits and later):
                found.add(request.request_id)
        return found

    # The test's side

    def ask(self, model_name: str, client: str = "c", **more: object) -> str:
        """A request arrives; returns its id."""
        self.requests += 1
        request_id = f"r{self.requests}"
        self.send(ev.RequestArrived(request_id, client, model_name, **more))  # type: ignore[arg-type]
        return request_id

    def finish_load(
        self, engine_id: str, bookings: tuple[tuple[str, int], ...] | None = None
    ) -> None:
        """The load under way for an engine succeeds."""
        load = self.loading.pop(engine_id)
        self.send(ev.LoadFinished(engine_id, load.generation, bookings))

    def fail_load(
        self, engine_id: str, why: KeepwarmError | None = None, *, out_of_memory: bool = False
    ) -> None:
        """The load under way for an engine fails."""
        load = self.loading.pop(engine_id)
        failure = why or (OutOfMemory("scripted") if out_of_memory else LoadFailed("scripted"))
        error = failure.to_wire()
        self.counts["load_failures"] += 1
        self.send(ev.LoadEndedBadly(engine_id, load.generation, error, out_of_memory))

    def finish_unload(self, engine_id: str) -> None:
        """The unload under way for an engine is done."""
        unload = self.unloading.pop(engine_id)
        self.send(ev.UnloadFinished(engine_id, unload.generation))

    def finish_staging(self, read_bytes: int = 1) -> None:
        """The staging under way ends."""
        self.send(ev.StageFinished(self.staging.pop(), read_bytes))

    def declare(self, *models: str, client: str = "c", plan: str | None = None) -> None:
        """A client declares its next uses."""
        self.send(ev.UsesDeclared(client, models, plan))

    def kill(self, engine_id: str) -> None:
        """A resident engine dies."""
        engine_ = self.core.state.residents[engine_id]
        self.counts["deaths"] += 1
        error = {"error": "EngineDied", "message": "scripted"}
        self.send(ev.EngineGone(engine_id, engine_.generation, error))

    def end(self, request_id: str) -> None:
        """A lease is given back."""
        grant = self.leases.pop(request_id)
        self.send(ev.LeaseEnded(request_id, grant.client_id))

    def take(self, request_id: str, error: Mapping[str, Any]) -> None:
        """The keeper takes a lease back from its client."""
        self.send(ev.LeaseTaken(request_id, error))

    def yield_(self, request_id: str) -> None:
        """A lease is given back by a request that waits to go on."""
        grant = self.leases.pop(request_id)
        self.asked.discard(request_id)
        self.waiting.add(request_id)
        del self.outcomes[request_id]
        self.send(ev.LeaseYielded(request_id, grant.client_id))

    def advance(self, seconds: float) -> None:
        """Time passes; every timer that falls due on the way rings at its time."""
        target = self.now + seconds
        while self.timer is not None and self.timer <= target:
            self.now = max(self.now, self.timer)
            self.timer = None
            self.send(ev.TimerDue())
        self.now = target

    def serve(self, model_name: str, client: str = "c", **more: object) -> str:
        """A request whose loads all end well and whose lease is granted; returns its id."""
        request_id = self.ask(model_name, client, **more)
        self.settle()
        assert request_id in self.leases, self.outcomes.get(request_id, "waits")
        return request_id

    def serve_pin(self, model_name: str, client: str = "c", *, persist: bool = False) -> None:
        """A model is pinned by a client."""
        request_id = self.ask(model_name, client, want="pin", persist=persist)
        self.settle()
        assert self.outcomes[request_id] == "granted"

    def use(self, model_name: str, client: str = "c") -> None:
        """A request is served and over."""
        self.end(self.serve(model_name, client))

    def gone(self, client: str) -> None:
        """A client's connection ends."""
        for request_id in [r for r, g in self.leases.items() if g.client_id == client]:
            del self.leases[request_id]
        self.send(ev.ClientGone(client))

    def unpin_all(self) -> None:
        """Every pin of a client ends."""
        for model_name in sorted(self.core.state.holders.called()):
            self.send(ev.HintGiven("unpin", model_name))

    def state(self, engine_id: str) -> State:
        """The state of an engine."""
        return self.core.state.residents[engine_id].state

    def drains_for(self, engine_id: str) -> str | None:
        """The engine that this one drains for, or None."""
        return self.core.state.residents[engine_id].draining_for

    def error(self, request_id: str) -> dict[str, Any]:
        """The error on the wire with which a request was denied."""
        denied = [a for a in self.log if isinstance(a, act.Deny) and a.request_id == request_id]
        return dict(denied[0].error)

    def loads(self) -> list[str]:
        """The engines in the order in which loads were started."""
        return [a.engine_id for a in self.log if isinstance(a, act.StartLoad)]

    def settle(self) -> None:
        """Finish every load and unload that is under way, and what follows from them."""
        for _ in range(1000):
            if self.unloading:
                self.finish_unload(next(iter(self.unloading)))
            elif self.loading:
                self.finish_load(next(iter(self.loading)))
            else:
                return
        raise AssertionError("loads and unloads never end")

    def resident(self) -> set[str]:
        """The engines that can serve now."""
        return {e.engine_id for e in self.core.state.residents if e.resident}
