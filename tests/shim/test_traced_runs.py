"""What the keeper did during a run is on the run's trace, also what no request waited for."""

from __future__ import annotations

import json
from pathlib import Path

from shim import Shim
from tests.perfetto import ASYNC, FLOWS, query_many
from tests.shim.conftest import Stage
from traces import RunLine, RunTrace, read_runs


def line_of(run: RunTrace) -> RunLine:
    """The run's line in `runs.jsonl`."""
    (line,) = read_runs(run.runs_path)
    assert isinstance(line, RunLine)
    return line


def test_a_load_that_no_request_waited_for_is_on_the_trace(stage: Stage, tmp_path: Path) -> None:
    """`load` and the books over time come from the keeper's history when the run ends."""
    with RunTrace(directory=tmp_path) as run:
        stage.shim.load("a")
    assert run.problems == []
    assert line_of(run).loads == 1
    assert run.trace_path is not None
    text = run.trace_path.read_text()
    assert '"ph":"C"' in text.replace(" ", "")


def test_a_load_is_on_the_trace_once(stage: Stage, tmp_path: Path) -> None:
    """A request's own account and the keeper's history do not count it twice."""
    with RunTrace(directory=tmp_path) as run:
        stage.shim.chat("a", "hello")
        stage.shim.chat("a", "hello")
    assert (line_of(run).loads, len(line_of(run).requests)) == (1, 2)


def test_a_shim_that_closes_before_the_run_ends_leaves_its_account(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Whichever ends first, the loads are there, and no keeper is started for the sake of a trace."""
    stage = Stage.__new__(Stage)
    stage.scripts, stage.engines = {}, []
    model = {"path": str(tiny_models["classifier"]), "context": 1024}
    with RunTrace(directory=tmp_path) as run:
        stage.shim = Shim(
            {"budget": {"device": "host"}, "models": {"a": model}}, factory=stage.make
        )
        with stage.shim:
            stage.shim.load("a")
    assert run.problems == []
    assert line_of(run).loads == 1
    assert stage.shim._session._keeper.running is None


def test_an_eviction_says_why_this_model_had_to_go(stage: Stage, tmp_path: Path) -> None:
    """What wanted the bytes, the candidates with their losses, and an arrow to the request."""
    config = stage.shim.config.to_mapping()
    config["budget"] = {"device": "host", "limit": "32MB"}
    stage.shim.close()
    with RunTrace(directory=tmp_path) as run, Shim(config, factory=stage.make) as shim:
        shim.chat("a", "hello")
        shim.chat("b", "hello")
    assert run.trace_path is not None
    sql = (
        "select a.key, coalesce(a.string_value, a.int_value) as value from slice s "
        "join args a using (arg_set_id) where s.name = 'evict a'"
    )
    rows, flows, stays = query_many(run.trace_path, [sql, FLOWS, ASYNC])
    said = {row["key"].removeprefix("args.keepwarm."): row["value"] for row in rows}
    assert said["decision"], said
    assert said["decision.policy"]
    assert len(json.loads(said["decision.candidates"])) == 1
    assert json.loads(said["decision.victims"])
    assert ("evict a", "request", "evicted for") in [
        (row["source"], row["target"], row["flow"]) for row in flows
    ]
    names = [row["name"].split(" s,")[1] for row in stays if " s," in row["name"]]
    assert names == [" 1 request", " 1 request"]
