"""An inline keeper has its devices alone like any other, or says that it shares them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import ScriptedEngine
from budget.errors import ConfigError
from shim import Shim
from tests.keeper.support import World


@pytest.fixture
def config(tiny_models: dict[str, Path]) -> dict[str, Any]:
    """A configuration of the host; nothing of it is loaded."""
    return {"budget": {"device": "host"}, "models": {"a": {"path": str(tiny_models["classifier"])}}}


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Device locks of the test's own."""
    monkeypatch.setenv("KEEPWARM_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks"


def test_a_second_inline_keeper_is_refused_and_the_device_comes_back(
    config: dict[str, Any],
) -> None:
    """Also in one program: the error says that it is its own, and nothing is left of the refused one."""
    with Shim(config) as first:
        with pytest.raises(ConfigError, match="is booked by another keeper") as caught:
            Shim(config).status()
        assert f"the inline keeper of process {os.getpid()} of user" in str(caught.value)
        assert str(first.runtime) in str(caught.value)
        assert "use its Shim for all models" in caught.value.hint
        assert first.status()["keeper"]["pid"] == os.getpid()
    with Shim(config) as again:
        assert again.status()["keeper"]["pid"] == os.getpid()


@pytest.mark.real
def test_an_inline_keeper_and_a_background_keeper_refuse_each_other(
    keeper_world: World, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    """The first keeper has the device; the refusal of the second says how to end the first."""
    monkeypatch.setenv("KEEPWARM_LOCK_DIR", keeper_world.env["KEEPWARM_LOCK_DIR"])
    client = keeper_world.client('say(pid=s.status()["keeper"]["pid"])\nsys.stdin.read()')
    pid = client.hear()["pid"]
    with pytest.raises(ConfigError, match=f"process {pid} of user") as caught, Shim(config):
        pass
    end = f"`KEEPWARM_RUNTIME_DIR={keeper_world.runtime} keepwarm keeper stop`"
    assert end in caught.value.hint


def test_one_that_shares_says_with_whom_and_keeps_nobody_out(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One warning where another books the device, none where it is alone."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    with Shim(config, share=True) as sharing:
        sharing.status()
        assert "share=True" not in caplog.text
        with Shim(config) as alone:
            alone.status()
            with Shim(config, share=True) as another:
                another.status()
    (line,) = [r.getMessage() for r in caplog.records if "share=True" in r.getMessage()]
    assert f"process {os.getpid()}" in line
    assert "neither knows of the other's engines" in line


def test_engines_that_are_made_up_lock_nothing(config: dict[str, Any], own_locks: Path) -> None:
    """A test may have as many scripted keepers as it likes."""

    def make(entry: Any, runtime: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], runtime)

    with Shim(config, factory=make) as one, Shim(config, factory=make) as two:
        assert one.runtime != two.runtime
        one.load("a")
        two.load("a")
    assert not own_locks.exists()


def test_sharing_is_for_inline_keepers(config: dict[str, Any]) -> None:
    """It is refused for a background keeper instead of being ignored."""
    with pytest.raises(ConfigError, match="share=True is for an inline keeper"):
        Shim(config, inline=False, share=True)


def test_a_long_folder_for_temporary_files_is_no_obstacle(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sockets have to fit; another folder takes its place."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with Shim(config) as shim:
        assert shim.status()["keeper"]["runtime"] == str(shim.runtime)
        assert long not in shim.runtime.parents
    assert list(long.iterdir()) == []
