"""docs/cli.md against the program: its JSON examples and its table of exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.measure.whole_machine import MachineMeasure
from budget import errors
from budget.errors import KeepwarmError
from budget.footprint import HOST
from budget.memory.overhead import DEFAULT_OVERHEAD
from budget.placement.machine_rates import LoadFigures, MachineFigures, SideFigures
from shim.cli.console.failure import exit_code
from shim.cli.root import COMMANDS, main
from shim.placement import build_plan as building
from tests.cli.support import CommandPlace
from tests.traces.test_trace_summaries import STORY, write
from tools import workloads

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
EXAMPLE = re.compile(
    r"^### (?P<title>.+?)$(?P<text>.*?)^```json\n(?P<json>.*?)^```", re.MULTILINE | re.DOTALL
)
EXAMPLES = {m["title"]: json.loads(m["json"]) for m in EXAMPLE.finditer(PAGE)}
MODES = ("none", "mmap", "dio")
NAMED = {
    "plans",
    "devices",
    "bytes",
    "measured",
    "reported",
    "requested",
    "free",
    "facts",
    "unavailable",
    "names",
    "references",
    "models",
}
"""Keys of objects whose own keys are names."""


def shape(value: Any) -> Any:
    """What an object's keys are, all the way down; None for figures, texts, and what is empty."""
    if isinstance(value, dict):
        return {
            key: None if key in NAMED and isinstance(inner, dict) else shape(inner)
            for key, inner in value.items()
        }
    return [shape(value[0])] if isinstance(value, list) and value else None


def differences(documented: Any, printed: Any, where: str = "") -> list[str]:
    """The keys that only one of two shapes has, wherever both have any."""
    if isinstance(documented, dict) and isinstance(printed, dict):
        lone = [f"{where}.{key}" for key in documented.keys() ^ printed.keys()]
        both = documented.keys() & printed.keys()
        return lone + [
            line for k in both for line in differences(documented[k], printed[k], f"{where}.{k}")
        ]
    if isinstance(documented, list) and isinstance(printed, list):
        return differences(documented[0], printed[0], f"{where}[]")
    return []


def test_every_command_is_on_the_page() -> None:
    """In the table of commands."""
    table = PAGE.partition("| command |")[2].partition("\n\n")[0]
    assert [name for name in COMMANDS if f"`{name}" not in table] == []


def test_the_table_of_exit_codes_has_every_error_where_it_belongs() -> None:
    """Each error that a command can end with is in the row of its code."""
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    documented = {name: int(code) for code, cell in rows for name in re.findall(r"`(\w+)`", cell)}
    groups = {"KeepwarmError", "CallerError", "LoadError", "OutsideError"}
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, KeepwarmError)
    ]
    found = {k.__name__: exit_code(k("x")) for k in kinds if k.__name__ not in groups}
    assert documented == found


def built(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `build --json` prints, of a machine that is measured in no time."""
    figures = MachineFigures(
        {HOST: SideFigures(dict.fromkeys(("F16", "Q4_K", "Q6_K", "Q8_0"), 10000000000.0))},
        LoadFigures(0.1, dict.fromkeys(MODES, 1e9), dict.fromkeys(MODES, 2e9)),
        {HOST: 0},
    )
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(MachineMeasure, "run", lambda _self, _devices: figures)
    monkeypatch.setattr(building, "calibrate", lambda **_says: DEFAULT_OVERHEAD)
    config = folder / "built.toml"
    config.write_text(f'[budget]\ndevice = "host"\n[models.producer]\npath = "{model}"\n')
    done = CliRunner().invoke(main, ["--config", str(config), "build", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def replay_in(folder: Path) -> tuple[str, ...]:
    """The options of a replay of one request."""
    trace, models = folder / "t.csv", folder / "m.json"
    trace.write_text("arrival_s,model,prompt_tokens,output_tokens\n1,planner,1,1\n")
    models.write_text(json.dumps(workloads.models("revise")), encoding="utf-8")
    return ("--trace", str(trace), "--models", str(models), "--budget", "28GB")


@pytest.mark.real
def test_every_json_example_has_the_keys_that_are_printed(
    shared: CommandPlace,
    tiny_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The examples are what programs can count on."""
    file = str(tiny_models["producer"])
    keyed = tmp_path / "keepwarm.toml"
    keyed.write_text('[models.far]\nurl = "http://h"\napi_key_env = "FAR"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    replay = replay_in(tmp_path)
    printed: dict[str, Callable[[], Any]] = {
        "An error": lambda: shared.json("chat", "unknown", "x", code=2),
        "chat": lambda: shared.json("chat", "writer", "Hello", "--max-tokens", "2"),
        "embed": lambda: shared.json("embed", "vec", "Hello"),
        "inspect": lambda: shared.json("inspect", file, "--source", "closed-form"),
        "plan": lambda: shared.json("plan"),
        "build": lambda: built(tiny_models["producer"], tmp_path, monkeypatch),
        "recommend": lambda: shared.json("recommend", "--vram", "8GiB", "llama-3.1-8b:Q4_K_M"),
        "ps": lambda: shared.json("ps"),
        "load": lambda: shared.json("load", "writer"),
        "unload": lambda: shared.json("unload", "writer"),
        "stop": lambda: shared.json("stop", "writer"),
        "list": lambda: shared.json("list"),
        "show": lambda: shared.json("show", "writer"),
        "forget": lambda: shared.json("forget", "vec"),
        "unpin": lambda: shared.json("unpin", "writer"),
        "keeper status": lambda: shared.json("keeper", "status"),
        "keeper stop": lambda: shared.json("keeper", "stop"),
        "kv list": lambda: shared.json("kv", "list"),
        "kv clear": lambda: shared.json("kv", "clear"),
        "config reload": lambda: shared.json("config", "reload"),
        "config trust": lambda: shared.json("config", "trust", str(keyed)),
        "simulate": lambda: shared.json("simulate", *replay, "--policy", "forecast"),
        "trace list": lambda: shared.json("trace", "list"),
        "trace summary": lambda: shared.json("trace", "summary", str(write(tmp_path / "r", STORY))),
        "doctor": lambda: shared.json("doctor", code=4),
        "version": lambda: shared.json("version"),
    }
    assert len(EXAMPLES) == len(printed)
    for command, call in printed.items():
        title = next(t for t in EXAMPLES if t.removeprefix("`keepwarm ").startswith(command))
        assert differences(shape(EXAMPLES[title]), shape(call()), command) == []
    empty = shared.json("ps")
    assert empty.keys() == EXAMPLES["`keepwarm ps --json`"].keys()
    assert not empty["running"]
