"""Graphs of steps over scripted engines: order, failures, retries, time, journals, and few loads."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from harness import Graph, Retry, Step, StepContext, StepFailed
from harness.graphs.journal import Journal
from shim import (
    ConfigError,
    EngineDied,
    InvalidRequest,
    KeepwarmError,
    LoadFailed,
    Shim,
    UnknownModel,
)
from shim.keeper.catalog.catalog import CatalogEngine
from tests.processes import wait_until
from traces import RunTrace

PATIENCE_S = 30.0


class Told:
    """A shim over scripted engines, which are kept in the order of their loads."""

    def __init__(self, files: dict[str, Path], limit: str, **budget: Any) -> None:
        self.loads: list[str] = []
        self.scripts: dict[str, Script] = {}
        names = {"a": "producer", "b": "evaluator", "c": "classifier"}
        models = {n: {"path": str(files[f]), "context": 256, "slots": 2} for n, f in names.items()}
        budget = {"device": "host", "limit": limit, "max_wait": 5, **budget}
        self.shim = Shim({"budget": budget, "models": models}, factory=self._make)

    def _make(self, entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        name = entry.names[0]
        self.loads.append(name)
        return ScriptedEngine(name, runtime, self.scripts.get(name, Script(tokens=(name,))))

    def leases(self) -> int:
        """Leases that the keeper holds now."""
        return sum(len(row["leases"]) for row in self.shim.status()["engines"])


@pytest.fixture
def told(tiny_models: dict[str, Path]) -> Iterator[Told]:
    """Three models that all fit; none is loaded before it is asked for."""
    found = Told(tiny_models, "1GiB", prefetch=False)
    with found.shim:
        yield found


@pytest.fixture
def tight(tiny_models: dict[str, Path]) -> Iterator[Told]:
    """Three models of which two fit at a time."""
    found = Told(tiny_models, "45MB")
    with found.shim:
        yield found


def chat(context: StepContext) -> str:
    """A step that asks its model."""
    return context.chat("Hi.").content


def test_values_go_from_step_to_step_by_name_in_any_order_of_the_list(told: Told) -> None:
    """Functions and coroutine functions, model calls, inputs."""

    async def ask(context: StepContext) -> str:
        return f"{context['topic']}: {(await context.achat('Hi.')).content}"

    graph = Graph(
        [
            Step("end", lambda c: c["left"] + c["right"], ("left", "right")),
            Step("left", ask, ("topic",), "a"),
            Step("right", lambda c: c.chat(c["topic"]).content.upper(), ("topic",), "b"),
        ],
        ["topic"],
        shim=told.shim,
    )
    result = graph.run({"topic": "rain"})
    assert result["end"] == "rain: aB"
    assert [result.outcomes[name].state for name in ("left", "right", "end")] == ["done"] * 3
    assert told.shim.status()["plans"] == {}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "at least one step"),
        ([Step("a", chat), Step("a", chat)], "called a. Give each a name of its own"),
        ([Step("topic", chat)], "called topic."),
        ([Step("a", chat, ("topik",))], "'topic' meant"),
        (
            [Step("a", chat, ("b",)), Step("b", chat, ("c",)), Step("c", chat, ("a",))],
            "a -> b -> c -> a",
        ),
        ([Step("a", chat, ("a",))], "a -> a"),
        ([Step("a", chat, over="topic")], "does not need"),
    ],
)
def test_a_graph_that_cannot_run_is_refused_when_it_is_made(steps: list[Step], said: str) -> None:
    """Before anything runs; a cycle is named."""
    with pytest.raises(ConfigError, match=said):
        Graph(steps, ["topic"])


def test_functions_alone_need_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is broken, or not there, is an error of the first step with a model."""

    def none() -> Shim:
        raise ConfigError("No model is configured.")

    monkeypatch.setattr("harness.graphs.graph.default_shim", none)
    double = Step("double", lambda c: c["n"] * 2, ("n",))
    assert Graph([double], ["n"]).run({"n": 3})["double"] == 6
    with pytest.raises(ConfigError, match="No model is configured"):
        Graph([double, Step("a", chat, model="a")], ["n"]).run({"n": 3})


def test_inputs_and_models_that_are_not_there_are_refused(told: Told) -> None:
    """Missing and unknown inputs are named; so are those of a sub-graph."""
    graph = Graph([Step("a", chat, ("topic",), "a")], ["topic"], shim=told.shim)
    with pytest.raises(InvalidRequest, match="misses topic and has no topik"):
        graph.run({"topik": 1})
    with pytest.raises(InvalidRequest, match="sub-graph of the step inner misses topic"):
        Graph([Step("inner", graph)], shim=told.shim)
    with pytest.raises(UnknownModel, match="nothing"):
        Graph([Step("a", chat, (), "nothing")], shim=told.shim)


def test_branches_over_more_models_than_fit_load_each_once(tight: Told) -> None:
    """Six branches over three models in a budget for two: three loads, not six."""
    assert not tight.shim.fit_together(["a", "b", "c"])
    steps = [Step(f"{m}{n}", chat, (), m) for n in range(2) for m in "abc"]
    result = Graph(steps, shim=tight.shim).run()
    assert sorted(result[step.name] for step in steps) == sorted("abc" * 2)
    assert sorted(tight.loads) == ["a", "b", "c"]


def test_a_step_that_asks_late_finds_its_model_where_it_was(tight: Told) -> None:
    """Steps side by side ask in any order: a use that another step passed over is still to come."""
    asked = {name: threading.Event() for name in ("a0", "b0", "a1")}

    def after(name: str | None) -> Callable[[StepContext], str]:
        def ask(context: StepContext) -> str:
            assert name is None or asked[name].wait(20)
            said = chat(context)
            asked.get(context.step.name, threading.Event()).set()
            return said

        return ask

    waits = {"a0": None, "a1": "b0", "b0": "a0", "b1": "a1", "c0": None}
    steps = [Step(name, after(waited), (), name[0]) for name, waited in waits.items()]
    Graph(steps, shim=tight.shim).run()
    assert sorted(tight.loads) == ["a", "b", "c"]


@pytest.mark.parametrize(("models", "asks"), [("a", None), (("a", "c"), "a"), (("c", "a"), "a")])
def test_what_a_step_did_not_ask_is_expected_no_more(
    told: Told, models: str | tuple[str, ...], asks: str | None
) -> None:
    """An unused model would keep its bytes to the end; uses of those that were asked do not come again."""
    steps = [
        Step("asks", chat, (), "b"),
        Step("odd", lambda c: asks and c.chat("Hi.", asks).content, ("asks",), models),
        Step("look", lambda _: expected(told), ("odd",)),
        Step("later", chat, ("look",), "c"),
    ]
    assert Graph(steps, shim=told.shim).run()["look"] == ["c"]


def test_what_a_sub_graph_has_asked_is_not_expected_again(told: Told) -> None:
    """The uses that are left are declared anew while it works: its first step's is none of them."""
    asked, looked = threading.Event(), threading.Event()

    def ask(context: StepContext) -> None:
        chat(context)
        asked.set()

    def look(_: StepContext) -> list[str]:
        found = expected(told)
        looked.set()
        return found

    def ask_late(context: StepContext) -> str:
        assert looked.wait(PATIENCE_S)
        return chat(context)

    inner = [Step("first", ask, (), "a"), Step("second", ask_late, ("first",), "b")]
    steps = [
        Step("inner", Graph(inner, shim=told.shim)),
        Step("idle", lambda _: asked.wait(PATIENCE_S), (), "c"),
        Step("look", look, ("idle",)),
    ]
    assert Graph(steps, shim=told.shim).run()["look"] == ["b"]


def expected(told: Told) -> list[str]:
    """The models of the uses that are declared now."""
    return [use["model"] for row in told.shim.status()["declared"] for use in row["next"]]


def test_a_failed_step_skips_what_needs_it_and_nothing_else(told: Told) -> None:
    """The cause is named at every step behind it; the others' values are there."""

    def breaks(_: StepContext) -> None:
        raise ZeroDivisionError("no facts")

    steps = [
        Step("bad", breaks),
        Step("behind", chat, ("bad",), "a"),
        Step("far", chat, ("behind",), "a"),
        Step("good", chat, (), "b"),
    ]
    graph = Graph(steps, shim=told.shim)
    with pytest.raises(StepFailed, match="bad failed: ZeroDivisionError: no facts") as caught:
        graph.run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    result = caught.value.result
    assert result is not None
    assert result["good"] == "b"
    assert result.skipped == dict.fromkeys(("behind", "far"), "bad failed with ZeroDivisionError")
    with pytest.raises(StepFailed, match="far was skipped: bad failed"):
        _ = result["far"]
    assert list(graph.run(check=False).failed) == ["bad"]
    assert told.loads == ["b"]


def test_conditions_skip_and_maps_run_over_every_item(told: Told) -> None:
    """The map's result is in the order of its list; a condition that does not hold fails nothing."""
    steps = [
        Step("parts", lambda c: c["text"].split(), ("text",)),
        Step(
            "each", lambda c: f"{c.index}{c.item}{c.chat(c.item).content}", ("parts",), "a", "parts"
        ),
        Step("long", chat, ("parts",), "b", when=lambda v: len(v["parts"]) > 9),
        Step("after", lambda c: c["long"], ("long",)),
    ]
    result = Graph(steps, ["text"], shim=told.shim).run({"text": "x y z"})
    assert result["each"] == ["0xa", "1ya", "2za"]
    assert result.outcomes["long"].state == result.outcomes["after"].state == "skipped"
    assert list(result) == ["parts", "each"], "the steps that have a value"
    assert "long" not in result
    assert told.loads == ["a"]


def test_a_sub_graph_is_a_step(told: Told) -> None:
    """Its inputs are the step's needs; its failure is the step's."""
    inner = Graph([Step("up", lambda c: c["word"].upper(), ("word",))], ["word"], shim=told.shim)
    outer = Graph(
        [Step("inner", inner, ("word",)), Step("end", lambda c: c["inner"]["up"], ("inner",))],
        ["word"],
        shim=told.shim,
    )
    assert outer.run({"word": "x"})["end"] == "X"
    result = outer.run({"word": 3}, check=False)
    assert isinstance(result.failed["inner"], StepFailed)
    with pytest.raises(
        StepFailed, match="The step inner failed: The step up failed: Attr"
    ) as told_of:
        result.check()
    assert str(told_of.value).count("`result`") == 1


def test_a_step_is_tried_again_by_its_policy(told: Told) -> None:
    """Errors of the world are worth it; the caller's own mistakes are not."""
    tried: list[int] = []

    def flaky(context: StepContext) -> str:
        tried.append(context.attempt)
        if context.attempt < 3:
            raise LoadFailed("not yet")
        return "done"

    step = Step("flaky", flaky, retry=Retry(3, pause_s=0.0))
    result = Graph([step], shim=told.shim).run()
    assert (tried, result["flaky"], result.outcomes["flaky"].attempts) == ([1, 2, 3], "done", 3)
    assert [Retry(9, 0.5, 2.0).pause_after(n) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    refusals = [EngineDied("a ended.", retry_after_s=seconds) for seconds in (0.1, 4.0, 1e6)]
    assert [Retry(9, 0.5).pause_after(1, error) for error in refusals] == [0.5, 4.0, 60.0]

    def mistaken(context: StepContext) -> None:
        tried.append(context.attempt)
        raise InvalidRequest("no such option")

    tried.clear()
    Graph([Step("m", mistaken, retry=Retry(3, 0.0))], shim=told.shim).run(check=False)
    assert tried == [1]


def test_a_step_that_takes_too_long_gives_its_lease_back(told: Told) -> None:
    """Its model call is withdrawn at the time-out, in a function as well."""
    told.scripts["a"] = Script(tokens=("x", "y"), token_gate=asyncio.Event())
    step = Step("slow", chat, (), "a", timeout_s=0.3)
    result = Graph([step], shim=told.shim).run(check=False)
    assert "longer than 0.3 s" in str(result.failed["slow"])
    assert wait_until(lambda: told.leases() == 0)


def test_cancelling_a_run_ends_every_step_and_gives_leases_back(told: Told) -> None:
    """Also calls in threads."""
    told.scripts["a"] = Script(tokens=("x", "y"), token_gate=asyncio.Event())
    graph = Graph([Step("one", chat, (), "a"), Step("two", chat, ("one",), "b")], shim=told.shim)

    async def scenario() -> None:
        run = asyncio.create_task(graph.arun())
        assert await asyncio.to_thread(wait_until, lambda: told.leases() == 1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(run), PATIENCE_S)

    asyncio.run(scenario())
    assert wait_until(lambda: told.leases() == 0)
    assert told.loads == ["a"]


def test_a_function_that_never_ends_does_not_keep_the_run(told: Told) -> None:
    """It cannot be interrupted; its thread is left alone and asks no model any more."""
    gate, late = threading.Event(), list[BaseException]()

    def stuck(context: StepContext) -> None:
        gate.wait(PATIENCE_S)
        try:
            context.chat("Hi.")
        except KeepwarmError as error:
            late.append(error)

    begun = time.monotonic()
    result = Graph([Step("stuck", stuck, (), "a", timeout_s=0.1)], shim=told.shim).run(check=False)
    assert time.monotonic() - begun < PATIENCE_S
    assert "longer than" in str(result.failed["stuck"])
    gate.set()
    assert wait_until(lambda: len(late) == 1)
    assert told.loads == []


def test_a_run_is_resumed_from_what_it_finished(told: Told, tmp_path: Path) -> None:
    """Steps and items that are there are not run again; what is not JSON runs again."""
    record, ran = tmp_path / "run.jsonl", list[str]()
    broken = [True]

    def note(name: str, value: Any) -> Any:
        ran.append(name)
        return value

    def item(context: StepContext) -> str:
        if context.item == "z" and broken[0]:
            raise LoadFailed("not yet")
        return str(note(context.item, f"{context.item}\ud83d"))

    steps = [
        Step("parts", lambda c: note("parts", c["text"].split()), ("text",)),
        Step("thing", lambda c: note("thing", object()), ("text",)),
        Step("each", item, ("parts",), over="parts"),
        Step("end", lambda c: "".join(c["each"]), ("each", "thing")),
    ]
    graph = Graph(steps, ["text"], shim=told.shim, at_once=1)
    with pytest.raises(StepFailed):
        graph.run({"text": "x y z"}, record=record)
    with record.open("a", encoding="utf-8") as file:
        file.write('{"key": "cut')
    ran.clear()
    broken[0] = False
    assert graph.resume(record)["end"] == "x\ud83dy\ud83dz\ud83d"
    assert "parts" not in ran
    assert ran.count("thing") == 1
    assert ran.count("z") == 1
    assert graph.resume(record)["end"] == "x\ud83dy\ud83dz\ud83d"
    with pytest.raises(InvalidRequest, match="there already"):
        graph.run({"text": "x"}, record=record)


@pytest.mark.parametrize("odd", [("a", "b"), {1: "a"}, {"a"}, float("nan")])
def test_inputs_that_a_record_would_change_are_refused_before_anything_runs(
    told: Told, tmp_path: Path, odd: object
) -> None:
    """A resumed run would get a list for a tuple and "1" for 1, without a word."""
    graph = Graph([Step("a", lambda _: 1)], ["x"], shim=told.shim)
    with pytest.raises(InvalidRequest, match="cannot be kept"):
        graph.run({"x": odd}, record=tmp_path / "run.jsonl")
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    "edit",
    ["", "not JSON", '{"version": 2}', "{head}\nrubbish\n", '{head}\n{"key": "a", "value": 9}\n'],
)
def test_a_record_that_is_not_this_graphs_is_refused(told: Told, tmp_path: Path, edit: str) -> None:
    """Another file, a newer version, an edited line, another graph."""
    record = tmp_path / "run.jsonl"
    graph = Graph([Step("a", lambda _: 1)], shim=told.shim)
    graph.run(record=record)
    head = record.read_text("utf-8").splitlines()[0]
    other = Graph([Step("b", lambda _: 1)], shim=told.shim)
    with pytest.raises(InvalidRequest, match="another graph"):
        other.resume(record)
    whole = record.read_text("utf-8")
    for edited in (edit.replace("{head}", head), whole.replace('"value": 1', '"value": 2')):
        record.write_text(edited, "utf-8")
        with pytest.raises(InvalidRequest):
            graph.resume(record)
    record.write_text(whole, "utf-8")
    assert asyncio.run(graph.aresume(record)).outcomes["a"].resumed


def test_a_result_that_cannot_be_written_fails_its_step_and_loses_no_other(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told as that; what was finished is in the error's result."""
    keep = Journal.keep

    def full(journal: Journal, key: str, value: Any) -> None:
        if key == "second":
            raise OSError(errno.ENOSPC, "No space left on device")
        keep(journal, key, value)

    monkeypatch.setattr(Journal, "keep", full)
    steps = [Step("first", lambda _: 1), Step("second", lambda _: 2), Step("third", lambda _: 3)]
    with pytest.raises(StepFailed, match=r"second failed: OSError.*No space left") as caught:
        Graph(steps, shim=told.shim).run(record=tmp_path / "run.jsonl")
    assert caught.value.result is not None
    assert (caught.value.result["first"], caught.value.result["third"]) == (1, 3)


def test_a_step_that_cancels_itself_has_failed(told: Told) -> None:
    """What waits for it is skipped and the run ends, although nothing cancelled the run."""

    async def raises(_: StepContext) -> None:
        raise asyncio.CancelledError

    def cancels(_: object) -> bool:
        task = asyncio.current_task()
        assert task is not None
        return task.cancel()

    async def cancels_soon(context: StepContext) -> None:
        cancels(context)
        await asyncio.sleep(0)

    def returns_it(context: StepContext) -> Coroutine[Any, Any, None]:
        return cancels_soon(context)

    items = Step("odd", cancels_soon, ("first",), over="first")
    inner = Graph([Step("in", cancels_soon)], shim=told.shim)
    for odd, said in (
        (Step("odd", raises), "CancelledError"),
        (Step("odd", cancels_soon), "CancelledError"),
        (Step("odd", cancels_soon, (), "a", timeout_s=PATIENCE_S), "CancelledError"),
        (items, "CancelledError"),
        (Step("odd", inner), "StepFailed"),
        (Step("odd", returns_it), "CancelledError"),
    ):
        steps = [Step("first", lambda _: [1, 2]), odd, Step("next", chat, ("odd",), "a")]
        result = asyncio.run(ended(Graph(steps, shim=told.shim)))
        assert type(result.failed["odd"]).__name__ == said
        assert result.skipped == {"next": f"odd failed with {said}"}
        assert result["first"] == [1, 2]
    step = Step("odd", lambda _: 1, when=cancels)
    with pytest.raises(StepFailed, match="it was cancelled, and the run was not"):
        asyncio.run(ended(Graph([step], shim=told.shim))).check()


async def ended(graph: Graph) -> Any:
    """A run's result; a run that does not end fails the test."""
    return await asyncio.wait_for(graph.arun(check=False), PATIENCE_S)


def test_a_run_that_is_cancelled_ends_a_step_that_cancels_itself_too(told: Told) -> None:
    """A cancellation from outside is no failure of the step, whatever the step does about it."""
    started = asyncio.Event()

    async def cancels(_: StepContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async def scenario() -> None:
        run = asyncio.create_task(Graph([Step("odd", cancels)], shim=told.shim).arun())
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(run), PATIENCE_S)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_step_ends_the_run_and_every_other_step(
    told: Told, kind: type[BaseException]
) -> None:
    """From a thread and from a coroutine; what runs beside it is cancelled before the run ends."""
    ended: list[str] = []

    def interrupt(_: StepContext) -> None:
        raise kind

    async def ainterrupt(_: StepContext) -> None:
        raise kind

    async def beside(_: StepContext) -> None:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            ended.append("beside")

    def condition(_: Mapping[str, Any]) -> bool:
        raise kind

    first = Step("first", lambda _: 1)
    for odd in (
        Step("odd", interrupt),
        Step("odd", ainterrupt),
        Step("odd", interrupt, ("first",), when=condition),
    ):
        graph = Graph([Step("beside", beside), first, odd], shim=told.shim)
        with pytest.raises(kind):
            graph.run()
    assert ended == ["beside"] * 3


@pytest.mark.parametrize("at_once", [0, -1])
def test_a_graph_in_which_no_step_could_run_is_refused(told: Told, at_once: int) -> None:
    """Otherwise it would wait without an end."""
    with pytest.raises(InvalidRequest, match="at_once"):
        Graph([Step("a", lambda _: 1)], shim=told.shim, at_once=at_once)


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        (Retry, {"pause_s": math.nan}),
        (Retry, {"pause_s": -1}),
        (Retry, {"growth": math.inf}),
        (Step, {"name": "a", "run": len, "timeout_s": math.nan}),
    ],
)
def test_times_that_are_none_are_refused(kind: type, odd: dict[str, Any]) -> None:
    """Not a number, below zero, without an end."""
    with pytest.raises(InvalidRequest, match="a number of"):
        kind(**odd)


def test_two_journals_in_one_file_are_refused(told: Told, tmp_path: Path) -> None:
    """Each line is whole, and yet the second head is no result."""
    graph, file = Graph([Step("a", lambda _: 1)], shim=told.shim), tmp_path / "run.jsonl"
    graph.run(record=file)
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(InvalidRequest, match=r"Line 3 .* is no result"):
        graph.resume(file)


def test_a_function_that_returns_a_coroutine_is_awaited(told: Told) -> None:
    """A lambda around `achat` is no coroutine function, and its answer is the step's value all the same."""
    graph = Graph([Step("ask", lambda c: c.achat("Hi."), (), "a")], shim=told.shim)
    assert graph.run()["ask"].content == "a"


def test_coming_models_are_declared_and_skipped_ones_withdrawn(told: Told) -> None:
    """The order of the list is the order of uses."""
    seen: list[list[str]] = []

    def look(_: StepContext) -> None:
        declared = told.shim.status()["declared"]
        seen.append([use["model"] for row in declared for use in row["next"]])

    steps = [
        Step("look", look),
        Step("skip", chat, ("look",), "a", when=lambda _: False),
        Step("again", look, ("skip2",)),
        Step("skip2", lambda _: None, ("look",)),
        Step("ask", chat, ("again",), "b"),
    ]
    Graph(steps, shim=told.shim).run(check=False)
    assert seen[0] == ["a", "b"]
    assert seen[-1] in (["b"], ["a", "b"])
    assert told.shim.status()["declared"] == []


def test_steps_are_spans_and_blocking_calls_in_coroutines_are_refused(
    told: Told, tmp_path: Path
) -> None:
    """A coroutine that blocks would stop every other step."""

    async def blocks(context: StepContext) -> None:
        context.chat("Hi.")

    steps = [Step("draft", chat, (), "a"), Step("blocks", blocks, (), "a")]
    with RunTrace(directory=tmp_path) as run:
        result = Graph(steps, shim=told.shim).run(check=False)
    assert "achat" in str(result.failed["blocks"])
    assert run.trace_path is not None
    names = [event.get("name") for event in json.loads(run.trace_path.read_text("utf-8"))]
    assert names.count("draft") == 1


def test_a_step_asks_only_the_models_that_it_names(told: Told) -> None:
    """Others could not be made ready, and would break the turns."""
    steps = [Step("a", lambda c: c.chat("Hi.", "b"), (), "a"), Step("b", chat)]
    result = Graph(steps, shim=told.shim).run(check=False)
    assert "does not say that it uses b" in str(result.failed["a"])
    assert "no model" in str(result.failed["b"])


def test_a_sub_graph_over_a_list_gets_each_item_and_is_resumed_item_by_item(
    told: Told, tmp_path: Path
) -> None:
    """In the list's place, and with records of its own: one item's result is not another's."""
    ran, broken = list[str](), [True]

    def up(context: StepContext) -> str:
        ran.append(context["word"])
        if context["word"] == "b" and broken[0]:
            raise ValueError("not yet")
        return str(context["word"]).upper() + str(context["mark"])

    inner = Graph([Step("up", up, ("word", "mark"))], ["word", "mark"], shim=told.shim)
    step = Step("inner", inner, ("word", "mark"), over="word")
    graph = Graph([step], ["word", "mark"], shim=told.shim, at_once=1)
    with pytest.raises(StepFailed):
        graph.run({"word": ["a", "b"], "mark": "!"}, record=tmp_path / "r.jsonl")
    ran.clear()
    broken[0] = False
    found = graph.resume(tmp_path / "r.jsonl")["inner"]
    assert [one["up"] for one in found] == ["A!", "B!"]
    assert "b" in ran


def test_a_sub_graph_that_takes_too_long_is_cancelled(told: Told) -> None:
    """A time-out of a step is one, whatever the step is."""
    ended = list[str]()

    async def forever(_: StepContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    inner = Graph([Step("forever", forever)], shim=told.shim)
    result = Graph([Step("inner", inner, timeout_s=0.01)], shim=told.shim).run(check=False)
    assert "longer than 0.01 s" in str(result.failed["inner"])
    assert ended == ["cancelled"]


@pytest.mark.parametrize(("found", "said"), [("abc", "'abc' (str)"), (5, "5 (int)")])
def test_a_step_over_what_is_no_list_fails_and_says_so(
    told: Told, found: object, said: str
) -> None:
    """A model's answer that was not parsed would be gone through letter by letter."""
    steps = [
        Step("parts", lambda _: found),
        Step("each", lambda c: c.item, ("parts",), over="parts"),
    ]
    result = Graph(steps, shim=told.shim).run(check=False)
    assert f"The items of step each (parts) cannot be {said}." in str(result.failed["each"])


def test_a_graph_is_drawn_as_mermaid(told: Told) -> None:
    """Inputs, models, conditions, maps; names with signs of Mermaid's own stay whole."""
    inner = Graph(
        [Step("x", chat, ("maybe",)), Step("each", chat, ("x",))],
        ["maybe", "topic"],
        shim=told.shim,
    )
    steps = [
        Step('say "hi"', chat, ("topic",), "a"),
        Step("each", chat, ("topic",), over="topic"),
        Step("maybe", chat, ("each",), when=lambda _: True),
        Step("inner", inner, ("maybe", "topic"), over="topic"),
        Step("end", chat, ("inner",)),
    ]
    text = Graph(steps, ["topic"], shim=told.shim).draw()
    assert text.startswith('graph TD\n    ntopic(["topic"])\n')
    assert 'nsay_20__22_hi_22_["say #quot;hi#quot;<br/>a"]' in text
    assert 'neach[["each"]]' in text
    assert 'nmaybe{"maybe"}' in text
    assert "neach --> nmaybe" in text
    assert "ntopic -->|each| neach" in text
    frame = text[
        text.index('    subgraph ninner["inner, for each of topic"]') : text.index("    end\n")
    ]
    assert 'ninner_nx["x"]' in frame
    assert 'ninner_neach["each"]' in frame, "not the step of this name outside"
    assert "nmaybe --> ninner_nx" in text
    assert "ninner_nx --> ninner_neach" in text
    assert "ntopic -->|each| ninner" in text, "what no step inside takes goes to the frame"
    assert "nmaybe --> ninner\n" not in text
    assert "ninner --> nend" in text


def test_a_run_works_inside_a_running_loop(told: Told) -> None:
    """`arun` is awaited; `run` in a program with a loop has one of its own."""
    graph = Graph([Step("a", chat, (), "a")], shim=told.shim)

    async def scenario() -> tuple[str, str]:
        return (await graph.arun())["a"], graph.run()["a"]

    assert asyncio.run(scenario()) == ("a", "a")


def test_a_name_with_line_breaks_and_marks_stays_one_node_of_the_drawing(told: Told) -> None:
    """What follows a line break was a statement of its own."""
    text = Graph([Step('a"\n    evil --> x<br/>#', chat)], shim=told.shim).draw()
    assert text.count("\n") == 2
    assert '["a#quot; evil --> x#lt;br/>#35;"]' in text
    assert '["a?[2J"]' in Graph([Step("a\x1b[2J", chat)], shim=told.shim).draw()


def test_a_condition_that_has_to_be_awaited_does_not_pass_for_true(told: Told) -> None:
    """A coroutine is true whatever it would answer: the step ran against its condition."""

    async def never(_: Mapping[str, Any]) -> bool:
        return False

    step = Step("a", lambda _: 1, when=lambda v: [never(v)][0])  # type: ignore[arg-type,return-value]
    result = Graph([step], shim=told.shim).run(check=False)
    assert "always true" in str(result.failed["a"])
    with pytest.raises(InvalidRequest, match="not async"):
        Step("a", lambda _: 1, when=never)  # type: ignore[arg-type]


def test_a_coroutine_that_goes_on_after_its_time_has_not_kept_it(told: Told) -> None:
    """One that outlives its cancellation, and one that blocks the loop, were done though they came late."""

    async def stubborn(_: StepContext) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 1
        return 2

    async def blocking(_: StepContext) -> int:
        time.sleep(0.05)  # noqa: ASYNC251 - that is the mistake
        return 3

    steps = [Step("stubborn", stubborn, timeout_s=0.01), Step("blocking", blocking, timeout_s=0.01)]
    for step in steps:
        result = Graph([step], shim=told.shim).run(check=False)
        assert "longer than 0.01 s" in str(result.failed[step.name])


def test_a_result_is_read_in_lines_and_a_graph_by_its_steps(told: Told) -> None:
    """How each step ended, in a line; the record of all values filled screens."""

    def broken(_: StepContext) -> int:
        raise ValueError("no\nfacts")

    steps = [
        Step("long", lambda _: "word " * 1000),
        Step("broken", broken),
        Step("after", chat, ("broken",)),
    ]
    graph = Graph(steps, ["topic"], shim=told.shim)
    lines = str(graph.run({"topic": 1}, check=False)).splitlines()
    assert repr(graph) == "Graph(long, broken, after; inputs: topic)"
    assert [line.split()[:2] for line in lines] == [
        ["long", "done"],
        ["broken", "failed"],
        ["after", "skipped"],
    ]
    assert lines[0].endswith("…")
    assert lines[1].endswith("ValueError: no facts")
    assert lines[2].endswith("broken failed with ValueError")
    assert max(map(len, lines)) < 100
