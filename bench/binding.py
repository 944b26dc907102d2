"""llama-cpp-python's worker beside llama-server: `python bench/binding.py`.

One model, two engines of one Shim that take turns in every round: a warm `chat()` of one token, and a long
answer. The last line of the output is `{"server_call_p50_ms", "server_tokens_per_s", "server_bytes",
"binding_call_p50_ms", "binding_tokens_per_s", "binding_bytes"}`; bytes are the processes' at the end (PSS).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from _common import REPOSITORY, background_shim, end_on_signals, last_line, percentile, say

from backends.machine.processes import pss_bytes
from harness.demo.models import make_models
from shim import Shim

KINDS = {"server": "llama.cpp", "binding": "llama-cpp-python"}
CALL: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
LONG: dict[str, Any] = {"max_tokens": 200, "temperature": 0.0, "extra": {"ignore_eos": True}}


def config(model: Path) -> dict[str, object]:
    """The same model twice, once for each kind."""
    entry = {"path": str(model), "context": 1024, "threads": 1}
    models = {name: {**entry, "backend": kind} for name, kind in KINDS.items()}
    return {"budget": {"device": "host", "limit": "3GiB"}, "models": models}


def measure(shim: Shim, rounds: int) -> dict[str, float]:
    """The figures of both."""
    calls: dict[str, list[float]] = {name: [] for name in KINDS}
    rates: dict[str, list[float]] = {name: [] for name in KINDS}
    for number in range(rounds):
        for name in KINDS:
            begun = time.perf_counter()
            shim.chat(name, "Say hello.", **CALL)
            calls[name].append(time.perf_counter() - begun)
            if number % 10 == 0:
                spent = shim.chat(name, "Go on.", **LONG).timings
                assert spent is not None
                rates[name].append(spent.predicted_n / spent.predicted_ms * 1e3)
                shim.chat(name, "Say hello.", **CALL)
    engines = {row["models"][0]: row["pid"] for row in shim.status()["engines"]}
    found: dict[str, float] = {}
    for name in KINDS:
        found[f"{name}_call_p50_ms"] = round(1e3 * percentile(calls[name][1:], 50), 2)
        found[f"{name}_tokens_per_s"] = round(percentile(rates[name], 50), 1)
        found[f"{name}_bytes"] = pss_bytes([engines[name]]) or 0
    return found


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    end_on_signals()
    model = make_models(REPOSITORY / "models" / "demo", progress=say)["producer"]
    with background_shim(config(model)) as shim:
        last_line(measure(shim, rounds))


if __name__ == "__main__":
    main()
