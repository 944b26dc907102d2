"""How long planning takes: placements of twelve models by their tables, and the joint decision.

`python bench/planning.py [--runs N]`. Shapes are built in; no file is read. Tables are cold (no graph was
evaluated before) and warm (buffers of the same models and arguments are known). The last line is one JSON
object with the best and the median of each part, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from budget.footprint import HOST, EngineArgs
from budget.memory.closed_form import estimate_by_layers
from budget.memory.compute import forget
from budget.memory.shape import ModelShape
from budget.placement.known_models import KNOWN, known_shape
from budget.placement.machine_rates import assumed_side
from budget.placement.planner import plan_together
from budget.placement.tables import ModelChoices, Variant
from budget.placement.traffic import decode_seconds, decode_traffic

GIB = 1 << 30
COUNT = 12
ARGS = EngineArgs(8192, 2)
SIDE, GPU = assumed_side(50e9), assumed_side(900e9)


def candidate(shape: ModelShape) -> ModelChoices:
    """A model's table: bytes of both sides and seconds of a token, for every n_gpu_layers."""
    both = estimate_by_layers(shape, ARGS)
    seconds = decode_seconds(decode_traffic(shape, ARGS, fill_tokens=1024), SIDE, GPU)
    variant = Variant(
        ARGS.n_ctx, ARGS.slots, both.host.total, both.device.total, {"cuda:0": seconds},
        float(seconds[0]),
    )  # fmt: skip
    return ModelChoices(shape.name, (variant,), load_s=shape.weights_bytes / 4e9)


def timed(work: Callable[[], object], runs: int) -> dict[str, float]:
    """Best and median of some runs."""
    seen = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seen.append((time.perf_counter() - started) * 1e3)
    return {"best_ms": round(min(seen), 2), "median_ms": round(statistics.median(seen), 2)}


def main() -> None:
    """Time both parts and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    shapes = [known_shape(name, "Q4_K_M") for name in KNOWN][:COUNT]
    limits = {HOST: 256 * GIB, "cuda:0": 24 * GIB}
    models = [candidate(shape) for shape in shapes]

    def cold() -> None:
        forget()
        tables()

    def tables() -> None:
        for shape in shapes:
            candidate(shape)

    found = {
        "models": len(models),
        "tables_cold": timed(cold, options.runs),
        "tables_warm": timed(tables, options.runs),
        "joint": timed(lambda: plan_together(models, limits), options.runs),
        "joint_all_fit": timed(
            lambda: plan_together(models, {HOST: 256 * GIB, "cuda:0": 256 * GIB}), options.runs
        ),
    }
    for decision in plan_together(models, limits).decisions:
        print(f"{decision.name:<24}{decision.reason}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
