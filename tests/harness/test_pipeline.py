"""Pipelines over scripted engines: order, results, spans, failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.scripted import Script, ScriptedEngine
from harness import Pipeline, Stage, StageContext
from shim import ConfigError, EmbeddingReply, InvalidRequest, LoadFailed, Reply, Shim, UnknownModel
from shim.keeper.catalog.catalog import CatalogEngine
from tests.perfetto import FLOWS, query
from traces import RunTrace

TEXTS = {"drafter": ("a draft",), "judge": ("4",)}


@pytest.fixture
def shim(tiny_models: dict[str, Path]) -> Iterator[Shim]:
    """Three scripted models that all fit; the one called broken does not load."""

    def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        name = entry.names[0]
        broken = name == "broken"
        script = Script(tokens=TEXTS.get(name, ("x",)), load="fail" if broken else "ok")
        return ScriptedEngine(name, runtime, script)

    files = {
        "drafter": tiny_models["producer"],
        "judge": tiny_models["evaluator"],
        "finder": tiny_models["embedder"],
        "broken": tiny_models["classifier"],
    }
    models = {name: {"path": str(path), "context": 256} for name, path in files.items()}
    models["finder"]["role"] = "embedder"
    with Shim({"budget": {"device": "host", "limit": "1GiB"}, "models": models}, factory=make) as s:
        yield s


def drafting() -> Stage[str]:
    """A stage that chats once."""
    return Stage("draft", "drafter", lambda context: context.chat(str(context.input)).content)


def test_stages_run_in_order_and_see_what_came_before(shim: Shim) -> None:
    """Each input goes through all stages before the next; a stage's result is typed by its object."""
    seen: list[tuple[int, str]] = []
    draft = drafting()

    def judge_it(context: StageContext) -> int:
        seen.append((context.index, context.result(draft)))
        return int(context.chat(context.result(draft)).content)

    judge = Stage("judge", "judge", judge_it)
    results = Pipeline([draft, judge], shim).run(["one", "two"])
    assert [r.input for r in results] == ["one", "two"]
    assert [r.result(judge) for r in results] == [4, 4]
    assert [r.result(draft) for r in results] == ["a draft", "a draft"]
    assert seen == [(0, "a draft"), (1, "a draft")]


def test_every_reply_is_kept_with_its_stage(shim: Shim) -> None:
    """Residency and timings of each call stay with the item, in the order of the calls."""

    def find_it(context: StageContext) -> int:
        context.embed(["one text"])
        return len(context.embed(["a", "b"]).vectors)

    finder = Stage("find", "finder", find_it)
    (item,) = Pipeline([finder, drafting()], shim).run(["q"])
    assert item.result(finder) == 2
    assert [staged.stage for staged in item.replies] == ["find", "find", "draft"]
    replies = [staged.reply for staged in item.replies]
    assert [type(reply) for reply in replies] == [EmbeddingReply, EmbeddingReply, Reply]
    assert not replies[1].residency.cold


def test_replies_of_other_calls_are_kept_where_the_stage_says_so(shim: Shim) -> None:
    """A stage that counts tokens or transcribes asks the shim itself, and keeps what it got."""

    def count(context: StageContext) -> int:
        return len(context.keep(context.shim.embed("finder", context.input)).vectors)

    (item,) = Pipeline([Stage("count", "finder", count)], shim).run([["a", "b"]])
    assert item.results == {"count": 2}
    assert [(one.stage, one.reply.model) for one in item.replies] == [("count", "finder")]


def test_results_come_one_by_one(shim: Shim) -> None:
    """`iterate` does not look at the second input before the first result was taken."""
    taken: list[str] = []

    def inputs() -> Iterator[str]:
        for text in ("one", "two"):
            taken.append(text)
            yield text

    results = Pipeline([drafting()], shim).iterate(inputs())
    assert next(results).index == 0
    assert taken == ["one"]


def test_arrows_join_the_stages_of_each_input(shim: Shim, tmp_path: Path) -> None:
    """From each stage to the next one of the same input, and not to the next input's or the next run's."""
    judge = Stage("judge", "judge", lambda context: context.chat("fine?").content)
    pipeline = Pipeline([drafting(), judge], shim)
    with RunTrace(directory=tmp_path) as run:
        pipeline.run(["one", "two"])
        pipeline.run(["three"])
    assert run.trace_path is not None
    arrows = [row for row in query(run.trace_path, FLOWS) if row["flow"] == "next"]
    assert [(row["source"], row["target"]) for row in arrows] == [("draft", "judge")] * 3


def test_a_stage_is_a_span_of_the_run(shim: Shim, tmp_path: Path) -> None:
    """The trace shows each stage by its name, around its request."""
    with RunTrace(directory=tmp_path) as run:
        Pipeline([drafting()], shim).run(["one", "two"])
    assert run.problems == []
    assert run.trace_path is not None
    loaded = json.loads(run.trace_path.read_text())
    events = loaded["traceEvents"] if isinstance(loaded, dict) else loaded
    stages = [e for e in events if e.get("ph") == "X" and e.get("name") == "draft"]
    assert [e["args"]["item"] for e in stages] == [0, 1]
    assert {e["args"]["model"] for e in stages} == {"drafter"}


def test_the_first_failure_ends_the_run(shim: Shim) -> None:
    """What a stage raises reaches the caller as it is, and no later stage runs."""
    ran: list[int] = []
    broken = Stage("broken", "broken", lambda context: context.chat("hello").content)
    after = Stage("after", "drafter", lambda context: ran.append(context.index))
    with pytest.raises(LoadFailed):
        Pipeline([broken, after], shim).run(["one"])
    assert ran == []


def test_a_result_that_is_not_there_is_an_error_that_says_so(shim: Shim) -> None:
    """Asking for a later stage's result names what there is."""
    later: Stage[str] = Stage("later", "judge", lambda context: context.chat("x").content)
    early = Stage("early", "drafter", lambda context: context.result(later))
    with pytest.raises(InvalidRequest, match="later has no result"):
        Pipeline([early, later], shim).run(["one"])


def test_mistakes_of_a_pipeline_are_found_before_it_runs(shim: Shim) -> None:
    """No stage, a name twice, and a model that is not configured."""
    with pytest.raises(ConfigError, match="at least one"):
        Pipeline([], shim)
    with pytest.raises(ConfigError, match="name of its own"):
        Pipeline([drafting(), drafting()], shim)
    with pytest.raises(UnknownModel, match="'unknown'"):
        Pipeline([Stage("s", "unknown", lambda context: context.input)], shim)
