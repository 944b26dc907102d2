"""Model files that change under real engines: typed errors, and a model that serves again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from budget.errors import BadModelFile, EngineDied, KeepwarmError, LoadFailed, MeasurementFailed
from shim import Shim
from tests.keeper.catalog.changing import remove
from tests.keeper.catalog.test_changing_models import CHANGES

pytestmark = pytest.mark.real

HELLO = [{"role": "user", "content": "Hello."}]
REAL = ("cut to nothing", "cut within its header", "cut within its tensors", "deleted", "a FIFO")


def test_a_file_that_breaks_under_a_real_engine_costs_its_own_calls_only(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """While it is resident, and in the middle of an answer; the good file serves at once."""
    good, path = tiny_models["classifier"], tmp_path / "m.gguf"
    shutil.copy(good, path)
    models = {
        "m": {"path": str(path), "context": 512},
        "a": {"path": str(tiny_models["producer"]), "context": 512},
    }
    with Shim({"budget": {"device": "host"}, "models": models}, inline=True) as shim:
        for change in REAL:
            assert shim.chat("m", HELLO, max_tokens=2).content
            pieces = iter(shim.stream("m", HELLO, max_tokens=64))
            next(pieces)
            CHANGES[change](path)
            with pytest.raises((BadModelFile, LoadFailed, MeasurementFailed)):
                shim.chat("m", HELLO, max_tokens=2)
            try:
                for _ in pieces:
                    pass
            except KeepwarmError as error:
                assert isinstance(error, EngineDied), change
            assert shim.chat("a", HELLO, max_tokens=2).content
            remove(path)
            shutil.copy(good, path)
        assert shim.chat("m", HELLO, max_tokens=2).content
        status = shim.status()
        assert status["keeper"]["faults"] == []
        assert status["unavailable"] == {}


def test_a_file_that_is_replaced_is_served_as_what_it_is_now(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Another model in its place is another engine, with bytes of its own."""
    path = tmp_path / "m.gguf"
    shutil.copy(tiny_models["classifier"], path)
    models = {"m": {"path": str(path), "context": 512}}
    with Shim({"budget": {"device": "host"}, "models": models}, inline=True) as shim:
        first = shim.chat("m", HELLO, max_tokens=2)
        new = tmp_path / "new"
        shutil.copy(tiny_models["producer"], new)
        new.rename(path)
        second = shim.chat("m", HELLO, max_tokens=2)
        assert first.residency.cold
        assert second.residency.cold
        # The old engine's process may still be ending.
        gone = {"absent", "evicting"}
        (row,) = (row for row in shim.status()["engines"] if row["state"] not in gone)
        assert row["quantization"] == "Q4_0"
