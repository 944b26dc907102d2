"""What a memory costs and what it finds: `python bench/memory.py [--embedder FILE.gguf]`.

Speed: searches by words, by meaning and by both in a memory of made-up passages, with vectors of 384
numbers in clusters; and usearch's graph against looking at every vector. Quality, with an embedder:
passages are the docstrings of Python's standard library, and a question is made of the words of a name: in
one set those that its docstring does not have, so that only meaning can find it; in the other all words of
a name whose docstring has them. How the two rankings are fused is also chosen on one half of the questions
and told for the other. The last line of the output is `{"passages", "lexical", "vector", "hybrid", "graph",
"quality"}`: p50 and p95 in milliseconds, recall@10 of the graph, nDCG@10 and recall@10.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from _common import at_least, end_on_signals, percentile, say

from harness import MemoryStore
from harness.memory.memory_rows import by_words
from harness.memory.nearest import Nearest
from harness.memory.ranking import WHOLE_FROM, fused
from harness.memory.store import CANDIDATES
from shim import EmbeddingReply, Shim
from shim.model_info import ModelInfo

LENGTH = 384
CLUSTERS = 500
QUERIES = 100
EMBEDDED_AT_ONCE = 200
FAR = 1000.0
"""No passage has so many times a question's weight, so that a place's weight tells the share."""
Setting = tuple[float, float]
"""The share of a question from which on a place among the words counts in full, and how much that is."""
SETTINGS: list[Setting] = list(product((0.25, 0.5, 0.75, 1.0, 1.5, 2.0), (1.0, 0.5, 0.25, 0.1)))
DEFAULT: Setting = (WHOLE_FROM, 1.0)
LEFT_OUT = {"antigravity", "this", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo", "test"}


class MadeUpShim(Shim):
    """An embedder that costs nothing: a text's vector follows from its first word."""

    def __init__(self, seed: int) -> None:
        super().__init__({"models": {"vec": {"url": "http://127.0.0.1:9/v1"}}})
        self._draw = np.random.default_rng(seed)
        self._centres = self._draw.normal(size=(CLUSTERS, LENGTH))

    def would_evict(self, model: str) -> tuple[str, ...] | None:  # noqa: ARG002
        """It is always resident."""
        return ()

    def describe(self, model: str) -> ModelInfo:
        """An embedder without a file."""
        return ModelInfo(model, "embedder", remote=False, identity="made-up")

    def embed(self, model: str, texts: Sequence[str] | str, **_options: Any) -> EmbeddingReply:
        """Vectors in clusters."""
        rows = [self._centres[hash(text.split()[0]) % CLUSTERS] for text in texts]
        noise = 0.7 * self._draw.normal(size=(len(rows), LENGTH))
        return EmbeddingReply(model, tuple(map(tuple, np.array(rows) + noise)))


def made_up(count: int, seed: int) -> Iterator[str]:
    """Passages of 40 words that are as frequent as words are (Zipf)."""
    draw = np.random.default_rng(seed)
    for row in np.minimum(draw.zipf(1.3, size=(count, 40)), 50_000):
        yield " ".join(f"w{word}" for word in row)


def timings_ms(work: Callable[[str], object], queries: Sequence[str]) -> dict[str, float]:
    """p50 and p95 of one search, in milliseconds."""
    taken = []
    for query in queries:
        begun = time.perf_counter()
        work(query)
        taken.append((time.perf_counter() - begun) * 1e3)
    return {"p50_ms": round(percentile(taken, 50), 3), "p95_ms": round(percentile(taken, 95), 3)}


def speed(count: int, folder: Path, *, graph: bool) -> dict[str, Any]:
    """Searches in a memory of made-up passages."""
    queries = [" ".join(text.split()[:6]) for text in made_up(QUERIES, 2)]
    say(f"{count:,} passages ...")
    texts = list(made_up(count, 1))
    with MadeUpShim(3) as shim, MemoryStore(folder / "speed.db", "vec", shim=shim) as both:
        for at in range(0, count, 5000):
            both.add(texts[at : at + 5000])
        with MemoryStore(folder / "speed.db") as words:
            found = {
                "passages": len(both),
                "lexical": timings_ms(words.search, queries),
                "hybrid": timings_ms(both.search, queries),
            }
        with both._database.reading() as connection:
            nearest = both._vectors.seen_by(connection)
        draw = np.random.default_rng(4)
        rows = draw.normal(size=(QUERIES, LENGTH)).astype(np.float32)
        vectors = dict(
            zip(queries, rows / np.linalg.norm(rows, axis=1, keepdims=True), strict=True)
        )
        found["vector"] = timings_ms(lambda query: nearest.find(vectors[query], 10), queries)
        found["graph"] = with_graph(nearest, vectors) if graph else None
    return found


def with_graph(nearest: Nearest, vectors: dict[str, Any]) -> dict[str, float]:
    """Usearch's graph of the same vectors: seconds to make it, searches, and how much it finds."""
    say("usearch's graph ...")
    begun = time.perf_counter()
    fast = nearest.with_graph(nearest.graph_of_all())
    seconds = time.perf_counter() - begun
    recalls = []
    for vector in vectors.values():
        exact = {one for one, _ in nearest.find(vector, 10)}
        recalls.append(len(exact & {one for one, _ in fast.find(vector, 10)}) / 10)
    return {
        "build_s": round(seconds, 1),
        **timings_ms(lambda query: fast.find(vectors[query], 10), list(vectors)),
        "recall_at_10": round(sum(recalls) / len(recalls), 4),
    }


def documented() -> dict[str, str]:
    """The docstrings of the standard library's public functions and classes, by their names."""
    found: dict[str, str] = {}
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        if name.startswith("_"):
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                module = importlib.import_module(name)
        except Exception:
            continue
        for member, value in vars(module).items():
            text = inspect.getdoc(value) if callable(value) else None
            if text and not member.startswith("_") and getattr(value, "__module__", "") == name:
                found.setdefault(text, f"{name}.{member}")
    return {name: text for text, name in found.items() if len(text) > 60}


def questions(passages: dict[str, str], most: int, *, shared: bool) -> dict[str, str]:
    """The words of names as questions: those that the docstring has not, or names of which it has all."""
    asked = {}
    for name, text in passages.items():
        words = [w.casefold() for w in re.findall(r"[A-Z]?[a-z]{3,}", name.replace("_", " "))]
        have = text.casefold()
        new = [word for word in words if word not in have]
        chosen = words if shared and not new else new if not shared else []
        if len(chosen) > 1:
            asked[name] = "How to do this in Python: " + " ".join(chosen) + "?"
    drawn = random.Random(5).sample(sorted(asked), min(most, len(asked)))
    return {name: asked[name] for name in drawn}


@dataclass(frozen=True)
class Case:
    """A question's answer, and what words and vectors rank: ids, for words with the share that each has."""

    answer: int
    words: list[tuple[int, float]]
    near: list[int]

    def gain(self, setting: Setting | None) -> tuple[float, bool]:
        """nDCG@10 and whether the answer is among ten, of both rankings fused; None: plainly."""
        whole_from, weight = setting or (0.0, 1.0)
        words = [
            (i, weight * (min(1.0, s / whole_from) if whole_from else 1.0)) for i, s in self.words
        ]
        known = {i for i, _ in self.words} | set(self.near)
        both = fused([words, [(i, 1.0) for i in self.near]], dict.fromkeys(known, 1.0))
        return self.gain_of([one for one, _ in both])

    def gain_of(self, ids: Sequence[int]) -> tuple[float, bool]:
        """The same of one ranking."""
        rank = ids.index(self.answer) + 1 if self.answer in ids[:10] else 0
        return (1 / math.log2(rank + 1), True) if rank else (0.0, False)


def means(gains: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """nDCG@10 and recall@10."""
    ndcg, recall = (sum(column) / len(gains) for column in zip(*gains, strict=True))
    return {"ndcg_at_10": round(ndcg, 4), "recall_at_10": round(recall, 4)}


def held_out(sets: dict[str, list[Case]]) -> list[dict[str, Any]]:
    """The setting that is best for one half of the questions of both sets, on the other half; both ways."""
    found = []
    for fit, rest in ((0, 1), (1, 0)):

        def mean(setting: Setting | None, half: int, cases: list[Case]) -> float:
            return means([case.gain(setting) for case in cases[half::2]])["ndcg_at_10"]

        def value(setting: Setting, half: int = fit) -> float:
            return sum(mean(setting, half, cases) for cases in sets.values())

        best = max(SETTINGS, key=value)
        row: dict[str, Any] = {"chosen": best}
        for name, cases in sets.items():
            ways = {"chosen": best, "default": DEFAULT, "plain": None}
            row[name] = {way: mean(setting, rest, cases) for way, setting in ways.items()}
            row[name]["vector"] = means([c.gain_of(c.near) for c in cases[rest::2]])["ndcg_at_10"]
        found.append(row)
    return found


def quality(embedder: Path, folder: Path) -> dict[str, Any]:
    """nDCG@10 and recall@10 of words, of meaning and of both, on two sets of questions."""
    passages = documented()
    asked = {
        name: questions(passages, 300, shared=name == "shared") for name in ("unshared", "shared")
    }
    say(f"{len(passages):,} docstrings, {[len(each) for each in asked.values()]} questions ...")
    entry = {"path": str(embedder), "role": "embedder", "slots": 4}
    config = {"budget": {"device": "host", "limit": "4GiB"}, "models": {"vec": entry}}
    with (
        Shim(config, inline=True, share=True) as shim,
        MemoryStore(folder / "quality.db", "vec", shim=shim) as store,
    ):
        ids = dict[str, int]()
        names = list(passages)
        for at in range(0, len(names), EMBEDDED_AT_ONCE):
            some = names[at : at + EMBEDDED_AT_ONCE]
            ids |= zip(some, store.add([passages[name] for name in some]), strict=True)
            say(f"{len(ids):,} of {len(names):,} docstrings are embedded")
        sets = {
            name: [case(store, ids[one], question) for one, question in each.items()]
            for name, each in asked.items()
        }
    figures = {
        name: {
            "questions": len(cases),
            "lexical": means([c.gain_of([one for one, _ in c.words]) for c in cases]),
            "vector": means([c.gain_of(c.near) for c in cases]),
            "plain": means([c.gain(None) for c in cases]),
            "hybrid": means([c.gain(DEFAULT) for c in cases]),
        }
        for name, cases in sets.items()
    }
    return {"passages": len(passages), **figures, "held_out": held_out(sets)}


def case(store: MemoryStore, answer: int, question: str) -> Case:
    """What a memory ranks for a question, before both are fused."""
    assert store._embedding is not None
    vector, why = store._embedding.of_query(question)
    assert vector is not None, why
    with store._database.reading() as connection:
        near = store._vectors.seen_by(connection).find(vector, CANDIDATES)
        words = by_words(connection, question, CANDIDATES, None, whole_from=FAR)
    return Case(answer, [(one, FAR * weight) for one, weight in words], [one for one, _ in near])


def main() -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--passages", type=at_least(10), default=100_000, help="made up, for speed (100,000)"
    )
    parser.add_argument("--no-speed", action="store_true", help="Quality alone.")
    parser.add_argument("--no-graph", action="store_true", help="Leave out usearch's graph.")
    parser.add_argument("--embedder", type=Path, help="A GGUF file; without it no quality.")
    args = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="kw-memory-") as folder:
        result = dict[str, Any]()
        if not args.no_speed:
            result = speed(args.passages, Path(folder), graph=not args.no_graph)
            say(json.dumps(result))
        result["quality"] = quality(args.embedder, Path(folder)) if args.embedder else None
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
