"""Real places: one that the tests of a module share, and one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import CommandPlace, new_place


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Footprints, measured once for all places."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def models(tiny_models: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Entries of three tiny models; the judge is pinned, and a fourth file is missing.

    The writer goes on for as many tokens as it is asked for: no machine is too quick for Ctrl-C.
    """
    small = {"context": 1024, "threads": 1}
    writer = {"role": "producer", "engine_args": ["--context-shift"], **small}
    return {
        "writer": {"path": str(tiny_models["producer"]), **writer},
        "judge": {"path": str(tiny_models["evaluator"]), "role": "evaluator", **small},
        "vec": {"path": str(tiny_models["embedder"]), "role": "embedder", **small, "context": 512},
        "lost": {"path": str(tiny_models["producer"].with_name("lost.gguf"))},
        "far": {"url": "http://127.0.0.1:9"},
    }


@pytest.fixture
def place(cache: Path, models: dict[str, dict[str, Any]]) -> Iterator[CommandPlace]:
    """A place of the test's own, with a keeper that no other test uses."""
    with new_place(cache) as own:
        own.configure(models)
        yield own


@pytest.fixture(scope="module")
def shared(cache: Path, models: dict[str, dict[str, Any]]) -> Iterator[CommandPlace]:
    """A place whose keeper the tests of a module share. The limit holds the judge and one more."""
    with new_place(cache) as all_of_us:
        all_of_us.configure(models, budget={"limit": "60MiB"})
        yield all_of_us
