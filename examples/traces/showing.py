"""What the six scripts beside this one share: two models of random weights, a budget, a traced run.

The models are those of `keepwarm demo`, made once (half a minute) in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.demo.models import make_models
from shim import Shim
from shim.paths import cache_dir
from traces import RunTrace

FOLDER = cache_dir() / "examples"
ENTRIES: Mapping[str, Mapping[str, Any]] = {
    "router": {"context": 2048, "threads": 1},
    "writer": {"context": 2048, "threads": 1},
}
FILES = {"router": "classifier", "writer": "producer"}

Story = Callable[[Shim, RunTrace], None]


def say(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def configured(
    files: Mapping[str, Path], together: Sequence[str], **more: Mapping[str, Any]
) -> dict[str, Any]:
    """A configuration whose budget holds the models `together`, and each other model alone.

    Args:
        files: the demo's models, by the demo's names.
        together: names of models that are to fit at the same time.
        more: further keys of a model, by its name.
    """
    models = {
        name: {"path": str(files[FILES[name]]), **entry, **more.get(name, {})}
        for name, entry in ENTRIES.items()
    }
    budget: dict[str, Any] = {"device": "host", "reserve": 0}
    with Shim({"budget": budget, "models": models}, inline=True, share=True) as shim:
        needed: Mapping[str, Mapping[str, int]] = shim.what_if(list(models))["bytes"]
    each = {name: sum(devices.values()) for name, devices in needed.items()}
    # Learned figures may be a little larger than the first ones.
    limit = int(max(sum(each[name] for name in together), *each.values()) * 1.05)
    return {"budget": {**budget, "limit": limit}, "models": models}


def record(
    story: Story, config: Mapping[str, Any], name: str, folder: Path | None = None
) -> RunTrace:
    """Tell a story in a run of its own, with an inline keeper; returns the run, which has ended."""
    with (
        Shim(dict(config), inline=True, share=True) as shim,
        RunTrace(directory=folder, service=name) as run,
    ):
        story(shim, run)
    return run


def show(story: Story, name: str, together: Sequence[str], **more: Mapping[str, Any]) -> None:
    """Record a story with the demo's models, and say how to look at it."""
    config = configured(make_models(FOLDER, progress=print), together, **more)
    run = record(story, config, name)
    print(f"keepwarm trace open {run.trace_path}\nkeepwarm trace summary {run.trace_path}")
