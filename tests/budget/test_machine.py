"""The core under everything that can happen, in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from budget import events as ev
from budget.books.engines import EngineRecord, EngineSpec, ModelSpec, PlacementOption
from budget.books.states import TRANSITIONS, State, Trigger
from budget.core import BudgetCore
from budget.errors import ConfigError, KeepwarmError
from budget.eviction.policies import DEFAULT_POLICY, POLICY_NAMES, make_policy
from budget.settings import CoreSettings
from tests.budget.machine import Shell

LIMITS = {"cuda:0": 100, "host": 120}
ENGINES = (
    EngineSpec("small", (PlacementOption((("cuda:0", 20),), 1.0),), slots=2),
    EngineSpec(
        "wide",
        (PlacementOption((("cuda:0", 45),), 2.0), PlacementOption((("host", 45),), 2.0, tier=1)),
        slots=1,
    ),
    EngineSpec("split", (PlacementOption((("cuda:0", 40), ("host", 30)), 3.0),), slots=1),
    EngineSpec(
        "large",
        (
            PlacementOption((("cuda:0", 85),), 4.0),
            PlacementOption((("cuda:0", 50), ("host", 35)), 5.0, 1),
        ),
    ),
    EngineSpec("host", (PlacementOption((("host", 60),), 1.0),), slots=3),
    EngineSpec("judge", (PlacementOption((("cuda:0", 15),), 1.0),)),
    EngineSpec("giant", (PlacementOption((("cuda:0", 150),), 9.0),)),
)
MODELS = (
    ModelSpec("small", "small"),
    ModelSpec("small-twin", "small", keep_alive_s=5.0),
    ModelSpec("wide", "wide", keep_alive_s=0.0),
    ModelSpec("split", "split", priority=1),
    ModelSpec("large", "large", keep_alive_s=8.0),
    ModelSpec("host", "host"),
    ModelSpec("judge", "judge", pinned=True),
    ModelSpec("giant", "giant"),
)
PINS = ((), ("judge",), ("small-twin", "split"))
ERROR = {"error": "BadModelFile", "message": "cut short"}
NAMES = st.sampled_from([m.name for m in MODELS if m.name != "giant"])
HINTS = ("release", "unload", "unpin", "unpin", "pin", "pin", "pin for good")
CLIENTS = st.sampled_from(["a", "b", "c"])
COUNTS: Counter[str] = Counter()
ROWS: Counter[tuple[State, Trigger]] = Counter()


def changed(spec: EngineSpec, engine_id: str, times: int) -> EngineSpec:
    """An engine whose file has changed so many times: a little smaller, or larger, or elsewhere."""
    options = tuple(
        replace(o, bookings=tuple((d, b - times % 3) for d, b in o.bookings)) for o in spec.options
    )
    return replace(spec, engine_id=engine_id, options=options[: 1 + (times + 1) % 2] or options)


class CoreMachine(RuleBasedStateMachine):
    """Drives the core through the shell; the shell checks the invariants after every event."""

    policy = "lru"

    def __init__(self) -> None:
        super().__init__()
        settings = CoreSettings(4.0, 12, prefetch="load")
        core = BudgetCore(LIMITS, MODELS, ENGINES, make_policy(self.policy), settings)
        self.shell = Shell(core)
        self.shell.send(ev.Started())
        self.files: dict[str, int] = dict.fromkeys([e.engine_id for e in ENGINES], 0)
        """How often each engine's file was changed: every change makes another engine of it."""
        self.missing: set[str] = set()
        """Models that are not configured, or whose files are bad, now."""
        self.pins: tuple[str, ...] = ("judge",)
        self.host_limit = LIMITS["host"]

    def _count(self, what: str) -> None:
        COUNTS["steps"] += 1
        COUNTS[what] += 1

    @rule(
        name=NAMES,
        client=CLIENTS,
        want=st.sampled_from(["lease"] * 8 + ["load"]),
        priority=st.sampled_from([None, None, 0, 2, -1]),
        patience=st.sampled_from([None, None, None, 0.0, 3.0]),
        preemptible=st.booleans(),
    )
    def arrive(
        self,
        name: str,
        client: str,
        want: ev.Want,
        priority: int | None,
        patience: float | None,
        *,
        preemptible: bool,
    ) -> None:
        """A request of any kind."""
        self._count("arrivals")
        deadline = None if patience is None else self.shell.now + patience
        self.shell.ask(
            name,
            client,
            want=want,
            priority=priority,
            deadline=deadline,
            preemptible=preemptible,
        )

    @rule(name=NAMES, client=CLIENTS)
    def arrive_plainly(self, name: str, client: str) -> None:
        """A request as most are."""
        self._count("arrivals")
        self.shell.ask(name, client)

    @rule(name=NAMES, client=CLIENTS)
    def arrive_and_be_served(self, name: str, client: str) -> None:
        """A request for which everything that is under way ends well."""
        self._count("arrivals")
        self.shell.ask(name, client, priority=-1, preemptible=True)
        self.shell.settle()

    def arrive_for_what_never_fits(self, client: str) -> None:
        """A model that is too big is refused at once and moves nothing."""
        if "giant" in self.missing:
            return
        self._count("never_fits")
        before = len(self.shell.log)
        request = self.shell.ask("giant", client)
        if not self.shell.may_fail:
            assert self.shell.outcomes[request] == "NeverFits"
            assert len(self.shell.log) == before + 1

    @precondition(lambda self: self.shell.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A waiting request is withdrawn."""
        self._count("cancels")
        request = data.draw(st.sampled_from(sorted(self.shell.waiting)))
        self.shell.send(ev.RequestCancelled(request))
        assert self.shell.outcomes[request] == "Cancelled"

    @rule(
        data=st.data(),
        kind=st.sampled_from(
            ["never_fits", "client_goes", "measure_device", "reconfigure", "hint", "hint", "plan"]
        ),
    )
    def something_rare(self, data: st.DataObject, kind: str) -> None:
        """One of the events that need not come often."""
        if kind == "never_fits":
            self.arrive_for_what_never_fits(data.draw(CLIENTS))
        elif kind == "client_goes":
            self.client_goes(data.draw(CLIENTS))
        elif kind == "plan":
            steps = data.draw(st.lists(NAMES, max_size=6))
            self.declare(data.draw(CLIENTS), data.draw(st.sampled_from([None, "p"])), steps)
        elif kind == "measure_device":
            available = data.draw(st.sampled_from([40, 90, 1000, 1000]))
            self.measure_device(data.draw(st.sampled_from(sorted(LIMITS))), available)
        elif kind == "reconfigure":
            self.pins = data.draw(st.sampled_from(PINS))
            self.host_limit = data.draw(st.sampled_from([80, 110, 120]))
            # Some models are not configured any more, or their files are bad; all others are there.
            self.missing = data.draw(st.sampled_from([set(), set()]) | st.sets(NAMES, max_size=3))
            self.reconfigure(bad=data.draw(st.booleans()))
        else:
            self.hint(data.draw(st.sampled_from(HINTS)), data.draw(NAMES), data.draw(CLIENTS))

    def client_goes(self, client: str) -> None:
        """A client's connection ends."""
        self._count("clients_gone")
        self.shell.gone(client)

    @precondition(lambda self: self.shell.leases)
    @rule(data=st.data(), again=st.booleans())
    def end_lease(self, data: st.DataObject, *, again: bool) -> None:
        """A lease is given back, once; a second time raises and changes nothing."""
        self._count("leases_ended")
        request = data.draw(st.sampled_from(sorted(self.shell.leases)))
        client = self.shell.leases[request].client_id
        self.shell.end(request)
        if again:
            with pytest.raises(KeepwarmError):
                self.shell.send(ev.LeaseEnded(request, client))

    @precondition(lambda self: self.shell.leases)
    @rule(data=st.data())
    def end_another_lease(self, data: st.DataObject) -> None:
        """Leases end more often than anything else."""
        self._count("leases_ended")
        self.shell.end(data.draw(st.sampled_from(sorted(self.shell.leases))))

    @precondition(lambda self: self.shell.leases)
    @rule(data=st.data(), ends=st.booleans())
    def lease_is_taken(self, data: st.DataObject, *, ends: bool) -> None:
        """The keeper takes a lease back; its client may still give it back afterwards."""
        self._count("taken")
        request = data.draw(st.sampled_from(sorted(self.shell.leases)))
        client = self.shell.leases[request].client_id
        self.shell.take(request, {"error": "EngineTimeout", "message": "silent"})
        if ends:
            self.shell.send(ev.LeaseEnded(request, client))

    @precondition(lambda self: self.shell.asked & self.shell.leases.keys())
    @rule(data=st.data())
    def lease_is_yielded(self, data: st.DataObject) -> None:
        """A client that was asked gives its lease back and waits to go on."""
        self._count("yielded")
        asked = sorted(self.shell.asked & self.shell.leases.keys())
        self.shell.yield_(data.draw(st.sampled_from(asked)))

    @rule(name=NAMES, client=CLIENTS)
    def one_is_asked_to_yield_for_another(self, name: str, client: str) -> None:
        """A request that can be interrupted is, if everything under way lets it run."""
        self._count("arrivals")
        self.shell.ask(name, client, priority=-1, preemptible=True)
        self.shell.settle()
        self.shell.ask(name, client, priority=2)
        for request in sorted(self.shell.asked & self.shell.leases.keys()):
            self._count("yielded")
            self.shell.yield_(request)

    @precondition(lambda self: self.shell.loading)
    @rule(data=st.data(), factor=st.sampled_from([None, None, 0.9, 1.3]))
    def load_finishes(self, data: st.DataObject, factor: float | None) -> None:
        """A load ends well, sometimes with bytes that differ from the booked ones."""
        self._count("loads_finished")
        engine_id = data.draw(st.sampled_from(sorted(self.shell.loading)))
        booked = self.shell.core.state.residents[engine_id].bookings
        measured = tuple((d, int(b * factor)) for d, b in booked) if factor else None
        self.shell.finish_load(engine_id, measured)

    @precondition(lambda self: self.shell.loading)
    @rule(data=st.data(), out_of_memory=st.booleans())
    def load_fails(self, data: st.DataObject, *, out_of_memory: bool) -> None:
        """A load ends badly."""
        self._count("load_failures")
        engine_id = data.draw(st.sampled_from(sorted(self.shell.loading)))
        self.shell.fail_load(engine_id, out_of_memory=out_of_memory)

    @precondition(lambda self: self.shell.loading)
    @rule()
    def loads_are_refused(self) -> None:
        """A device has no memory left: whatever is loading fails for it."""
        for engine_id in sorted(self.shell.loading):
            if engine_id in self.shell.loading:
                self._count("load_failures")
                self.shell.fail_load(engine_id, out_of_memory=True)

    @precondition(lambda self: self.shell.resident())
    @rule(data=st.data())
    def engine_dies(self, data: st.DataObject) -> None:
        """A resident engine ends by itself."""
        self._count("deaths")
        self.shell.kill(data.draw(st.sampled_from(sorted(self.shell.resident()))))

    @precondition(lambda self: self.shell.unloading)
    @rule(data=st.data(), last_word=st.sampled_from([None, "loaded", "failed", "died"]))
    def unload_finishes(self, data: st.DataObject, last_word: str | None) -> None:
        """An engine is gone; before that it may still report what it was doing."""
        engine_id = data.draw(st.sampled_from(sorted(self.shell.unloading)))
        self.leaves(engine_id, last_word)

    @precondition(lambda self: any(u.abandon for u in self.shell.unloading.values()))
    @rule(last_word=st.sampled_from(["loaded", "failed", "died"]))
    def an_abandoned_load_has_a_last_word(self, last_word: str) -> None:
        """It ended before the order to end it came."""
        unloading = self.shell.unloading
        self.leaves(min(name for name in unloading if unloading[name].abandon), last_word)

    def leaves(self, engine_id: str, last_word: str | None) -> None:
        """An engine is gone, after it reported what it was doing."""
        self._count("unloads_finished")
        generation = self.shell.unloading[engine_id].generation
        error = {"error": "EngineDied", "message": "on the way out"}
        if last_word == "loaded":
            self.shell.send(ev.LoadFinished(engine_id, generation))
        elif last_word == "failed":
            self.shell.send(ev.LoadEndedBadly(engine_id, generation, error))
        elif last_word == "died":
            self.shell.send(ev.EngineGone(engine_id, generation, error))
        self.shell.finish_unload(engine_id)

    @precondition(lambda self: self.shell.unloading)
    @rule()
    def unloads_finish(self) -> None:
        """Everything that leaves is gone."""
        self._count("unloads_finished")
        for engine_id in sorted(self.shell.unloading):
            if engine_id in self.shell.unloading:
                self.shell.finish_unload(engine_id)

    def hint(self, kind: str, name: str, client: str) -> None:
        """A caller says what may leave or must stay."""
        self._count("hints")
        if kind in ("pin", "pin for good"):
            self.shell.ask(name, client, want="pin", persist=kind == "pin for good")
            return
        try:
            self.shell.send(ev.HintGiven(kind, name))  # type: ignore[arg-type]
        except KeepwarmError as error:
            assert type(error).__name__ in ("AdmissionDenied", "UnknownModel", "BadModelFile")

    def measure_device(self, device: str, available: int) -> None:
        """Another program takes memory, or gives it back."""
        self._count("measurements")
        self.shell.send(ev.DeviceMeasured(device, available, available // 2, 30))

    def declare(self, client: str, plan: str | None, steps: list[str]) -> None:
        """A client says what it will use next, or withdraws that."""
        self._count("declarations")
        try:
            self.shell.declare(*steps, client=client, plan=plan)
        except KeepwarmError as error:
            assert type(error).__name__ in ("UnknownModel", "BadModelFile")

    @rule(steps=st.lists(NAMES, min_size=2, max_size=6), client=CLIENTS, use=st.booleans())
    def declare_and_work(self, steps: list[str], client: str, *, use: bool) -> None:
        """Declared uses that are kept to: everything under way ends, the first step is asked for."""
        self.declare(client, None, steps)
        self.shell.settle()
        if use:
            self.shell.ask(steps[0], client)

    @precondition(lambda self: self.shell.staging)
    @rule()
    def staging_ends(self) -> None:
        """A file has been read, or its reading was stopped."""
        self._count("stagings_ended")
        self.shell.finish_staging()

    @precondition(lambda self: self.shell.resident())
    @rule(data=st.data(), factor=st.sampled_from([0.8, 1.0, 1.2]))
    def measure_engine(self, data: st.DataObject, factor: float) -> None:
        """An engine is found to take other bytes than booked."""
        self._count("measurements")
        engine_id = data.draw(st.sampled_from(sorted(self.shell.resident())))
        engine = self.shell.core.state.residents[engine_id]
        bytes_now = tuple((d, int(b * factor)) for d, b in engine.option.bookings)
        self.shell.send(ev.EngineMeasured(engine_id, engine.generation, bytes_now))

    @rule(name=st.sampled_from([e.engine_id for e in ENGINES]))
    def a_file_changes(self, name: str) -> None:
        """A model's file is fetched again: from now on another engine runs it."""
        self.files[name] += 1
        self.reconfigure()

    def reconfigure(self, *, bad: bool = False) -> None:
        """The configuration is read anew."""
        self._count("reconfigured")
        models, engines = self.configuration()
        declared = len(self.shell.core.state.declared_uses.by_name)
        errors = dict.fromkeys(self.missing, ERROR) if bad else {}
        limits = {**LIMITS, "host": self.host_limit}
        try:
            self.shell.send(ev.Reconfigured(models, engines, limits, errors=errors))
        except ConfigError:
            self.shell.check()
        else:
            COUNTS["reconfigured under declared uses"] += bool(declared)

    def configuration(self) -> tuple[tuple[ModelSpec, ...], tuple[EngineSpec, ...]]:
        """Models and engines as they are configured now; files that changed differ in size."""

        def name_of(engine_id: str) -> str:
            times = self.files[engine_id]
            return f"{engine_id}#{times}" if times else engine_id

        models = tuple(
            replace(m, engine_id=name_of(m.engine_id), pinned=m.name in self.pins)
            for m in MODELS
            if m.name not in self.missing
        )
        engines = tuple(changed(e, name_of(e.engine_id), self.files[e.engine_id]) for e in ENGINES)
        named = {m.engine_id for m in models}
        return models, tuple(e for e in engines if e.engine_id in named)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        """Timers ring on the way."""
        self._count("ticks")
        self.shell.advance(seconds)

    def teardown(self) -> None:
        """When the others fall silent, every request that is left ends, and the books are sound."""
        shell = self.shell
        shell.settle()
        shell.unpin_all()
        shell.settle()
        for device in LIMITS:
            shell.send(ev.DeviceMeasured(device, 10**6))
        for _ in range(400):
            shell.settle()
            if shell.leases:
                shell.end(next(iter(shell.leases)))
            elif shell.waiting:
                shell.advance(1.0)
                # A pin that other pins kept out keeps others out in its turn.
                shell.unpin_all()
            else:
                break
        assert not shell.waiting, f"never ended: {sorted(shell.waiting)}"
        kinds = ("evictions", "prefetches", "prefetch evictions", "stagings", "asked to yield")
        for what in kinds:
            COUNTS[what] += shell.counts[what]
        COUNTS["requests"] += shell.requests
        for outcome in shell.outcomes.values():
            COUNTS[f"outcome {outcome}"] += 1


@contextmanager
def rows_counted() -> Iterator[None]:
    """Count every row of the transition table that is taken."""
    original = EngineRecord.move

    def move(self: EngineRecord, trigger: Trigger, now: float, detail: str = "") -> State:
        ROWS[(self.state, trigger)] += 1
        return original(self, trigger, now, detail)

    EngineRecord.move = move  # type: ignore[method-assign]
    try:
        yield
    finally:
        EngineRecord.move = original  # type: ignore[method-assign]


class ForecastMachine(CoreMachine):
    """The same with the default policy, which learns, looks ahead and keeps books for each expert."""

    policy = DEFAULT_POLICY


def drive(machine: type[CoreMachine], examples: int, *, seed: int | None = None) -> None:
    """Run a machine; without a seed always the same steps."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=80,
            deadline=None,
            derandomize=seed is None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_core_holds_its_invariants_under_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """At least 10,000 steps: books balance, leases and pins stay, every request ends once."""
    COUNTS.clear()
    ROWS.clear()
    with rows_counted():
        drive(CoreMachine, 90)
        drive(ForecastMachine, 90)
    with capsys.disabled():
        print(f"\n[core machine] {dict(sorted(COUNTS.items()))}")
    assert COUNTS["steps"] >= 10_000
    assert min(COUNTS["prefetches"], COUNTS["prefetch evictions"], COUNTS["stagings"]) >= 10
    assert min(COUNTS["yielded"], COUNTS["reconfigured under declared uses"]) >= 20
    for what in ("evictions", "cancels", "load_failures", "deaths"):
        assert COUNTS[what] >= 0.01 * COUNTS["steps"], what
    assert set(ROWS) == set(TRANSITIONS), set(TRANSITIONS) ^ set(ROWS)


@pytest.mark.full
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_core_holds_its_invariants_for_long_under_every_policy(policy: str) -> None:
    """Other steps each time it runs."""
    machine = type("AnyMachine", (CoreMachine,), {"policy": policy})
    drive(machine, 1000, seed=1)
