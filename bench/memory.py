"""What a memory costs and what it finds: `python bench/memory.py [--embedder FILE.gguf]`.

Speed: searches by words, by meaning and by both in a memory of made-up passages, with vectors of 384
numbers in clusters; and usearch's graph against looking at every vector. Quality, with an embedder:
passages are the docstrings of Python's standard library; each question is made of a name's words that its
docstring does not have, so that only meaning can find it. The last line of the output is `{"passages",
"lexical", "vector", "hybrid", "graph", "quality"}`: p50 and p95 in milliseconds, recall@10 of the graph,
nDCG@10 and recall@10.
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
from pathlib import Path
from typing import Any

import numpy as np
from _common import end_on_signals, percentile, say

from harness import MemoryStore
from harness.memory.nearest import Nearest
from shim import EmbeddingReply, Shim
from shim.model_info import ModelInfo

LENGTH = 384
CLUSTERS = 500
QUERIES = 100
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
            nearest = both._refreshed(connection)
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


def questions(passages: dict[str, str], most: int) -> dict[str, str]:
    """For names that have words which their docstring has not: those words as a question."""
    asked = {}
    for name, text in passages.items():
        words = re.findall(r"[A-Z]?[a-z]{3,}", name.replace("_", " "))
        have = text.casefold()
        new = [word.casefold() for word in words if word.casefold() not in have]
        if len(new) > 1:
            asked[name] = "How to do this in Python: " + " ".join(new) + "?"
    chosen = random.Random(5).sample(sorted(asked), min(most, len(asked)))
    return {name: asked[name] for name in chosen}


def quality(embedder: Path, folder: Path) -> dict[str, Any]:
    """nDCG@10 and recall@10 of words, of meaning and of both on the documentation's questions."""
    passages = documented()
    asked = questions(passages, 300)
    say(f"{len(passages):,} docstrings, {len(asked)} questions ...")
    entry = {"path": str(embedder), "role": "embedder", "slots": 4}
    config = {"budget": {"device": "host", "limit": "4GiB"}, "models": {"vec": entry}}
    scores: dict[str, list[int]] = {"lexical": [], "vector": [], "hybrid": []}
    with Shim(config) as shim, MemoryStore(folder / "quality.db", "vec", shim=shim) as store:
        ids = dict(zip(store.add(passages.values()), passages, strict=True))
        with MemoryStore(folder / "quality.db") as words:
            for name, question in asked.items():
                vector, _ = store._vector(question)
                assert vector is not None
                with store._database.reading() as connection:
                    near = [
                        ids.get(one, "") for one, _ in store._refreshed(connection).find(vector, 10)
                    ]
                found = {
                    "lexical": [ids.get(h.id, "") for h in words.search(question, results=10).hits],
                    "vector": near,
                    "hybrid": [ids.get(h.id, "") for h in store.search(question, results=10).hits],
                }
                for way, names in found.items():
                    scores[way].append(names.index(name) + 1 if name in names else 0)
    return {
        "passages": len(passages),
        "questions": len(asked),
        **{
            way: {
                "ndcg_at_10": round(sum(1 / math.log2(r + 1) for r in ranks if r) / len(ranks), 4),
                "recall_at_10": round(sum(r > 0 for r in ranks) / len(ranks), 4),
            }
            for way, ranks in scores.items()
        },
    }


def main() -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--no-graph", action="store_true", help="Leave out usearch's graph.")
    parser.add_argument("--embedder", type=Path, help="A GGUF file; without it no quality.")
    args = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="kw-memory-") as folder:
        result = speed(args.passages, Path(folder), graph=not args.no_graph)
        say(json.dumps(result))
        result["quality"] = quality(args.embedder, Path(folder)) if args.embedder else None
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
