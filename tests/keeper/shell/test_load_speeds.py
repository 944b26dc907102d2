"""How fast loads are beside the best that was seen, over restarts of the keeper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.scripted import Script, ScriptedEngine
from shim import Shim
from shim.calls.tracing import load_spans
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.shell.load_speeds import LoadSpeeds, disk_of
from shim.paths import state_dir
from tests.traces.support import events
from traces import names


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_the_best_is_unknown_at_first_and_is_kept_for_the_next_keeper() -> None:
    """A load that is the only one of its kind would otherwise always have 100%."""
    speeds = LoadSpeeds()
    assert [speeds.saw("cold 8:1", one) for one in (2e9, 1e9, 3e9)] == [None, 2e9, 3e9]
    speeds.remember()
    later = LoadSpeeds()
    later.recall()
    assert later.saw("cold 8:1", 1e9) == 3e9
    assert later.saw("cold 8:2", 1e9) is None


@pytest.mark.parametrize("speed", [0.0, -1.0, 1e14, float("nan"), float("inf")])
def test_a_speed_that_cannot_be_is_no_best(speed: float) -> None:
    """A clock that stood still would make all later loads look slow."""
    speeds = LoadSpeeds()
    speeds.saw("staged", 1e9)
    assert speeds.saw("staged", speed) == 1e9


@pytest.mark.parametrize("damage", ["{", "[1]", '{"cold": "x"}', '{"cold": -1}', '{"cold": 1e999}'])
def test_a_damaged_file_is_set_aside(damage: str) -> None:
    """What was seen is unknown then, and nothing else fails."""
    file = state_dir() / "load-speeds.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(damage)
    speeds = LoadSpeeds()
    speeds.recall()
    assert speeds.saw("cold", 1e9) is None
    speeds.remember()
    assert file.read_text() == '{"cold": 1000000000.0}'


def test_a_trace_says_the_share_once_there_was_another_load(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The keeper writes the best at its end, and the next one compares its first load with that."""
    path = str(tiny_models["classifier"])
    config = {
        "budget": {"device": "host"},
        "models": {"a": {"path": path, "context": 512}},
        "trace": {"folder": str(tmp_path)},
    }

    def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], runtime, Script(storage="cold"))

    told = []
    for _ in range(2):
        with Shim(config, factory=make) as shim, shim.traced() as run:
            shim.chat("a", "Hi.")
        assert run.trace_path is not None
        (load,) = (one for one in events(run.trace_path) if one.get("cat") == names.MODEL_LOAD)
        told.append(load["args"])
    assert names.BANDWIDTH_SHARE not in told[0]
    share = told[1][names.BANDWIDTH] / told[1][names.BANDWIDTH_BEST]
    assert told[1][names.BANDWIDTH_SHARE].startswith(f"{share:.0%} of the best seen, ")
    assert list(json.loads((state_dir() / "load-speeds.json").read_text())) == [
        f"cold {disk_of(['missing', path])}"
    ]


def test_a_loads_share_is_said_in_words() -> None:
    """As a reader takes it in."""
    row = {"load_id": "l", "model": "a", "device": "host", "bytes": 1, "start_ns": 0, "end_ns": 1}
    row |= {"storage": "cold", "reason": "", "engine": "x", "phases": {}, "bytes_per_s": 1.512e9}
    (load,) = load_spans({**row, "best_bytes_per_s": 2.1e9}, hidden=False)
    assert load.attributes[names.BANDWIDTH_SHARE] == "72% of the best seen, 2.1 GB/s"
