"""The memory with a real embedder under a real budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import MemoryStore
from shim import Shim

PASSAGES = ["Rain falls on the roof.", "The ledger counts bytes.", "A cat sleeps in the sun."]


def config(files: dict[str, Path], limit: int | str) -> dict[str, Any]:
    """A writer and an embedder under a limit."""
    models = {
        "writer": {"path": str(files["producer"]), "context": 1024, "threads": 1},
        "vec": {
            "path": str(files["embedder"]),
            "role": "embedder",
            "context": 256,
            "slots": 1,
            "threads": 1,
        },
    }
    budget = {"device": "host", "limit": limit, "reserve": 0}
    return {"budget": budget, "models": models, "kv": {"enabled": False}}


@pytest.mark.real
def test_the_embedder_gives_way_and_catches_up_when_its_bytes_are_free(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """A search beside a resident writer compares words, evicts nothing, and says why."""
    with Shim(config(tiny_models, "1GiB"), inline=True, share=True) as shim:
        sizes = [sum(one.values()) for one in shim.what_if(["writer", "vec"])["bytes"].values()]
    limit = int(1.03 * max(sizes))
    with (
        Shim(config(tiny_models, limit), inline=True, share=True) as shim,
        MemoryStore(tmp_path / "m.db", "vec", shim=shim) as store,
    ):
        assert not shim.fit_together(["writer", "vec"])
        shim.load("writer")
        store.add(PASSAGES)
        found = store.search("What falls on a roof?")
        assert found.degraded == "vec would evict writer"
        assert found.hits[0].text == PASSAGES[0]
        assert store.pending == len(PASSAGES)
        assert not shim.chat("writer", "Hi.", max_tokens=1).residency.cold
        shim.unload("writer")
        assert store.catch_up().embedded == len(PASSAGES)
        assert store.search(PASSAGES[1]).degraded == ""
        assert store.search(PASSAGES[1]).hits[0].text == PASSAGES[1]
