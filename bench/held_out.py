"""The forecast on traces that nothing was tuned to: load seconds over LRU's, kind by kind.

Run with `python bench/held_out.py [--seeds N] [--requests N]`. Ten kinds of synthetic traces over 8 to 40
models (constant, uniform, drifting and phased popularity, bursts, cycles larger than memory, Markov chains
that stay and that change, pipelines that are interleaved, clocks) and the four generated pipelines of
`tools/workloads.py`, each with other seeds than the tests have, at budgets for 30, 45, 60 and 75% of the
models' bytes. `over_bound` counts runs above 1.02 x LRU + ten of the largest loads. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from budget.simulation import Arrival, SimulatedModel, Trial, parse_models
from budget.simulation.compare import run
from tools import workloads

GB = 10**9
SHARES = (0.3, 0.45, 0.6, 0.75)
FIRST_SEED = 1001

Rng = np.random.Generator
Kind = Callable[[Rng, int, int], list[int]]
"""Draws so many requests for so many models, as their numbers."""


def constant(rng: Rng, n_models: int, n: int) -> list[int]:
    """Some models are always asked for more often than others."""
    weights = 1.0 / np.arange(1, n_models + 1)
    return rng.choice(n_models, n, p=weights / weights.sum()).tolist()


def uniform(rng: Rng, n_models: int, n: int) -> list[int]:
    """Nothing can be known."""
    return rng.integers(n_models, size=n).tolist()


def drifting(rng: Rng, n_models: int, n: int) -> list[int]:
    """What is popular moves on, a little with every request."""
    ranks = np.minimum(rng.zipf(1.5, n), n_models) - 1
    return ((ranks + np.arange(n) * n_models // n) % n_models).tolist()


def phases(rng: Rng, n_models: int, n: int) -> list[int]:
    """A few models at a time, and then a few others."""
    found: list[int] = []
    while len(found) < n:
        few = rng.choice(n_models, max(2, n_models // 4), replace=False)
        found += rng.choice(few, int(rng.integers(30, 200))).tolist()
    return found[:n]


def bursts(rng: Rng, n_models: int, n: int) -> list[int]:
    """One model many times in a row."""
    found: list[int] = []
    while len(found) < n:
        found += [int(rng.integers(n_models))] * int(rng.geometric(0.15))
    return found[:n]


def cycle(rng: Rng, n_models: int, n: int) -> list[int]:
    """Round and round through all models, with one in ten left out."""
    order = rng.permutation(n_models)
    return [int(order[k % n_models]) for k in range(2 * n) if rng.random() > 0.1][:n]


def markov(rng: Rng, n_models: int, n: int) -> list[int]:
    """The next model depends on the last one."""
    table = rng.dirichlet(np.full(n_models, 0.15), n_models).cumsum(axis=1)
    found = [0]
    for draw in rng.random(n - 1):
        found.append(min(int(np.searchsorted(table[found[-1]], draw)), n_models - 1))
    return found


def changing_markov(rng: Rng, n_models: int, n: int) -> list[int]:
    """The same, and four times everything that was learned becomes wrong."""
    return [model for _ in range(5) for model in markov(rng, n_models, -(-n // 5))][:n]


def interleaved(rng: Rng, n_models: int, n: int) -> list[int]:
    """Three pipelines at once, each at its own step."""
    pipelines = [rng.choice(n_models, int(rng.integers(2, 6))) for _ in range(3)]
    steps = [0, 0, 0]
    found = []
    for which in rng.integers(3, size=n):
        found.append(int(pipelines[which][steps[which] % len(pipelines[which])]))
        steps[which] += 1
    return found


def clocks(rng: Rng, n_models: int, n: int) -> list[int]:
    """Every model comes at a period of its own, nearly to the second."""
    periods = rng.uniform(5.0, 60.0, n_models)
    times = [
        (float(at), model)
        for model, period in enumerate(periods)
        for at in np.arange(1, n) * period + rng.normal(0.0, 0.3, n - 1)
    ]
    return [model for _, model in sorted(times)[:n]]


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        *(constant, uniform, drifting, phases, bursts),
        *(cycle, markov, changing_markov, interleaved, clocks),
    )
}


def synthetic(kind: str, seed: int, requests: int) -> tuple[list[Arrival], list[SimulatedModel]]:
    """A trace of a kind, and models of 2 to 24 GB that load in 0.6 s + GB / 2."""
    rng = np.random.default_rng([seed, *kind.encode()])
    n_models = int(rng.integers(8, 41))
    sizes = rng.integers(2, 25, n_models)
    models = [
        SimulatedModel(f"m{n}", int(size) * GB, 0.6, 2.0 * GB) for n, size in enumerate(sizes)
    ]
    times = np.cumsum(rng.exponential(5.0, requests))
    numbers = KINDS[kind](rng, n_models, requests)
    return [Arrival(float(t), f"m{n}") for t, n in zip(times, numbers, strict=True)], models


def generated(kind: str, seed: int, requests: int) -> tuple[list[Arrival], list[SimulatedModel]]:
    """A generated pipeline."""
    arrivals = [Arrival(*row) for row in workloads.rows(kind, seed, requests)]
    return arrivals, parse_models(workloads.models(kind), kind)


def trials(arrivals: list[Arrival], models: Sequence[SimulatedModel]) -> list[Trial]:
    """One a budget; every model fits alone."""
    total, most = sum(m.bytes for m in models), max(m.bytes for m in models)
    budgets = sorted({max(most, int(total * share)) for share in SHARES})
    return [Trial(arrivals, {m.name: m for m in models}, budget) for budget in budgets]


def mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    """Replay all kinds, print a line for each, and all together as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2000)
    chosen = parser.parse_args()
    by_kind: dict[str, list[float]] = {}
    over_bound = 0
    for kind in (*KINDS, *workloads.KINDS):
        make = synthetic if kind in KINDS else generated
        for seed in range(FIRST_SEED, FIRST_SEED + chosen.seeds):
            for trial in trials(*make(kind, seed, chosen.requests)):
                cost, lru = (run(trial, name).summary.load_seconds for name in ("forecast", "lru"))
                largest = max(m.load_seconds for m in trial.models.values())
                over_bound += cost > 1.02 * lru + 10.0 * largest
                by_kind.setdefault(kind, []).append(cost / lru)
        ratios = by_kind[kind]
        print(f"{kind:16} {mean(ratios):.3f}  worst {max(ratios):.3f}", flush=True)
    everything = [ratio for ratios in by_kind.values() for ratio in ratios]
    result = {
        "runs": len(everything),
        "forecast_over_lru": round(mean(everything), 4),
        "worst": round(max(everything), 4),
        "over_bound": over_bound,
        "kinds": {kind: round(mean(ratios), 4) for kind, ratios in by_kind.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
