"""The examples of docs/harness.md run as they stand there, each by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from shim import Shim

PAGE = Path(__file__).resolve().parents[2] / "docs" / "harness.md"
SCORE = {"reasons": "It is so.", "score": 9}
JUDGED = json.dumps({"complete": SCORE, "correct": SCORE})
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def models(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The models that the page names, scripted, in a folder of its own."""
    files = {"writer": "producer", "judge": "evaluator", "second-judge": "embedder"}
    named = {name: {"path": str(tiny_models[file])} for name, file in files.items()}
    named["embedder"] = {"path": str(tiny_models["embedder"]), "role": "embedder"}
    monkeypatch.chdir(tmp_path)

    def engine(entry: Any, runtime: Path) -> ScriptedEngine:
        text = JUDGED if "judge" in entry.names else entry.names[0]
        return ScriptedEngine(entry.names[0], runtime, Script(tokens=(text,)))

    budget = {"device": "host", "limit": "1GiB"}
    with Shim({"budget": budget, "models": named}, factory=engine) as shim:
        monkeypatch.setattr("shim.defaults._DEFAULT", SimpleNamespace(get=lambda: shim))
        yield


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_a_copied_example_works_by_itself(number: int) -> None:
    """Nothing of another example is needed."""
    names: dict[str, Any] = {}
    exec(EXAMPLES[number], names)
    checks = {
        "record": _refined,
        "panel": _chosen,
        "judge": _judged,
        "roles": _played,
        "graph": _resumed,
        "store": _remembered,
    }
    for name in checks.keys() & names.keys():
        checks[name](names)
    assert checks.keys() & names.keys()


def _refined(names: dict[str, Any]) -> None:
    assert (names["record"].answer, names["record"].stopped) == ("writer", "passed")


def _chosen(names: dict[str, Any]) -> None:
    assert names["turns"].chosen("run-17") == names["turns"].chosen("run-17")
    assert names["panel"].chosen("run-17") == ("judge", "second-judge")


def _judged(names: dict[str, Any]) -> None:
    assert names["found"].scores == {"complete": 9.0, "correct": 9.0}


def _played(names: dict[str, Any]) -> None:
    assert names["roles"].names("embedder") == ("embedder",)


def _resumed(names: dict[str, Any]) -> None:
    assert names["result"]["report"] == "writer\nwriter\nwriter"
    assert names["result"]["verdict"] == JUDGED
    assert names["graph"].resume("run.jsonl")["report"] == names["result"]["report"]


def _remembered(names: dict[str, Any]) -> None:
    assert [hit.text for hit in names["found"].hits] == ["The link holds for an hour."]
