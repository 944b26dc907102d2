"""Graphs on real llama-server: few loads, and leases that come back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from harness import Graph, Step, StepContext
from shim import Shim
from tests.processes import wait_until
from traces import RunLine, RunTrace, read_runs

pytestmark = pytest.mark.real

FILES = {"a": "classifier", "b": "producer", "c": "evaluator"}
NO_END: dict[str, Any] = {"extra": {"ignore_eos": True}, "temperature": 0.0}
PATIENCE_S = 30.0


def config(files: dict[str, Path], limit: int | str, context: int = 512) -> dict[str, Any]:
    """Three models under a limit."""
    models = {
        name: {"path": str(files[file]), "context": context, "slots": 2, "threads": 1}
        for name, file in FILES.items()
    }
    return {
        "budget": {"device": "host", "limit": limit, "reserve": 0},
        "models": models,
        "kv": {"enabled": False},
    }


def limit_for_two(files: dict[str, Path]) -> int:
    """Bytes for any two of the models, not for all three."""
    with Shim(config(files, "1GiB"), inline=True, share=True) as shim:
        sizes = sorted(sum(one.values()) for one in shim.what_if(["a", "b", "c"])["bytes"].values())
    limit = int(1.03 * (sizes[1] + sizes[2]))
    assert limit < sum(sizes)
    return limit


def test_six_branches_over_three_models_load_three_times(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """In a budget for two, where a load for each branch would be six."""
    steps = [
        Step(f"{model}{n}", lambda c: c.chat("Hi.", max_tokens=8).content, (), model)
        for n in range(2)
        for model in FILES
    ]
    with (
        Shim(config(tiny_models, limit_for_two(tiny_models)), inline=True, share=True) as shim,
        RunTrace(directory=tmp_path) as run,
    ):
        assert not shim.fit_together(list(FILES))
        result = Graph(steps, shim=shim).run()
    assert all(one.state == "done" for one in result.outcomes.values())
    lines = [line for line in read_runs(run.runs_path) if isinstance(line, RunLine)]
    assert lines[0].loads == 3


def test_a_cancelled_graph_leaves_no_request_on_its_engines(tiny_models: dict[str, Path]) -> None:
    """Answers that would take minutes end with the run, in functions and in coroutines."""

    async def ask(context: StepContext) -> str:
        return (await context.achat("Go on.", max_tokens=8000, **NO_END)).content

    steps = [
        Step("waits", lambda c: c.chat("Go on.", max_tokens=8000, **NO_END).content, (), "a"),
        Step("awaits", ask, (), "b"),
    ]

    def leases(shim: Shim) -> int:
        return sum(len(row["leases"]) for row in shim.status()["engines"])

    async def scenario(shim: Shim) -> None:
        run = asyncio.create_task(Graph(steps, shim=shim).arun())
        assert await asyncio.to_thread(wait_until, lambda: leases(shim) == 2, PATIENCE_S)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(run), PATIENCE_S)

    with Shim(config(tiny_models, "1GiB", 16_384), inline=True, share=True) as shim:
        asyncio.run(scenario(shim))
        assert wait_until(lambda: leases(shim) == 0)
        assert shim.chat("a", "Hi.", max_tokens=1).content is not None
