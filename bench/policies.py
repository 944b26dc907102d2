"""Policies beside the exact optimum: load seconds over the optimum's at four budgets, and their mean.

Run with `python bench/policies.py [--trace CSV] [--part all|first|second] [--policy NAME,...]`. Without
`--trace` it takes `../shared/traces/gentd26_a.csv` beside the repository where that is, and the generated
workloads of `tools/workloads.py` where it is not. The trace's 12 most frequent models take 19, 5, 9, 3,
5, 2, 24, 9, 5, 3, 14 and 2 GB in order of frequency and load in 0.6 s + GB / 2. `forecast+100` knows the
next 100 uses. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from budget.simulation import Arrival, SimulatedModel, Trial, parse_models, parse_rows
from budget.simulation.compare import offline_optimum, run
from tools import workloads

SHARED = Path(__file__).resolve().parents[2] / "shared" / "traces" / "gentd26_a.csv"
GB = 10**9
SIZES_GB = (19, 5, 9, 3, 5, 2, 24, 9, 5, 3, 14, 2)
BUDGETS_GB = (24, 36, 48, 64)
SHARES = (0.3, 0.45, 0.6, 0.75)
NAMES = "lru,ttl,idle-cost,lfu-decay,forecast,forecast+100,belady"


def traced(path: Path, part: str) -> list[Trial]:
    """The trials of a trace file at the four budgets."""
    with path.open(encoding="utf-8", newline="") as file:
        arrivals = parse_rows(csv.DictReader(file), path.name)
    # Models are ranked over the whole file, so that both halves have the same.
    ranked = [name for name, _ in Counter(a.model for a in arrivals).most_common(len(SIZES_GB))]
    models = {
        name: SimulatedModel(name, size * GB, 0.6, 2.0 * GB)
        for name, size in zip(ranked, SIZES_GB, strict=False)
    }
    kept = [a for a in arrivals if a.model in models]
    half = len(kept) // 2
    kept = {"all": kept, "first": kept[:half], "second": kept[half:]}[part]
    return [Trial(kept, models, budget * GB) for budget in BUDGETS_GB]


def generated(kind: str, seed: int, requests: int) -> list[Trial]:
    """The trials of a generated workload at four shares of its models' bytes."""
    models = {m.name: m for m in parse_models(workloads.models(kind), kind)}
    arrivals = [Arrival(*row) for row in workloads.rows(kind, seed, requests)]
    total, most = sum(m.bytes for m in models.values()), max(m.bytes for m in models.values())
    return [Trial(arrivals, models, max(most, int(total * share))) for share in SHARES]


def ratios(trials: Sequence[Trial], names: Sequence[str]) -> dict[str, list[float]]:
    """Load seconds over the optimum's, by policy, one figure a trial."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for trial in trials:
        least, _ = offline_optimum(trial)
        for name in names:
            policy, _, declared = name.partition("+")
            known = replace(trial, declare=int(declared or 0))
            found[name].append(run(known, policy).summary.load_seconds / least)
    return found


def mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def report(label: str, found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Print a table; returns the means by policy."""
    print(f"\n{label}: load seconds over the exact optimum")
    for name, values in found.items():
        cells = "  ".join(f"{value:6.3f}" for value in values)
        print(f"  {name:14} {cells}   mean {mean(values):.3f}", flush=True)
    return {name: round(mean(values), 4) for name, values in found.items()}


def main() -> None:
    """Replay, print the tables, and the means as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=SHARED if SHARED.exists() else None)
    parser.add_argument("--part", choices=["all", "first", "second"], default="all")
    parser.add_argument("--policy", default=NAMES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--generated", action="store_true", help="The generated workloads as well.")
    chosen = parser.parse_args()
    names = chosen.policy.split(",")
    means = {}
    if chosen.trace is not None:
        label = f"{chosen.trace.name} ({chosen.part})"
        means[label] = report(label, ratios(traced(chosen.trace, chosen.part), names))
    if chosen.trace is None or chosen.generated:
        for kind in workloads.KINDS:
            trials = generated(kind, chosen.seed, chosen.requests)
            means[kind] = report(f"{kind}, seed {chosen.seed}", ratios(trials, names))
    print(json.dumps(means))


if __name__ == "__main__":
    main()
