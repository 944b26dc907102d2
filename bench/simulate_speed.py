"""How fast decisions are: a million requests over 1,000 models and 64 devices through the simulator.

Run with `python bench/simulate_speed.py [--requests N] [--policy NAME] [--replay sequential|timed]`.
Models total at least four times all devices' bytes, and popularity moves on all the time, so that at
least 5% of the requests miss; the core chooses the device. The optimum is not computed. The last line
is one JSON object: `seconds` and `cpu_seconds` for the whole replay (both clocks, since machines are
shared), and in CPU time `decision_mean_us` of one `handle` and `evicting_p99_us` of those that evict.
Reading that clock takes a system call of about a microsecond: what one reading takes is measured first,
printed as `clock_ns` and taken off. `loop_ns` says how fast the machine was meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from budget import actions as act
from budget import events as ev
from budget.core import BudgetCore
from budget.simulation import Arrival, Replay, SimulatedModel, Trial
from budget.simulation.compare import make_core

MODELS = 1000
DEVICES = 64
GB = 10**9
LOOP = 5_000_000
"""Rounds of a short loop: about 30 ns each on a quiet core, several times that on a busy one."""


class Stopwatch(BudgetCore):
    """The production core with a clock around its one mutator."""

    times_ns: list[int]
    evicting_ns: list[int]

    def handle(self, event: ev.Event, now: float) -> list[act.Action]:
        """As the core's, timed."""
        start = time.thread_time_ns()
        actions = BudgetCore.handle(self, event, now)
        took = time.thread_time_ns() - start
        self.times_ns.append(took)
        if any(type(action) is act.Unload for action in actions):
            self.evicting_ns.append(took)
        return actions


def clock_cost_ns() -> float:
    """What one reading of the clock takes: the median of many, one right after another."""
    readings = np.array([time.thread_time_ns() for _ in range(20_001)])
    return float(np.median(np.diff(readings)))


def workload(n_requests: int, seed: int) -> tuple[list[Arrival], dict[str, SimulatedModel], int]:
    """Arrivals at 20 a second, models of 2 to 24 GB, and the bytes of one device."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 25, MODELS)
    models = {
        f"m{n}": SimulatedModel(f"m{n}", int(size) * GB, 0.6, 2e9 * 8, slots=8)
        for n, size in enumerate(sizes)
    }
    budget = int(sizes.sum()) * GB // 4 // DEVICES
    ranks = np.minimum(rng.zipf(1.6, n_requests), MODELS) - 1
    # Every 2,000 requests one place further: what is popular changes within the trace.
    drift = np.arange(n_requests) // 2000
    numbers = (ranks * 379 + drift * 17) % MODELS
    times = np.cumsum(rng.exponential(0.05, n_requests))
    tokens = rng.integers(20, 200, n_requests)
    arrivals = [
        Arrival(float(at), f"m{n}", int(t) * 4, int(t))
        for at, n, t in zip(times, numbers, tokens, strict=True)
    ]
    return arrivals, models, budget


def main() -> None:
    """Replay, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--policy", default="forecast")
    parser.add_argument("--replay", choices=["sequential", "timed"], default="sequential")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    arrivals, models, budget = workload(chosen.requests, chosen.seed)
    trial = Trial(arrivals, models, budget, DEVICES, mode=chosen.replay)
    core = make_core(trial, chosen.policy, Stopwatch)
    assert isinstance(core, Stopwatch)
    core.times_ns, core.evicting_ns = [], []
    replay = Replay(core, models)
    clock_ns = clock_cost_ns()
    # A million arrivals are no garbage; without this the collector walks them again and again.
    gc.freeze()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    metrics = (
        replay.sequential(arrivals) if chosen.replay == "sequential" else replay.timed(arrivals)
    )
    seconds, cpu_seconds = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    core.validate()
    loop_start_s = time.process_time()
    sum(number for number in range(LOOP))
    loop_s = time.process_time() - loop_start_s
    decisions = (np.array(core.times_ns) - clock_ns) / 1e3
    evicting = (np.array(core.evicting_ns or [0]) - clock_ns) / 1e3
    result = {
        "requests": len(arrivals),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "decision_mean_us": round(float(decisions.mean()), 2),
        "decision_p99_us": round(float(np.percentile(decisions, 99)), 2),
        "evicting_p99_us": round(float(np.percentile(evicting, 99)), 1),
        "evicting_mean_us": round(float(evicting.mean()), 1),
        "clock_ns": round(clock_ns),
        "loop_ns": round(loop_s / LOOP * 1e9, 1),
        "miss_share": round(metrics.loads / len(arrivals), 4),
        "bytes_over_devices": round(sum(m.bytes for m in models.values()) / budget / DEVICES, 2),
    }
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
