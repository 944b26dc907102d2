"""A replay: arrivals in, events into the production core, its actions carried out on a simulated clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Final

from budget import actions as act
from budget import events as ev
from budget.core import BudgetCore
from budget.simulation.metrics import Metrics, ResidentInterval
from budget.simulation.requests import Arrival
from budget.simulation.simulated_models import SimulatedModel

CLIENT: Final = "trace"
TELL_EVERY: Final = 2048
"""Arrivals between two words on how far a replay is."""
Told = Callable[[int], None]


class Replay:
    """Plays keeper and engines for a core: loads take their seconds, requests theirs, unloads none.

    Args:
        core: a fresh core over engines named as the models are.
        models: by name.
        declare: how many of the coming requests' models are told to the core before each arrival.
        draw: whether to keep every stay of a model, for drawing.
        tell: told now and then how many requests have arrived.
    """

    def __init__(
        self,
        core: BudgetCore,
        models: Mapping[str, SimulatedModel],
        *,
        declare: int = 0,
        draw: bool = False,
        tell: Told = lambda _arrived: None,
    ) -> None:
        self._core = core
        self._models = models
        self._declare = declare
        self._draw = draw
        self._tell = tell
        self.metrics = Metrics()
        self.now = 0.0
        self._due: list[tuple[float, int, ev.Event]] = []
        self._numbers = count()
        self._arrivals: Sequence[Arrival] = ()
        self._open: dict[str, Arrival] = {}
        self._first_wait: dict[str, float] = {}
        self._load_began: dict[str, float] = {}
        self._ready: dict[str, float] = {}
        self._timer_s = float("inf")

    def sequential(self, arrivals: Sequence[Arrival]) -> Metrics:
        """One request at a time: the next one is let in when the one before it has ended."""
        arrivals = self._begin(arrivals)
        for position, arrival in enumerate(arrivals):
            self.now = max(self.now, arrival.arrival_s)
            self._arrive(position, arrival)
            while self._open and self._due:
                self._next_due()
        return self._end()

    def timed(self, arrivals: Sequence[Arrival]) -> Metrics:
        """Every request at its own time, beside those that run."""
        arrivals = self._begin(arrivals)
        for position, arrival in enumerate(arrivals):
            while self._due and self._due[0][0] <= arrival.arrival_s:
                self._next_due()
            self.now = arrival.arrival_s
            self._arrive(position, arrival)
        while self._open and self._due:
            self._next_due()
        return self._end()

    def _begin(self, arrivals: Sequence[Arrival]) -> Sequence[Arrival]:
        """Start the keeper, so early that its pinned models are there for the first request.

        The core's clock begins at 0; arrivals that come too soon for that are moved.
        """
        pinned = [model.load_seconds for model in self._models.values() if model.pinned]
        early_s = max(pinned, default=0.0)
        if arrivals and (late_s := early_s - arrivals[0].arrival_s) > 0.0:
            arrivals = [replace(a, arrival_s=a.arrival_s + late_s) for a in arrivals]
        self._arrivals = arrivals
        if arrivals:
            self.now = arrivals[0].arrival_s - early_s
        self._send(ev.Started())
        while self._load_began:
            self._next_due()
        return arrivals

    def _end(self) -> Metrics:
        for model in list(self._ready):
            self._left(model)
        return self.metrics

    def _arrive(self, position: int, arrival: Arrival) -> None:
        if not position % TELL_EVERY:
            self._tell(position)
        if self._declare:
            # The request itself heads the declared uses, as in a client that declared it and goes on.
            coming = self._arrivals[position : position + self._declare + 1]
            self._send(ev.UsesDeclared(CLIENT, tuple(a.model for a in coming)))
        request_id = f"r{position}"
        self._open[request_id] = arrival
        self._first_wait.setdefault(arrival.model, self.now)
        self._send(ev.RequestArrived(request_id, CLIENT, arrival.model))

    def _next_due(self) -> None:
        self.now, _, event = heapq.heappop(self._due)
        if isinstance(event, ev.TimerDue):
            if self.now != self._timer_s:
                return
            self._timer_s = float("inf")
        elif isinstance(event, ev.LoadFinished):
            self._loaded(event.engine_id)
        elif isinstance(event, ev.LeaseEnded):
            del self._open[event.request_id]
        self._send(event)

    def _send(self, event: ev.Event) -> None:
        for action in self._core.handle(event, self.now):
            self._carry_out(action)

    def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.Grant():
                self._grant(action)
            case act.StartLoad():
                self._load(action)
            case act.Unload():
                self._unload(action)
            case act.Deny():
                self.metrics.denied += 1
                del self._open[action.request_id]
            case act.StageFile():
                n_bytes = self._models[action.engine_id].bytes
                self._later(self.now, ev.StageFinished(action.engine_id, n_bytes))
            case act.SetTimer():
                self._timer_s = action.at
                if action.at != float("inf"):
                    self._later(action.at, ev.TimerDue())
            case _:
                # Records and alerts are for people; simulated engines do not die, stagings take no
                # time, and no request is of a higher priority than another.
                pass

    def _later(self, at: float, event: ev.Event) -> None:
        heapq.heappush(self._due, (at, next(self._numbers), event))

    def _grant(self, grant: act.Grant) -> None:
        arrival = self._open[grant.request_id]
        self.metrics.waits.append(self.now - arrival.arrival_s)
        self._first_wait.pop(grant.model, None)
        model = self._models[grant.model]
        lasts_s = model.service_seconds(arrival.prompt_tokens, arrival.output_tokens)
        self._later(self.now + lasts_s, ev.LeaseEnded(grant.request_id, CLIENT))

    def _load(self, load: act.StartLoad) -> None:
        model = self._models[load.engine_id]
        self._load_began[model.name] = self.now
        self.metrics.loads += 1
        self.metrics.moved_bytes += model.bytes
        self._later(self.now + model.load_seconds, ev.LoadFinished(load.engine_id, load.generation))

    def _loaded(self, name: str) -> None:
        began_s = self._load_began.pop(name, None)
        if began_s is None:
            return
        model = self._models[name]
        self.metrics.load_seconds += model.load_seconds
        wanted_s = max(began_s, min(self.now, self._first_wait.get(name, self.now)))
        self.metrics.hidden_load_seconds += wanted_s - began_s
        self._ready[name] = began_s

    def _unload(self, unload: act.Unload) -> None:
        self.metrics.evictions += 1
        began_s = self._load_began.pop(unload.engine_id, None)
        if began_s is not None:
            # An abandoned load has cost the seconds that it took so far, and no request waited.
            self.metrics.load_seconds += self.now - began_s
            self.metrics.hidden_load_seconds += self.now - began_s
            self._due = [
                row
                for row in self._due
                if not (
                    isinstance(row[2], ev.LoadFinished) and row[2].engine_id == unload.engine_id
                )
            ]
            heapq.heapify(self._due)
        else:
            self._left(unload.engine_id)
        self._later(self.now, ev.UnloadFinished(unload.engine_id, unload.generation))

    def _left(self, name: str) -> None:
        began_s = self._ready.pop(name)
        if self._draw:
            bookings = self._core.state.residents[name].bookings
            device = bookings[0][0] if bookings else ""
            ready_s = began_s + self._models[name].load_seconds
            self.metrics.stays.append(ResidentInterval(name, device, began_s, ready_s, self.now))
