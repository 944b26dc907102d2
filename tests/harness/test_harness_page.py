"""The examples of docs/harness.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from shim import Shim

PAGE = Path(__file__).resolve().parents[2] / "docs" / "harness.md"
SECTIONS = ("A loop in ten lines", "Judges that take turns, or sit together", "Steps side by side")


def code(section: str) -> str:
    """The Python of a section."""
    text = PAGE.read_text("utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    return "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_pools_and_graphs_run_as_the_page_has_them(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied example works; what needs a model that really judges is not run, only made."""
    files = {"writer": "producer", "judge": "evaluator", "second-judge": "embedder"}
    models = {name: {"path": str(tiny_models[file])} for name, file in files.items()}
    monkeypatch.chdir(tmp_path)
    loop, pools, graph = map(code, SECTIONS)
    names: dict[str, Any] = {}

    def engine(entry: Any, runtime: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], runtime, Script(tokens=(entry.names[0],)))

    with Shim(
        {"budget": {"device": "host", "limit": "1GiB"}, "models": models}, factory=engine
    ) as shim:
        monkeypatch.setattr("harness.graphs.graph.default_shim", lambda: shim)
        monkeypatch.setattr("harness.refine.refine.default_shim", lambda: shim)
        exec(loop.partition("record = ")[0] + pools + graph, names)
        assert names["turns"].chosen("run-17") == names["turns"].chosen("run-17")
        assert names["panel"].chosen("run-17") == ("judge", "second-judge")
        result = names["result"]
        assert result["report"] == "writer\nwriter\nwriter"
        assert result["verdict"] == "judge"
        again = names["graph"].resume("run.jsonl")
        assert again["report"] == result["report"]
