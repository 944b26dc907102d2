"""Worlds drawn at random: devices, placements, slots, pins and priorities the machine has not.

Every request may be interrupted for one of higher priority, and still none waits for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from budget import events as ev
from budget.books.engines import EngineSpec, ModelSpec, PlacementOption
from budget.core import BudgetCore
from budget.errors import ConfigError, KeepwarmError
from budget.settings import CoreSettings
from tests.budget.machine import Shell

MAX_WAIT_S = 4.0
LEASE_S, LOAD_S, YIELD_S = 2.0, 2.0, 1.0
STEPS, STEPS_OF_OVERLOAD = 200, 250
"""Half seconds. Those of overload are longer than the longest wait that is allowed."""
PATIENCE_S = 3.0
MAX_QUEUE = 30


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How many come at once at most, with which priorities, and how many may be interrupted."""

    at_once: int = 2
    priorities: tuple[int | None, ...] = (None, None, 0, 2, 5, -1)
    preemptible_share: float = 0.7
    patient_share: float = 0.9


ARRIVALS = st.builds(
    Arrivals,
    st.integers(1, 5),
    st.sampled_from([(0, 5), (5, 5, 5, 0), (0, 0, 0, 5), (None, None, 0, 2, 5, -1)]),
    st.sampled_from([0.3, 0.7, 1.0]),
    st.sampled_from([0.9, 1.0]),
)


def options(draw: Random, devices: list[str]) -> tuple[PlacementOption, ...]:
    """Whole on some devices, on the host as second best, split as third."""
    size = draw.choice([10, 20, 30, 45, 60, 90, 100])
    found = [
        PlacementOption(((device, size),), 1.0, tier=1 if device == "host" else 0)
        for device in draw.sample(devices, draw.randint(1, len(devices)))
    ]
    if len(devices) > 1 and draw.random() < 0.3:
        one, other = sorted(draw.sample(devices, 2))
        found.append(PlacementOption(((one, size // 2), (other, size - size // 2)), 2.0, tier=2))
    return tuple(found)


def world(draw: Random) -> Shell:
    """A started core with one to three GPUs, maybe a host, and up to nine engines."""
    limits = {f"gpu{i}": draw.choice([60, 100]) for i in range(draw.randint(1, 3))}
    if draw.random() < 0.5:
        limits["host"] = 150
    specs = [
        EngineSpec(f"e{i}", options(draw, sorted(limits)), draw.randint(1, 3))
        for i in range(draw.randint(2, 9))
    ]
    models = [
        ModelSpec(
            f"m{i}",
            spec.engine_id if draw.random() < 0.8 else draw.choice(specs).engine_id,
            pinned=draw.random() < 0.12,
            keep_alive_s=draw.choice([-1.0, -1.0, 0.0, 3.0]),
            priority=draw.choice([0, 0, 0, 1]),
        )
        for i, spec in enumerate(specs)
    ]
    settings = CoreSettings(max_wait_s=MAX_WAIT_S, max_queue=MAX_QUEUE, prefetch="load")
    try:
        shell = Shell(BudgetCore(limits, models, specs, settings=settings))
    except ConfigError:
        return world(draw)
    shell.send(ev.Started())
    return shell


class WorldRun:
    """Carries out what is under way, each thing within a bounded time."""

    def __init__(self, draw: Random, shell: Shell, arrivals: Arrivals | None = None) -> None:
        self.draw = draw
        self.arrivals = arrivals or Arrivals()
        self.shell = shell
        self.names = sorted(shell.core.state.models)
        self.since: dict[object, float] = {}
        self.yielded_at: dict[str, float] = {}
        self.waited_s: dict[str, float] = {}
        """How long each request has waited since it first ran."""

    def over(self, what: object, after_s: float) -> bool:
        """Whether something that is under way ends now: by chance, or because its time is up."""
        began = self.since.setdefault(what, self.shell.now)
        return self.shell.now - began >= after_s or self.draw.random() < 0.15

    def work(self, failing: float) -> None:
        """Half a second of arrivals, leases, loads and unloads."""
        shell, draw = self.shell, self.draw
        for _ in range(draw.randint(0, self.arrivals.at_once)):
            self.arrive()
        self.interrupt()
        for request in list(shell.leases):
            if request in shell.leases and self.over(request, LEASE_S):
                shell.end(request)
        for engine_id, load in list(shell.loading.items()):
            if shell.loading.get(engine_id) is not load or not self.over(load, LOAD_S):
                continue
            if draw.random() < failing:
                shell.fail_load(engine_id, out_of_memory=draw.random() < 0.5)
            else:
                shell.finish_load(engine_id)
        for engine_id in list(shell.unloading):
            if engine_id in shell.unloading and draw.random() < 0.6:
                shell.finish_unload(engine_id)
        self.look_ahead()
        shell.advance(0.5)

    def arrive(self) -> None:
        """A request of any kind."""
        draw, kinds = self.draw, self.arrivals
        want: ev.Want = "load" if draw.random() < 0.1 else "lease"
        self.shell.ask(
            draw.choice(self.names),
            draw.choice("abc"),
            want=want,
            priority=draw.choice(kinds.priorities),
            deadline=None if draw.random() < kinds.patient_share else self.shell.now + PATIENCE_S,
            preemptible=draw.random() < kinds.preemptible_share,
        )

    def interrupt(self) -> None:
        """A request that is asked to yield does so before long, and goes on later where it was."""
        shell = self.shell
        for request in sorted(self.yielded_at.keys() & shell.leases.keys()):
            away_s = shell.now - self.yielded_at.pop(request)
            self.waited_s[request] = self.waited_s.get(request, 0.0) + away_s
            self.since[request] += away_s
        for request in sorted(shell.asked & shell.leases.keys()):
            if self.over(("yield", request), YIELD_S):
                del self.since["yield", request]
                self.since.setdefault(request, shell.now)
                self.yielded_at[request] = shell.now
                shell.yield_(request)

    def look_ahead(self) -> None:
        """DeclaredUses come and go, some kept to and some not; files are staged."""
        shell, draw = self.shell, self.draw
        if draw.random() < 0.1:
            steps = [draw.choice(self.names) for _ in range(draw.randint(0, 8))]
            shell.declare(*steps, client=draw.choice("abc"))
        if shell.staging and draw.random() < 0.5:
            shell.finish_staging()

    def trouble(self) -> None:
        """Now and then a death, other programs, a client that goes, a pin, a hint."""
        shell, draw = self.shell, self.draw
        if draw.random() < 0.03 and shell.resident():
            shell.kill(draw.choice(sorted(shell.resident())))
        if draw.random() < 0.03:
            device = draw.choice([view.device for view in shell.core.ledgers()])
            shell.send(ev.DeviceMeasured(device, draw.choice([30, 10**6, 10**6])))
        if draw.random() < 0.02:
            shell.gone(draw.choice("abc"))
        if draw.random() < 0.03:
            self.hint(draw.choice(self.names))

    def hint(self, name: str) -> None:
        """A pin, or a hint that may be refused."""
        if self.draw.random() < 0.4:
            self.shell.ask(name, want="pin")
            return
        kind = self.draw.choice(["release", "unload", "unpin", "unpin"])
        try:
            self.shell.send(ev.HintGiven(kind, name))  # type: ignore[arg-type]
        except KeepwarmError as error:
            assert type(error).__name__ == "AdmissionDenied"

    def wind_down(self) -> None:
        """Everything under way ends; no request is left waiting."""
        shell = self.shell
        shell.unpin_all()
        shell.settle()
        for view in shell.core.ledgers():
            shell.send(ev.DeviceMeasured(view.device, 10**6))
        for _ in range(400):
            shell.settle()
            if shell.leases:
                shell.end(next(iter(shell.leases)))
            elif shell.waiting:
                shell.advance(1.0)
                # A pin that other pins kept out keeps others out in its turn.
                shell.unpin_all()
        assert not shell.waiting


@pytest.mark.parametrize("seed", range(8))
def test_the_invariants_hold_in_worlds_with_trouble(seed: int) -> None:
    """The shell checks books, leases, pins, timers and liveness after every event."""
    draw = Random(seed)
    run = WorldRun(draw, world(draw))
    for _ in range(STEPS):
        run.work(failing=0.1)
        run.trouble()
    run.wind_down()


def overload(draw: Random, arrivals: Arrivals) -> Shell:
    """Many ask for more than there is, for long; returns the shell once all have been served.

    A wait is bounded by the turns of every engine before mine (immunity, leases, a load) and of those
    before me in line; those of a request since it first ran, by `max_wait_s` and one wait more.
    """
    shell = world(draw)
    run = WorldRun(draw, shell, arrivals)
    turn_s = MAX_WAIT_S + LEASE_S + LOAD_S + 2.0
    engines = len(list(shell.core.state.residents))
    bound_s = MAX_WAIT_S + turn_s * (1 + engines) + LEASE_S * MAX_QUEUE
    for _ in range(STEPS_OF_OVERLOAD):
        run.work(failing=0.0)
        for request in shell.core.state.queue:
            assert shell.now - request.arrived_at <= bound_s, (request, bound_s)
    run.wind_down()
    assert max(run.waited_s.values(), default=0.0) <= MAX_WAIT_S + bound_s
    return shell


def test_every_wait_is_bounded_under_steady_overload_and_preemption() -> None:
    """Whatever the world, the priorities, and how often each request may be interrupted."""
    asked = []

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**32), ARRIVALS)
    def in_any_world(seed: int, arrivals: Arrivals) -> None:
        asked.append(overload(Random(seed), arrivals).counts["asked to yield"])

    in_any_world()
    assert sum(asked) >= 500
