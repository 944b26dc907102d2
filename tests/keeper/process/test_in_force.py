"""Which configuration the keeper after a crash runs with."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from shim.config import Config
from shim.keeper.catalog.projects import Projects
from shim.wire import start_order as orders
from shim.wire.start_order import IN_FORCE, InForce, Order


def config(limit: str, file: str | None = "/p/keepwarm.toml") -> Config:
    """A configuration with a limit, read from a file."""
    made = Config.from_mapping({"budget": {"limit": limit}})
    made.remember(Path(file) if file else None, {})
    return made


def order(runtime: Path, given: Config, read_at: float, *, automatic: bool = True) -> Order:
    """An order of a client that read its configuration at some time."""
    return Order(given, runtime, automatic, read_at)


def test_an_order_says_the_same_in_the_other_process(tmp_path: Path) -> None:
    """Configuration, file, and when it was read."""
    sent = order(tmp_path, config("1GiB"), 12.5)
    got = Order.from_json(sent.to_json(), tmp_path)
    assert got == sent
    assert got.config.file == Path("/p/keepwarm.toml")
    assert got.config.read_at == 12.5


@pytest.mark.parametrize("file", ["/p/keepwarm.toml", None])
def test_an_older_reading_gives_way_to_what_was_in_force(
    tmp_path: Path, file: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The client read the file before it was reloaded; the log says what happens. A later one counts."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    left = InForce(tmp_path)
    left.write(config("2GiB", file))
    since = json.loads((tmp_path / IN_FORCE).read_text())["since"]
    older = order(tmp_path, config("1GiB", file), since - 1)
    survivor = left.survives(older).config
    assert (survivor.budget.limit, survivor.read_at) == (config("2GiB").budget.limit, since)
    assert "its configuration stays in force" in caplog.text
    newer = order(tmp_path, config("1GiB", file), since + 1)
    assert left.survives(newer) is newer
    same = order(tmp_path, config("2GiB", file), since - 1)
    assert left.survives(same) is same


def test_what_was_in_force_gives_way_to_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file, a start on purpose, another boot of the machine, a keeper that ended in good order."""
    left = InForce(tmp_path)
    left.write(config("2GiB"))
    client = order(tmp_path, config("1GiB"), 0.0)
    assert left.survives(client) is not client
    elsewhere = order(tmp_path, config("1GiB", "/q/keepwarm.toml"), 0.0)
    assert left.survives(elsewhere) is elsewhere
    on_purpose = replace(client, automatic=False)
    assert left.survives(on_purpose) is on_purpose
    with monkeypatch.context() as rebooted:
        rebooted.setattr(orders, "_boot", lambda: "another")
        assert left.survives(client) is client
    left.remove()
    assert left.survives(client) is client
    left.remove()


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"format": 9}', b"{" * 3000, b'{"format": 2}', b'{"format": 1}']
)
def test_what_does_not_read_is_not_in_force(tmp_path: Path, text: bytes) -> None:
    """Garbage costs a line and nothing else."""
    (tmp_path / IN_FORCE).write_bytes(text)
    client = order(tmp_path, config("1GiB"), 0.0)
    assert InForce(tmp_path).survives(client) is client


def test_a_configuration_that_no_longer_holds_is_not_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that this version does not know, say."""
    left = InForce(tmp_path)
    left.write(config("2GiB"))
    data = json.loads((tmp_path / IN_FORCE).read_text())
    data["config"]["budget"]["unknown"] = 1
    (tmp_path / IN_FORCE).write_text(json.dumps(data))
    client = order(tmp_path, config("1GiB"), 0.0)
    assert left.survives(client) is client
    assert "not taken over" in caplog.text


def test_it_is_private_and_a_full_disk_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The keeper runs all the same."""
    left = InForce(tmp_path)
    left.write(config("2GiB"))
    assert (tmp_path / IN_FORCE).stat().st_mode & 0o777 == 0o600

    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(orders, "write_whole", full)
    left.write(config("3GiB"))
    assert "No space left" in caplog.text


def test_the_other_projects_survive_with_the_first(tmp_path: Path) -> None:
    """Whichever of their programs starts the next keeper, with a reading from before the crash."""
    first = Config.from_mapping({"models": {"a": {"path": "/a.gguf"}}})
    first.remember(Path("/p/keepwarm.toml"), {})
    other = Config.from_mapping({"models": {"a": {"path": "/b.gguf"}, "c": {"path": "/c.gguf"}}})
    other.remember(Path("/rag/keepwarm.toml"), {})
    projects = Projects.of(first).with_models(other)
    InForce(tmp_path).write(*projects.left())
    for starter in (first, other):
        survivor = InForce(tmp_path).survives(order(tmp_path, starter, 0.0))
        again = Projects.of(survivor.config).with_left(survivor.others)
        assert again.config.models == projects.config.models
        assert again.references == projects.references
    later = order(tmp_path, other, 1e12)
    assert InForce(tmp_path).survives(later) is later


def test_the_project_of_the_last_reload_is_the_first_after_a_crash(tmp_path: Path) -> None:
    """Its sections are in force; the names of models may be others than before."""
    first, other = config("1GiB"), config("2GiB", "/rag/keepwarm.toml")
    projects = Projects.of(first).with_config(other, ())
    InForce(tmp_path).write(*projects.left())
    survivor = InForce(tmp_path).survives(order(tmp_path, first, 0.0))
    assert survivor.config.budget.limit == other.budget.limit
    assert survivor.config.file == other.file
