"""Make traces of pipelines for `keepwarm simulate`: the same seed makes the same trace.

Run with `python tools/workloads.py KIND --trace out.csv --models models.json [--seed N] [--requests N]`.
Kinds: `voice` (detector, transcriber, planner, speaker), `documents` (classifier, then the producer of
that kind of document, then the evaluator), `revise` (producer, judges in parallel, again until they
agree), `mixed` (people who come and go beside an hourly batch).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# The folder above has to be on the path first, because this file is run as a program.
from tools.own_python import by_own_python

if __name__ == "__main__":
    by_own_python()

import numpy as np

Row = tuple[float, str, int, int]
"""arrival_s, model, prompt_tokens, output_tokens."""
GB = 10**9
LOAD_FIXED_S = 0.6
BANDWIDTH = 2 * GB
SIZES_GB: dict[str, dict[str, int]] = {
    "voice": {"detector": 1, "transcriber": 3, "planner": 9, "writer": 14, "speaker": 2},
    "documents": {
        "classifier": 2,
        "letters": 9,
        "invoices": 5,
        "contracts": 14,
        "evaluator": 9,
        "embedder": 1,
    },
    "revise": {"producer": 14, "judge_a": 5, "judge_b": 9, "judge_c": 9, "planner": 5},
    "mixed": {
        "chat_small": 5,
        "chat_large": 24,
        "coder": 19,
        "summarizer": 9,
        "tagger": 3,
        "translator": 5,
        "embedder": 2,
    },
}


def rows(kind: str, seed: int, n_requests: int) -> list[Row]:
    """The first `n_requests` requests of a workload, in order of arrival."""
    made = islice(KINDS[kind](np.random.default_rng(seed)), n_requests)
    return sorted(made)


def models(kind: str) -> dict[str, Any]:
    """The models file of a workload, as `keepwarm simulate --models` reads it."""
    described = [
        {
            "name": name,
            "bytes": size * GB,
            "load_fixed_s": LOAD_FIXED_S,
            "load_bandwidth_bytes_per_s": BANDWIDTH,
        }
        for name, size in SIZES_GB[kind].items()
    ]
    return {"models": described}


def _tokens(rng: np.random.Generator, mean: int) -> int:
    return 1 + int(rng.gamma(2.0, mean / 2.0))


def voice(rng: np.random.Generator) -> Iterator[Row]:
    """Turns of a conversation; every fifth or so needs the writer as well."""
    now = 0.0
    while True:
        for _ in range(int(rng.integers(2, 12))):
            steps = ["detector", "transcriber", "planner"]
            steps += ["writer"] if rng.random() < 0.2 else []
            for step in [*steps, "speaker"]:
                yield now, step, _tokens(rng, 300), _tokens(rng, 60)
                now += float(rng.exponential(1.5))
            now += float(rng.exponential(8.0))
        now += float(rng.exponential(600.0))


def documents(rng: np.random.Generator) -> Iterator[Row]:
    """Documents one after another; what kind they are goes in runs."""
    now, kinds = 0.0, ("letters", "invoices", "contracts")
    kind = kinds[0]
    while True:
        if rng.random() < 0.3:
            kind = kinds[int(rng.choice(3, p=[0.5, 0.35, 0.15]))]
        for step in ("classifier", "embedder", kind, "evaluator"):
            yield now, step, _tokens(rng, 1500), _tokens(rng, 200)
            now += float(rng.exponential(4.0))
        now += float(rng.exponential(30.0))


def revise(rng: np.random.Generator) -> Iterator[Row]:
    """A draft, three judges at once, and again until they agree; a planner starts each task."""
    now = 0.0
    while True:
        yield now, "planner", _tokens(rng, 500), _tokens(rng, 100)
        now += float(rng.exponential(5.0))
        for _ in range(int(rng.geometric(0.4))):
            yield now, "producer", _tokens(rng, 1000), _tokens(rng, 400)
            now += float(rng.exponential(15.0))
            for judge in rng.permutation(["judge_a", "judge_b", "judge_c"]):
                yield now, str(judge), _tokens(rng, 1400), _tokens(rng, 50)
            now += float(rng.exponential(10.0))
        now += float(rng.exponential(60.0))


def mixed(rng: np.random.Generator) -> Iterator[Row]:
    """Sessions of people with one model each, and a batch of three steps every hour."""
    now, next_batch = 0.0, 1800.0
    people = ("chat_small", "chat_large", "coder", "translator")
    sessions: list[tuple[str, float]] = []
    while True:
        if now >= next_batch:
            for _ in range(12):
                for step in ("embedder", "tagger", "summarizer"):
                    yield now, step, _tokens(rng, 1500), _tokens(rng, 80)
                    now += float(rng.exponential(3.0))
            next_batch += 3600.0
        if rng.random() < 0.1 or not sessions:
            model = people[int(rng.choice(4, p=[0.5, 0.2, 0.2, 0.1]))]
            sessions.append((model, now + float(rng.exponential(900.0))))
        sessions = [s for s in sessions if s[1] > now] or sessions[-1:]
        model = sessions[int(rng.integers(len(sessions)))][0]
        yield now, model, _tokens(rng, 800), _tokens(rng, 200)
        now += float(rng.exponential(40.0 / len(sessions)))


KINDS: dict[str, Callable[[np.random.Generator], Iterator[Row]]] = {
    "voice": voice,
    "documents": documents,
    "revise": revise,
    "mixed": mixed,
}


def main() -> None:
    """Write one trace and its models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=5000)
    chosen = parser.parse_args()
    for path in (chosen.trace, chosen.models):
        path.parent.mkdir(parents=True, exist_ok=True)
    with chosen.trace.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arrival_s", "model", "prompt_tokens", "output_tokens"])
        for arrival_s, *rest in rows(chosen.kind, chosen.seed, chosen.requests):
            writer.writerow([f"{arrival_s:.3f}", *rest])
    chosen.models.write_text(json.dumps(models(chosen.kind), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
