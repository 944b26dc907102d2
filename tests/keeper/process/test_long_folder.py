"""A runtime folder whose path is too long for the sockets of engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from budget.errors import ConfigError
from shim import Config
from shim.keeper.keeper import Keeper


def test_a_keeper_refuses_a_folder_in_which_no_engine_could_start(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """At its start, with the folder and the variable; its own socket may fit where theirs do not."""
    folder = runtime_dir / ("x" * (90 - len(str(runtime_dir)) - 1))
    folder.mkdir(mode=0o700)
    models = {"a": {"path": str(tiny_models["classifier"]), "context": 512}}
    config = Config.from_mapping({"budget": {"device": "host"}, "models": models})
    with pytest.raises(ConfigError) as caught:
        asyncio.run(Keeper.create(config, folder))
    assert caught.value.facts["folder"] == str(folder)
    assert caught.value.facts["variable"] == "KEEPWARM_RUNTIME_DIR"
