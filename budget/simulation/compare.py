"""Several policies on one trace, beside the offline optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from budget.books.engines import NO_TIMEOUT
from budget.core import BudgetCore
from budget.errors import ConfigError, InvalidRequest
from budget.eviction.known_order import MAX_MODELS, optimum
from budget.eviction.policies import POLICY_NAMES, make_policy
from budget.eviction.policies.belady import Belady
from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.policies.ttl import USUAL_TTL_S, Ttl
from budget.settings import CoreSettings
from budget.simulation.lower_bound import lower_bound
from budget.simulation.metrics import Metrics, Summary
from budget.simulation.replay import Replay
from budget.simulation.requests import Arrival
from budget.simulation.simulated_models import SimulatedModel

Mode = Literal["sequential", "timed"]
SIMULATED_POLICIES = (*POLICY_NAMES, Belady.name)
MAX_WAIT_S = 30.0
Tell = Callable[[str, int], None]
"""Is told what is worked on, and how many of the requests it has got through."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is replayed: a trace, its models, `devices` devices of `budget_bytes` each, and how."""

    arrivals: Sequence[Arrival]
    models: Mapping[str, SimulatedModel]
    budget_bytes: int
    devices: int = 1
    declare: int = 0
    mode: Mode = "sequential"
    draw: bool = False

    @property
    def device_names(self) -> tuple[str, ...]:
        """The simulated devices."""
        return tuple(f"device:{n}" for n in range(self.devices))


@dataclass(frozen=True, slots=True)
class Result:
    """One policy's figures, and its stays when they were asked for."""

    summary: Summary
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every policy's result; the optimum's load seconds, and whether it is exact or a lower bound.

    `optimum_seconds`: None when it was not asked for.
    """

    results: Mapping[str, Result]
    optimum_seconds: float | None
    exact: bool

    def ratio(self, name: str) -> float:
        """A policy's load seconds over the optimum's; 1 when both are 0, inf when it is not known."""
        seconds = self.results[name].summary.load_seconds
        if not self.optimum_seconds:
            return 1.0 if seconds == self.optimum_seconds else math.inf
        return seconds / self.optimum_seconds


def _silent(_what: str, _arrived: int) -> None:
    pass


def compare(
    trial: Trial, names: Sequence[str], tell: Tell = _silent, *, with_optimum: bool = True
) -> Comparison:
    """Replay a trial under each policy named; `tell` hears how far it is.

    Raises:
        ConfigError: a policy is unknown, or pinned models do not fit together.
        InvalidRequest: the trace names a model that is not there, or a count is out of range.
    """
    _check(trial, names)
    results = {name: run(trial, name, tell) for name in names}
    if not with_optimum:
        return Comparison(results, None, exact=False)
    tell("the optimum", 0)
    least, exact = offline_optimum(trial)
    return Comparison(results, least, exact)


def run(trial: Trial, name: str, tell: Tell = _silent) -> Result:
    """Replay a trial under one policy."""
    core = make_core(trial, name)
    replay = Replay(
        core, trial.models, declare=trial.declare, draw=trial.draw, tell=partial(tell, name)
    )
    play = replay.sequential if trial.mode == "sequential" else replay.timed
    metrics = play(trial.arrivals)
    core.validate()
    return Result(metrics.summary(), metrics)


def make_core(trial: Trial, name: str, kind: type[BudgetCore] = BudgetCore) -> BudgetCore:
    """A production core for a trial: the named policy, and what the mode of replay leaves on.

    `kind`: a subclass that watches, if one is wanted.
    """
    timed = trial.mode == "timed"
    keep_alive_s = USUAL_TTL_S if timed and name == Ttl.name else NO_TIMEOUT
    # One request at a time waits for nothing but its own load: no age ever matters.
    settings = CoreSettings(
        max_wait_s=MAX_WAIT_S if timed else math.inf,
        max_queue=max(1, len(trial.arrivals)),
        prefetch="load" if timed else "off",
    )
    return kind(
        dict.fromkeys(trial.device_names, trial.budget_bytes),
        [m.entry(keep_alive_s) for m in trial.models.values()],
        [m.engine(trial.device_names) for m in trial.models.values()],
        _policy(trial, name),
        settings,
    )


def _policy(trial: Trial, name: str) -> EvictionPolicy:
    if name == Belady.name:
        return Belady([a.model for a in trial.arrivals])
    return make_policy(name)


def _check(trial: Trial, names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(SIMULATED_POLICIES))
    if unknown or not names:
        raise ConfigError(
            f"Unknown policies: {', '.join(unknown) or 'none was named'}.",
            hint=f"Allowed: {', '.join(SIMULATED_POLICIES)}.",
        )
    if trial.budget_bytes < 1 or trial.devices < 1 or trial.declare < 0:
        raise InvalidRequest(
            f"budget {trial.budget_bytes}, devices {trial.devices}, declare {trial.declare}: the "
            "first two must be 1 or more, the last 0 or more."
        )
    strangers = sorted({a.model for a in trial.arrivals} - trial.models.keys())
    if strangers:
        raise InvalidRequest(
            f"The trace asks for {len(strangers)} models that are not described: "
            f"{', '.join(strangers[:5])}.",
            hint="Add them to the models, or leave their rows out of the trace.",
        )


def offline_optimum(trial: Trial) -> tuple[float, bool]:
    """The least load seconds that serve the trace, and whether they are exact.

    Exact for up to 14 models on one device; otherwise a lower bound by relaxation. Pinned models
    are loaded once and their bytes are taken off; requests that can never fit are left out.
    """
    pinned = [m for m in trial.models.values() if m.pinned]
    room = trial.budget_bytes * trial.devices - sum(m.bytes for m in pinned)
    largest = min(room, trial.budget_bytes)
    wanted = [trial.models[a.model] for a in trial.arrivals]
    served = [m for m in wanted if not m.pinned and m.bytes <= largest]
    names = list(dict.fromkeys(m.name for m in served))
    number = {name: n for n, name in enumerate(names)}
    uses = [number[m.name] for m in served]
    sizes = [trial.models[name].bytes for name in names]
    costs = [trial.models[name].load_seconds for name in names]
    exact = len(names) <= MAX_MODELS and trial.devices == 1
    least = (optimum if exact else lower_bound)(uses, sizes, costs, room)
    return least + sum(m.load_seconds for m in pinned), exact
