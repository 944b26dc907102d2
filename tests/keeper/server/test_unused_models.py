"""Models of further projects stay in the books as long as something may still use them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from budget.errors import ConfigError, QueueFull, UnknownModel
from shim.config import Config
from shim.keeper.catalog import projects as projects_module
from shim.keeper.catalog.projects import Projects
from shim.keeper.server.unused_models import UnusedModels
from shim.wire.fingerprint import reference
from tests.keeper.server.test_server import OpenServer, Visitor, serving
from tests.races.support import run

Files = dict[str, Path]


async def taken_in(at: OpenServer, files: Files, names: str) -> tuple[Visitor, dict[str, str]]:
    """A client of a further project that has handed over its models, and what it calls them."""
    entries = {name: {"path": str(files["producer"]), "context": 512} for name in names}
    visitor = await at.visit()
    said = await visitor.ask("take_in", entries=entries, read_at=1.0, file="/rag/keepwarm.toml")
    assert said["ok"] == {}
    config = Config.from_mapping({"models": entries})
    return visitor, {name: reference(name, config.models[name]) for name in names}


def test_models_of_a_project_that_is_gone_leave_after_idle_exit(
    tiny_models: Files, runtime_dir: Path
) -> None:
    """What a connected client named stays, and so does what is pinned; the first project's stay always."""
    now = [0.0]

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            first = set(at.it.keeper.config.models)
            changes, unused = at.it.keeper.changes, UnusedModels(at.server.clients, lambda: now[0])
            visitor, called = await taken_in(at, tiny_models, "xyz")
            for name, want in (("x", "load"), ("y", "pin")):
                asked = await visitor.ask(
                    "lease", model=called[name], want=want, persist=want == "pin"
                )
                assert "ok" in asked
            await unused.look()
            now[0] = 10_000.0
            await unused.look()
            # `z` was handed over, and never asked for.
            assert set(changes.projects.config.models) == first | {"x@rag", "y@rag"}
            at.server.clients.drop()
            for _ in range(3):
                await asyncio.sleep(0)
            assert at.server.clients.connected == 0
            now[0] += 1000.0
            await unused.look()
            assert "x@rag" in changes.projects.config.models
            now[0] += 1000.0
            await unused.look()
            assert set(changes.projects.config.models) == first | {"y@rag"}
            again = await at.visit()
            said = await again.ask("lease", model=called["x"], want="load")
            assert said["error"]["facts"]["not_taken_in"] == [called["x"]]

    run(scenario)


def config(read_at: float, file: str | None = "/p/keepwarm.toml", **entry: Any) -> Config:
    """A configuration of one model."""
    made = Config.from_mapping({"models": {"a": {"path": "/a.gguf", **entry}}})
    made.remember(Path(file) if file else None, {}, read_at=read_at)
    return made


def test_an_older_reading_of_a_file_changes_nothing() -> None:
    """The newer one counts, whichever program comes first."""
    projects = Projects.of(config(2.0))
    with pytest.raises(ConfigError) as refused:
        projects.with_models(config(1.0, slots=2))
    assert refused.value.facts["newer"] is True
    assert projects.with_models(config(3.0, slots=2)).config.models["a"].slots == 2
    # One made in code is what its content is; no reading of it is older.
    in_code = projects.with_models(config(1.0, None, slots=2)).with_models(
        config(0.5, None, slots=3)
    )
    assert sorted(entry.slots for entry in in_code.config.models.values()) == [1, 2, 3]


def test_names_of_projects_collide_with_no_other_name() -> None:
    """Not with a model of the first project that is called so, nor with what is too long."""
    first = Config.from_mapping({"models": {"a@rag": {"path": "/a.gguf"}}})
    long = "n" * 128
    other = Config.from_mapping({"models": {n: {"path": "/b.gguf"} for n in ("a", long)}})
    other.remember(Path("/srv/r a g!", "keepwarm.toml"), {})
    third = Config.from_mapping({"models": {"a": {"path": "/c.gguf"}}})
    third.remember(Path("/srv/rag/keepwarm.toml"), {})
    projects = Projects.of(first).with_models(other).with_models(third)
    names = list(projects.config.models)
    assert len(set(names)) == 4
    assert names[:2] == ["a@rag", "a@r-a-g"]
    Config.from_mapping({"models": {name: {"path": "/x.gguf"} for name in names}})


def test_a_keeper_takes_in_no_more_models_than_a_configuration_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many programs come; the error says what makes room."""
    monkeypatch.setattr(projects_module, "MOST_MODELS", 2)
    projects = Projects.of(config(1.0)).with_models(config(1.0, "/b/keepwarm.toml"))
    with pytest.raises(QueueFull, match="config reload"):
        projects.with_models(config(1.0, "/c/keepwarm.toml"))


def test_a_plain_name_is_the_keepers_own(tiny_models: Files, runtime_dir: Path) -> None:
    """As `ps` shows it; a name that is none is an error without a hand-over."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            await taken_in(at, tiny_models, "x")
            names_of = at.it.keeper.changes.names_of
            assert names_of(["a", "x@rag", "none"]) == ["a", "x@rag", "none"]
            with pytest.raises(UnknownModel, match="a with these settings"):
                names_of(["a", "a#000000000000"])

    run(scenario)
