"""What the policy learns stays after the keeper's end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.scripted import ScriptedEngine
from budget.eviction.policies import make_policy
from shim import Shim
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.shell.policy_state import experience_file, recall, remember


def test_a_keeper_writes_what_it_learned_and_the_next_one_reads_it(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forecast's state is on the disk when the keeper ends, private, and is taken over."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = {
        "budget": {"device": "host", "policy": "forecast"},
        "models": {
            "a": {"path": str(tiny_models["classifier"]), "context": 512},
            "b": {"path": str(tiny_models["producer"]), "context": 512},
        },
    }

    def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], runtime)

    with Shim(config, factory=make) as shim:
        for name in "abab":
            shim.chat(name, "Hello.")
    policy = make_policy("forecast")
    file = experience_file(policy)
    assert file.stat().st_mode & 0o777 == 0o600
    assert recall(policy)
    assert policy.export_state() == json.loads(file.read_text())


def test_damaged_experience_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said and set aside, and the policy starts anew."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    policy = make_policy("forecast")
    remember(policy)
    file = experience_file(policy)
    for damage in ("{", "[]", '{"version": 99}'):
        file.write_text(damage)
        assert not recall(policy)
        assert not file.exists()
        assert file.with_name(f"{file.name}.damaged").read_text() == damage
        assert not recall(policy)
