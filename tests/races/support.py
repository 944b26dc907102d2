"""A keeper on the test's own loop, over scripted engines whose loads and ends wait for the test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.scripted import Script, ScriptedEngine
from budget import actions as act
from budget import events as ev
from budget.books.states import State
from budget.errors import KeepwarmError
from shim import Config
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.keeper import Keeper

LIMIT_S = 60.0


class GatedEngine(ScriptedEngine):
    """Its load waits for `script.load_gate`, its end for `stop_gate`."""

    def __init__(self, model: str, runtime: Path, script: Script, stop_gate: asyncio.Event) -> None:
        super().__init__(model, runtime, script)
        self.stop_gate = stop_gate
        self.stopping = asyncio.Event()

    async def stop(self, *, grace_s: float) -> None:
        """End once the test lets it."""
        self.stopping.set()
        await self.stop_gate.wait()
        await super().stop(grace_s=grace_s)


@dataclass
class Race:
    """Requests, gates and books of one keeper."""

    keeper: Keeper = field(init=False)
    engines: list[GatedEngine] = field(default_factory=list)
    loads: dict[str, asyncio.Event] = field(default_factory=dict)
    stops: dict[str, asyncio.Event] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    outcomes: dict[str, asyncio.Future[act.Grant]] = field(default_factory=dict)
    _names: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def make(self, entry: CatalogEngine, runtime: Path) -> GatedEngine:
        """The factory that the keeper uses."""
        name = entry.names[0]
        script = Script(load_gate=self.gate(self.loads, name))
        if name in self.failing:
            script.load = "fail"
        self.engines.append(GatedEngine(name, runtime, script, self.gate(self.stops, name)))
        return self.engines[-1]

    @staticmethod
    def gate(gates: dict[str, asyncio.Event], name: str) -> asyncio.Event:
        """The gate of a model; open unless the test has closed it."""
        if name not in gates:
            gates[name] = asyncio.Event()
            gates[name].set()
        return gates[name]

    def close_load(self, name: str) -> None:
        """The next loads of a model wait."""
        self.loads[name] = asyncio.Event()

    def close_stop(self, name: str) -> None:
        """The ends of a model's next runs wait."""
        self.stops[name] = asyncio.Event()

    def ask(self, model: str, client: str = "c") -> str:
        """A request arrives; returns its id."""
        future: asyncio.Future[act.Grant] = asyncio.get_running_loop().create_future()

        def done(outcome: act.Grant | KeepwarmError) -> None:
            if isinstance(outcome, KeepwarmError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        request = f"q{next(self._names)}"
        self.outcomes[request] = future
        arrived = ev.RequestArrived(request, client, model)
        self.keeper.shell.ask(arrived, done)
        return request

    async def granted(self, request: str) -> act.Grant:
        """Wait for a request's lease."""
        return await asyncio.wait_for(self.outcomes[request], LIMIT_S)

    def waits(self, request: str) -> bool:
        """Whether a request has no outcome yet."""
        return not self.outcomes[request].done()

    def end(self, request: str, client: str = "c") -> None:
        """A lease is given back."""
        self.post(ev.LeaseEnded(request, client))

    async def idle_until_told(self, name: str) -> asyncio.Event:
        """Serve one request of a model; its end, once it is evicted, waits for the event."""
        served = self.ask(name)
        await self.granted(served)
        self.end(served)
        answer = self.engine(name).stop_gate = asyncio.Event()
        return answer

    def post(self, event: ev.Event) -> None:
        """Any event, and the invariants after it."""
        self.keeper.shell.post(event)
        self.keeper.shell.core.validate()

    def state(self, model: str) -> State:
        """The residency of a model's engine."""
        core = self.keeper.shell.core
        return core.state.residents[core.state.models[model].engine_id].state

    def started(self) -> list[str]:
        """The models in the order in which loads began."""
        return [load.model for load in self.keeper.shell.history.loads]

    def engine(self, model: str) -> GatedEngine:
        """The latest engine of a model."""
        return [e for e in self.engines if model in repr(e).split()[1]][-1]


@contextlib.asynccontextmanager
async def race(files: dict[str, Path], limit: str = "30MB", **budget: Any) -> AsyncIterator[Race]:
    """A keeper with three models of which one fits, unless the limit says otherwise."""
    config = Config.from_mapping(
        {
            "budget": {"device": "host", "limit": limit, "reserve": 0, **budget},
            "models": {
                name: {"path": str(files[file]), "context": 1024}
                for name, file in (("a", "classifier"), ("b", "producer"), ("c", "evaluator"))
            },
            "kv": {"enabled": False},
        }
    )
    made = Race()
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:
        made.keeper = await Keeper.create(config, Path(folder), made.make)
        try:
            yield made
        finally:
            for gate in (*made.loads.values(), *made.stops.values()):
                gate.set()
            made.keeper.shell.core.validate()
            await made.keeper.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a loop of its own, within a bound."""
    asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))
