"""Another configuration for a running keeper: which settings are in effect at once, which are named."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import ScriptedEngine
from budget.errors import ConfigError
from shim.config import Config
from shim.config.schema.sections import BudgetSection, KeeperSection, KvSection, Section
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.catalog.core_settings import RESTART_KEYS
from shim.keeper.keeper import Keeper

REFUSED = {"budget.device", "budget.devices", "budget.rpc"}
"""Keys whose change refuses the reload, when it changes the device."""
IN_EFFECT: dict[str, tuple[Any, Any]] = {
    "budget.limit": ("50MB", lambda k: k.shell.core.ledgers()[0].limit_bytes == 50_000_000),
    "budget.reserve": ("1GB", lambda k: set(k.catalog.devices.reserves.values()) == {10**9}),
    "budget.preempt": (False, lambda k: not k.shell.core.state.settings.preempt),
    "budget.max_wait": (7, lambda k: k.shell.core.state.settings.max_wait_s == 7),
    "budget.max_queue": (8, lambda k: k.shell.core.state.settings.max_queue == 8),
    "budget.max_queue_per_model": (
        9,
        lambda k: k.shell.core.state.settings.max_queue_per_model == 9,
    ),
    "budget.prefetch": ("stage", lambda k: k.shell.core.state.settings.prefetch == "stage"),
    "budget.stage_rate": ("5MB", lambda k: k.shell.stager.rate_bytes_per_s == 5e6),
    "keeper.idle_exit": (11, lambda k: k.config.keeper.idle_exit == 11),
    "keeper.stall_timeout": (12, lambda k: k.config.keeper.stall_timeout == 12),
    "keeper.lease_timeout": (16, lambda k: k.config.keeper.lease_timeout == 16),
    "keeper.engine_margin": ("17MB", lambda k: k.config.keeper.engine_margin.fixed_bytes == 17e6),
    "keeper.stop_grace": (13, lambda k: k.config.keeper.stop_grace == 13),
    "keeper.trace": ("ring", lambda k: k.ring.captured(1.0)["requests"] == []),
    "keeper.trace_last": (18, lambda k: k.ring._last_ns == 18 * 10**9),
    "kv.enabled": (False, lambda k: k.shell.supervisor.kv.kept()["limit_bytes"] == 0),
    "kv.limit": ("14MB", lambda k: k.shell.supervisor.kv.kept()["limit_bytes"] == 14_000_000),
    "kv.max_age": (15, lambda k: k.shell.supervisor.kv._files.max_age_s == 15),
}
"""A changed value of each key that counts at once, and how that is seen."""
NAMED = {"budget.policy": "lru", "kv.folder": "/nowhere/kv"}


def changed(given: dict[str, Any], key: str, value: Any) -> Config:
    """The configuration with one key changed."""
    section, _, name = key.partition(".")
    return Config.from_mapping({**given, section: {**given.get(section, {}), name: value}})


class Running:
    """A keeper with a scripted engine, while its configuration changes."""

    def __init__(self, tiny_models: dict[str, Path], root: Path) -> None:
        self.given: dict[str, Any] = {
            "budget": {"device": "host", "limit": "60MB"},
            "kv": {"folder": str(root / "kv")},
            "models": {"a": {"path": str(tiny_models["classifier"]), "context": 512}},
        }
        self.root = root

    async def start(self, **sections: Any) -> Keeper:
        """The keeper, started with some sections changed."""

        def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
            return ScriptedEngine(entry.names[0], runtime)

        config = Config.from_mapping({**self.given, **sections})
        return await Keeper.create(config, self.root, make)


@pytest.fixture
def running(tiny_models: dict[str, Path], runtime_dir: Path) -> Running:
    """Nothing started yet."""
    return Running(tiny_models, runtime_dir)


def test_every_key_is_in_effect_or_named() -> None:
    """A key that is added to a section the keeper acts on has to be decided about."""
    sections: dict[str, type[Section]] = {
        "budget": BudgetSection,
        "keeper": KeeperSection,
        "kv": KvSection,
    }
    keys = {f"{name}.{key}" for name, kind in sections.items() for key in kind.model_fields}
    assert keys == IN_EFFECT.keys() | RESTART_KEYS | REFUSED
    assert NAMED.keys() == RESTART_KEYS


def test_settings_are_in_effect_after_a_reload(running: Running) -> None:
    """Each is reported as changed, and none needs a restart."""

    async def run() -> None:
        keeper = await running.start()
        try:
            for key, (value, seen) in IN_EFFECT.items():
                answer = await keeper.reload(changed(running.given, key, value))
                assert seen(keeper), key
                assert key in answer["settings"]
                assert answer["restart"] == []
        finally:
            await keeper.close()

    asyncio.run(run())


def test_what_needs_a_restart_is_named_until_then(running: Running) -> None:
    """Also by later reloads and in the status; taken back, it is no longer."""

    async def run() -> None:
        keeper = await running.start()
        try:
            for key, value in NAMED.items():
                answer = await keeper.reload(changed(running.given, key, value))
                assert (answer["settings"], answer["restart"]) == ([], [key])
                again = await keeper.reload(changed(running.given, key, value))
                assert again["restart"] == [key]
                assert keeper.status()["keeper"]["restart"] == [key]
                back = await keeper.reload(Config.from_mapping(running.given))
                assert back["restart"] == []
        finally:
            await keeper.close()

    asyncio.run(run())


def test_saving_kv_state_can_begin_with_a_reload(running: Running) -> None:
    """A keeper that kept nothing opens its folder when the configuration says so."""

    async def run() -> None:
        off = {**running.given["kv"], "enabled": False}
        keeper = await running.start(kv=off)
        try:
            assert keeper.shell.supervisor.kv.kept()["folder"] is None
            await keeper.reload(Config.from_mapping(running.given))
            assert keeper.shell.supervisor.kv.kept()["folder"] == str(running.root / "kv")
        finally:
            await keeper.close()

    asyncio.run(run())


def test_another_device_is_refused_and_nothing_changes(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the key."""

    async def run() -> None:
        keeper = await running.start()
        try:
            limits = {"host": 1 << 30, "cuda:0": 1 << 30}
            two = replace(keeper.catalog.devices, limits=limits)
            monkeypatch.setattr("shim.keeper.catalog.catalog.budget_devices", lambda *_: two)
            with pytest.raises(ConfigError, match="device"):
                await keeper.reload(changed(running.given, "budget.max_wait", 3))
            assert keeper.shell.core.state.settings.max_wait_s == 30
        finally:
            await keeper.close()

    asyncio.run(run())
