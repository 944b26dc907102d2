"""An engine argument that an estimate does not count, on a real llama-server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.footprint.inspect import Inspector
from backends.gguf import read_header
from budget.footprint import HOST
from budget.memory import arguments
from shim import Shim
from shim.cli.commands.inspect.learned_lines import learned_lines, learned_report
from shim.config import Config
from shim.keeper.catalog.catalog import build_catalog

pytestmark = pytest.mark.real

# Drafts of up to 256 tokens are 257 rows of logits in the compute buffer instead of one. The fixture makes
# estimates miss them.
UNCOUNTED = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-m", "256"]


@pytest.fixture(autouse=True)
def estimates_without_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Estimates that know of no drafts; what they compute and measure stays in this test."""
    monkeypatch.setattr(arguments, "drafted_tokens", lambda _args: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    arguments.effective.cache_clear()
    yield
    arguments.effective.cache_clear()


def models(files: dict[str, Path]) -> dict[str, Any]:
    """Two small models; one has the argument."""
    return {
        "drafts": {"path": str(files["F16"]), "context": 1024, "engine_args": UNCOUNTED},
        "plain": {"path": str(files["Q8_0"]), "context": 1024},
    }


def booked(shim: Shim, model: str) -> int:
    """Bytes booked for a model's engine now."""
    row = next(r for r in shim.status()["engines"] if model in r["models"])
    return int(row["bytes"].get(HOST, 0))


def test_the_next_keeper_admits_by_what_the_engine_reported(
    split_models: dict[str, Path],
) -> None:
    """By the estimate both fit; once it was loaded, the other one makes room before the load."""
    host = {"budget": {"device": "host", "limit": "1GiB"}, "models": models(split_models)}
    catalog = build_catalog(Config.from_mapping(host))
    estimates = {n: p.placements[0].total_bytes for n, p in catalog.prepared.items()}
    tight = sum(estimates.values()) + (1 << 20)
    with Shim(host, inline=True) as shim:
        shim.load("drafts")
        learned = booked(shim, "drafts")
        assert learned > 1.1 * estimates["drafts"]
    host["budget"] = {"device": "host", "limit": tight}
    with Shim(host, inline=True) as shim:
        shim.load("plain")
        shim.load("drafts")
        (decision, *_) = shim.status()["decisions"]
        assert decision["requested"] == {HOST: learned}
        assert len(decision["victims"]) == 1
        assert (booked(shim, "drafts"), booked(shim, "plain")) == (learned, 0)


def test_inspect_shows_what_was_learned_and_with_which_arguments(
    split_models: dict[str, Path],
) -> None:
    """For other arguments it does not apply, and says in what they differ."""
    host = {"budget": {"device": "host", "limit": "1GiB"}, "models": models(split_models)}
    with Shim(host, inline=True) as shim:
        shim.load("drafts")
        learned = booked(shim, "drafts")
    header = read_header(split_models["F16"])
    args = build_catalog(Config.from_mapping(host)).prepared["drafts"].placements[0].args
    build = Inspector().build_key()
    answer = learned_report(header.identity, args, build)
    assert answer["applies"]
    assert answer["corrections"][0]["devices"][HOST]["corrected_bytes"] == learned
    assert len(learned_lines(answer)) == 1
    other = learned_report(header.identity, replace(args, extra=()), build)
    assert not other["applies"]
    assert other["corrections"][0]["differs"] == {"extra": UNCOUNTED}
    assert learned_report(header.identity, args, "another build")["corrections"] == []
