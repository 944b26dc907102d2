"""How fast a footprint is known: header, closed form, all placements; beside the `gguf` package.

`python bench/footprint.py [--no-peer]` writes sparse files, reads the header of one with a 262k-token
vocabulary and gives its footprint (`inspect`, inside this process), plans every n_gpu_layers of 12
models, and reads the same file with the `gguf` package's reader. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import distribution, last_line, percentile

from backends.footprint.cache import FootprintCache
from backends.footprint.inspect import NO_BUILD, Inspector
from backends.gguf.header import read_header
from budget.footprint import HOST, EngineArgs
from budget.memory.closed_form import estimate_by_layers
from tools.shapes import SHAPES, quantized, write

ROUNDS = 15
LARGE = "gemma3-4b"
ARGS = EngineArgs(n_ctx=8192)
PLANNED = (
    "llama-3.1-8b", "llama-3.1-70b", "qwen2.5-7b", "qwen3-8b", "mixtral-8x7b", "qwen3-30b-a3b",
    "gemma2-9b", "gemma3-4b", "phi3-mini-4k", "deepseek2-lite", "gpt-oss-20b", "falcon-h1-0.5b",
)  # fmt: skip
SMALL_VOCABULARY = 2000


def repeated(work: Callable[[], object]) -> list[float]:
    """Seconds of each of some rounds, the first one included."""
    found = []
    gc.collect()
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        work()
        found.append(time.perf_counter() - start_s)
    return found


def planning_seconds(folder: Path) -> list[float]:
    """All placements of twelve models whose headers have been read."""
    shapes = []
    for name in PLANNED:
        small = replace(SHAPES[name], n_vocab=SMALL_VOCABULARY)
        shapes.append(read_header(write(quantized(small, "Q4_K_M"), folder)).shape())
    many = [replace(ARGS, n_ctx=min(ARGS.n_ctx, shape.context_length)) for shape in shapes]

    def plan() -> None:
        for shape, args in zip(shapes, many, strict=True):
            estimate_by_layers(shape, args, "cuda:0")

    return repeated(plan)


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-peer", action="store_true", help="leave the gguf package out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(quantized(SHAPES[LARGE], "Q4_K_M"), folder)
        inspector = Inspector(FootprintCache(folder / "none"), build=NO_BUILD)

        def inspect() -> None:
            inspector.placement(read_header(path), ARGS, HOST, "closed-form")

        inspecting, planning = repeated(inspect), planning_seconds(folder)
        print(distribution("inspect, 262k", inspecting))
        print(distribution("plan 12 models", planning))
        figures = {
            "inspect_p50_ms": percentile(inspecting, 50) * 1e3,
            "inspect_worst_ms": max(inspecting) * 1e3,
            "plan_12_models_p50_ms": percentile(planning, 50) * 1e3,
            "plan_12_models_first_ms": planning[0] * 1e3,
        }
        if not options.no_peer:
            start_s = time.perf_counter()
            gguf.GGUFReader(path)
            figures["gguf_reader_ms"] = (time.perf_counter() - start_s) * 1e3
            print(f"gguf package's reader {figures['gguf_reader_ms']:.0f} ms, once")
            figures["times_faster"] = figures["gguf_reader_ms"] / figures["inspect_p50_ms"]
    last_line(figures)


if __name__ == "__main__":
    main()
