"""A pipeline whose next model loads while the current one works: `python bench/pipeline.py`.

Four stages, each a chat with a model of its own, and bytes for half of the models: with keepwarm, with
keepwarm and prefetch off, and with llama.cpp's router under `--models-max 2`. Every side has its own
copies of the files; they lie in the page cache (staged), or are dropped from it between two uses (cold).
The sides take turns in blocks of some rounds; no side knows what follows a block, so that its first load
is waited for. The last line of the output is one JSON object: wall seconds of all rounds, their ratio, what
of them went into evaluating prompts and generating (no wall can be shorter), the share of load seconds
that no request waited for, wasted prefetch bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import REPOSITORY, Router, background_shim, end_on_signals, last_line, say

from backends.machine.files.page_cache import drop_from_page_cache
from backends.openai import ChatRequest
from backends.openai.sync_client import SyncTransport
from harness import Pipeline, Stage, StageContext
from harness.demo.models import make_models
from shim import Shim
from shim.config import Config
from shim.keeper.catalog.catalog import build_catalog

STAGES = {"plan": "classifier", "draft": "evaluator", "check": "classifier", "revise": "evaluator"}
"""The demo's model of each stage; every stage has a file of its own. Two neighbours fill the budget."""
NAMES = tuple(STAGES)
PROMPT = "Say what comes to mind."
ROUNDS_A_BLOCK = 5
"""Between two turns of a side: long enough that the one load that no forecast has counts little."""
THREADS = max(1, (os.cpu_count() or 2) // 2)
"""Of every engine on every side: where all cores compute, a load can only take their time away."""
ROUTER_ARGUMENTS = ["-c", "1024", "-np", "1", "-b", "512", "-ub", "128", "-t", str(THREADS)]
ROUTER_ARGUMENTS += ["--models-max", "2"]


@dataclass
class Side:
    """One way to run the pipeline: its files, what drops them, and what was measured."""

    files: dict[str, Path]
    ahead: int
    run: Callable[[int], None] = lambda _rounds: None
    walls_s: dict[str, list[float]] = field(default_factory=dict)
    generating_s: dict[str, list[float]] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    waited_s: dict[str, float] = field(default_factory=dict)
    cold: bool = False

    def before(self, stage: int) -> None:
        """In a cold round: drop the next file to be read, if no engine holds it now."""
        if self.cold:
            drop_from_page_cache(self.files[NAMES[(stage + self.ahead) % len(NAMES)]])

    @property
    def mode(self) -> str:
        """What its rounds are now."""
        return "cold" if self.cold else "staged"

    def note(
        self, wall_s: float, generating_s: float, load_s: float = 0.0, waited_s: float = 0.0
    ) -> None:
        """Add one block's figures."""
        mode = self.mode
        self.walls_s.setdefault(mode, []).append(wall_s)
        self.generating_s.setdefault(mode, []).append(generating_s)
        for figures, value in ((self.load_s, load_s), (self.waited_s, waited_s)):
            figures[mode] = figures.get(mode, 0.0) + value

    def forget(self) -> None:
        """What was measured so far does not count."""
        for figures in (self.walls_s, self.generating_s, self.load_s, self.waited_s):
            figures.clear()

    def wall(self, mode: str) -> float:
        """Seconds of all rounds, by the median block: other programs disturb some of them."""
        return statistics.median(self.walls_s[mode]) * len(self.walls_s[mode])

    def generating(self, mode: str) -> float:
        """Seconds of prompts and answers in all rounds, by the median block."""
        return statistics.median(self.generating_s[mode]) * len(self.generating_s[mode])

    def hidden(self, mode: str) -> float:
        """The share of load seconds that no request waited for."""
        return 1.0 - min(1.0, self.waited_s[mode] / max(self.load_s[mode], 1e-9))


def copies(folder: Path) -> dict[str, Path]:
    """A file of its own for every stage."""
    made = make_models(REPOSITORY / "models" / "demo", progress=say)
    folder.mkdir()
    return {
        name: Path(shutil.copy(made[model], folder / f"{name}.gguf"))
        for name, model in STAGES.items()
    }


def config(files: Mapping[str, Path], limit: int | str, prefetch: Any) -> dict[str, Any]:
    """The four models with the router's arguments."""
    shared = {"context": 1024, "n_batch": 512, "n_ubatch": 128, "threads": THREADS}
    models = {name: {"path": str(path), **shared} for name, path in files.items()}
    budget = {"device": "host", "limit": limit, "reserve": 0, "prefetch": prefetch}
    return {"budget": budget, "models": models, "kv": {"enabled": False}}


def half(files: Mapping[str, Path]) -> int:
    """Half of the bytes of all four."""
    catalog = build_catalog(Config.from_mapping(config(files, "100%", prefetch=False)))
    for error in catalog.errors.values():
        raise error
    return sum(p.placements[0].total_bytes for p in catalog.prepared.values()) // 2 + (1 << 20)


def options(tokens: int) -> dict[str, Any]:
    """Every stage writes the same number of tokens."""
    return {"max_tokens": tokens, "temperature": 0.0, "seed": 1, "extra": {"ignore_eos": True}}


def engine_s(reply: Any) -> float:
    """Seconds that an engine worked on a request, by its own account."""
    return float(reply.timings.prompt_ms + reply.timings.predicted_ms) / 1e3


def keepwarm_side(shim: Shim, side: Side, tokens: int) -> None:
    """Run through `harness.Pipeline`, which declares its stages itself."""

    def stage(number: int) -> Callable[[StageContext], None]:
        def work(context: StageContext) -> None:
            side.before(number)
            context.chat(PROMPT, **options(tokens))

        return work

    pipeline = Pipeline([Stage(name, name, stage(i)) for i, name in enumerate(NAMES)], shim)

    def run(rounds: int) -> None:
        started_ns = time.monotonic_ns()
        results = pipeline.run(range(rounds))
        ended_ns = time.monotonic_ns()
        lines = shim._session.connections
        history = lines.ask("history", since_ns=started_ns, until_ns=ended_ns)
        loads = sum(row["end_ns"] - row["start_ns"] for row in history["loads"] if row["end_ns"])
        replies = [r.reply for item in results for r in item.replies]
        waited = sum(reply.residency.waited_s for reply in replies)
        generating = sum(map(engine_s, replies))
        side.note((ended_ns - started_ns) / 1e9, generating, loads / 1e9, waited)
        kinds = [row["storage"] for row in history["loads"]]
        say(f"  {len(kinds)} loads, {kinds.count('cold')} cold, {loads / 1e9:.2f} s loading")

    side.run = run


def router_side(router: Router, transport: SyncTransport, side: Side, tokens: int) -> None:
    """The same requests, one after the other, through the router."""
    request = ChatRequest(PROMPT, options(tokens))

    def run(rounds: int) -> None:
        replies = []
        started_s = time.perf_counter()
        for _ in range(rounds):
            for number, name in enumerate(NAMES):
                side.before(number)
                replies.append(transport.chat(router.door(name), request))
        side.note(time.perf_counter() - started_s, sum(map(engine_s, replies)))

    side.run = run


@contextlib.contextmanager
def all_sides(folder: Path, tokens: int) -> Iterator[tuple[dict[str, Side], Callable[[], int]]]:
    """The three sides, ready to run, and the bytes that prefetching wasted so far."""
    transport = SyncTransport()
    # At the start of a stage the router still holds the two models before it.
    sides = {name: Side(copies(folder / name), ahead=2) for name in ("keepwarm", "prefetch off")}
    sides["router"] = Side(copies(folder / "router"), ahead=1)
    with contextlib.ExitStack() as stack:
        for name, prefetch in (("keepwarm", True), ("prefetch off", False)):
            files = sides[name].files
            shim = stack.enter_context(background_shim(config(files, half(files), prefetch)))
            shim.status()  # each keeper starts under the folders that are its own
            keepwarm_side(shim, sides[name], tokens)
            if prefetch:
                ahead = shim
        router = stack.enter_context(Router(sides["router"].files, ROUTER_ARGUMENTS))
        router_side(router, transport, sides["router"], tokens)
        yield sides, lambda: int(ahead.status()["prefetch"]["wasted_bytes"])
        transport.close()


def measure(sides: Mapping[str, Side], rounds: int) -> None:
    """All rounds of every side, staged and cold, in blocks that take turns."""
    for side in sides.values():
        side.run(1)
        side.forget()
    blocks = -(-rounds // ROUNDS_A_BLOCK)
    for cold in (False, True):
        for block in range(blocks):
            for name, side in sides.items():
                side.cold = cold
                say(f"{side.mode} block {block + 1} of {blocks}: {name}")
                side.run(min(ROUNDS_A_BLOCK, rounds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="of each side, staged and cold each")
    parser.add_argument("--tokens", type=int, default=24, help="that every stage writes")
    given = parser.parse_args()
    end_on_signals()
    with (
        tempfile.TemporaryDirectory(prefix="kw-bench-", dir=REPOSITORY / "models") as folder,
        all_sides(Path(folder), given.tokens) as (sides, wasted),
    ):
        measure(sides, max(1, given.rounds))
        wasted_bytes = wasted()
    figures: dict[str, float] = {}
    for mode in ("staged", "cold"):
        for name, side in sides.items():
            key = name.replace(" ", "_")
            figures[f"{mode}_{key}_s"] = side.wall(mode)
            figures[f"{mode}_{key}_generating_s"] = side.generating(mode)
            if name != "router":
                figures[f"{mode}_{key}_hidden"] = side.hidden(mode)
        ratio = sides["keepwarm"].wall(mode) / sides["router"].wall(mode)
        figures[f"{mode}_ratio"] = ratio
        say(
            f"{mode}: keepwarm {sides['keepwarm'].wall(mode):.2f} s, prefetch off "
            f"{sides['prefetch off'].wall(mode):.2f} s, router {sides['router'].wall(mode):.2f} s; "
            f"{sides['keepwarm'].hidden(mode):.0%} of load seconds hidden"
        )
    figures["wasted_prefetch_bytes"] = wasted_bytes
    last_line(figures)


if __name__ == "__main__":
    main()
