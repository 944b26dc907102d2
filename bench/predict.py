"""Predicted against measured decode: the demo models on the CPU and split over an RPC device.

`python bench/predict.py [--models FOLDER] [--rounds N]`. The machine is measured first, on generated
models; the demo models are never part of that. A row whose runs differ much among themselves is
measured again. The last line is one JSON object: per row predicted, measured, error; and the worst.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.gguf import read_header
from backends.measure.decode import DecodeRun, DecodeTimer
from backends.measure.whole_machine import FULL, QUICK, MachineMeasure
from budget.footprint import HOST, EngineArgs
from budget.placement.machine_rates import MachineFigures
from budget.placement.traffic import decode_seconds, decode_traffic
from harness.demo.models import make_models
from tools.rpc import rpc_server

GOAL = 0.25
SPREAD = 1.25
TRIES = 3
TOKENS = 12
MODELS = ("classifier", "producer", "evaluator")


def may_go_first() -> bool:
    """Whether this user may run programs at a real-time priority."""
    chrt = shutil.which("chrt")
    return chrt is not None and subprocess.run([chrt, "-f", "1", "true"]).returncode == 0


def rpc_of_all_cpus() -> AbstractContextManager[str]:
    """An RPC device of all CPUs on loopback."""
    # llama-bench runs before other programs; a server that did not would wait for its spinning.
    first = ["chrt", "-f", "60"] if may_go_first() else []
    return rpc_server("--threads", str(os.cpu_count() or 1), before=first)


def predicted_s(path: Path, figures: MachineFigures, device: str, layers: int) -> float:
    """Predicted seconds of a token."""
    shape = read_header(path).shape()
    traffic = decode_traffic(shape, EngineArgs(512), fill_tokens=TOKENS // 2)
    side = None if device == HOST else figures.sides[device]
    return float(decode_seconds(traffic, figures.sides[HOST], side)[layers])


def measured_s(timer: DecodeTimer, run: DecodeRun, rounds: int) -> tuple[float, float]:
    """The median of a row's runs, and how much they differ (largest over smallest)."""
    best = (0.0, float("inf"))
    for _ in range(TRIES):
        seen = [timer.token_s(run) for _ in range(rounds)]
        found = (statistics.median(seen), max(seen) / min(seen))
        if found[1] < best[1]:
            best = found
        if best[1] <= SPREAD:
            break
    return best


def rows(models: dict[str, Path]) -> Iterator[tuple[str, str, int]]:
    """Model, device and layers of every row."""
    for name in MODELS:
        whole = read_header(models[name]).shape().n_layers + 1
        yield name, HOST, 0
        for layers in (whole // 2, whole):
            yield name, "RPC0", layers


def run(models: dict[str, Path], rounds: int, *, full: bool) -> dict[str, Any]:
    """Measure the machine and every row; print them; return what the last line says."""
    timer = DecodeTimer()
    found: list[dict[str, Any]] = []
    with rpc_of_all_cpus() as endpoint, tempfile.TemporaryDirectory() as folder:
        measure = MachineMeasure(Path(folder), FULL if full else QUICK, (endpoint,), timer=timer)
        figures = measure.run(["RPC0"])
        for name, side in figures.sides.items():
            rates = ", ".join(f"{t} {r / 1e9:.1f}" for t, r in side.bytes_per_s.items())
            print(
                f"{name}: {rates} GB/s; {side.token_s * 1e3:.2f} ms a token, "
                f"{side.layer_s * 1e6:.0f} us a layer, "
                f"{side.crossing_s * 1e3:.2f} ms a crossing"
            )
        print(
            f"{'model':<12}{'device':<8}{'layers':>6}{'predicted':>11}{'measured':>10}{'error':>8}"
        )
        for name, device, layers in rows(models):
            rpc = () if device == HOST else (endpoint,)
            seconds, spread = measured_s(
                timer, DecodeRun(models[name], device, layers, rpc, TOKENS), rounds
            )
            rate = 1 / predicted_s(models[name], figures, device, layers)
            error = rate * seconds - 1
            print(
                f"{name:<12}{device:<8}{layers:>6}{rate:>11.1f}{1 / seconds:>10.1f}{error:>+8.1%}",
                flush=True,
            )
            found.append(
                {
                    "model": name,
                    "device": device,
                    "n_gpu_layers": layers,
                    "predicted_tokens_per_s": round(rate, 2),
                    "measured_tokens_per_s": round(1 / seconds, 2),
                    "error": round(error, 4),
                    "spread": round(spread, 3),
                }
            )
    worst = max((abs(row["error"]) for row in found), default=0.0)
    return {"goal": GOAL, "worst": worst, "within_goal": worst <= GOAL, "rows": found}


def main() -> None:
    """Make the demo models where they are missing, and compare."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, default=root / "models" / "demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="measure the machine thoroughly")
    options = parser.parse_args()
    models = make_models(options.models)
    print(json.dumps(run(models, options.rounds, full=options.full)))


if __name__ == "__main__":
    main()
