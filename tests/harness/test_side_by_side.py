"""Stages that do not wait for one another: side by side, with the same results in any order."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from harness import Pipeline, Stage, StageContext
from shim import ConfigError, InvalidRequest, Shim
from shim.calls.declaring import Plan
from shim.keeper.catalog.catalog import CatalogEngine
from traces import RunTrace

STAGES = {"left", "right", "tail", "later", "third", "last"}
"""The names of all that run beside another one here."""

PATIENCE_S = 30.0
"""So long a broken test waits before it fails."""


@pytest.fixture
def shim(tiny_models: dict[str, Path]) -> Iterator[Shim]:
    """Three scripted models that all fit."""

    def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], runtime, Script(tokens=(entry.names[0],)))

    files = {"a": "producer", "b": "evaluator", "c": "classifier"}
    models = {n: {"path": str(tiny_models[f]), "context": 256} for n, f in files.items()}
    with Shim({"budget": {"device": "host", "limit": "1GiB"}, "models": models}, factory=make) as s:
        yield s


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Whatever a test does, the stages' threads have ended."""
    yield
    assert not STAGES & {thread.name for thread in threading.enumerate()}


def waits_for(event: threading.Event) -> None:
    """Fails when it is not set in time."""
    assert event.wait(PATIENCE_S)


def test_stages_after_one_run_side_by_side(shim: Shim) -> None:
    """Each judge waits until the other has begun; a row would never end."""
    both = threading.Barrier(2, timeout=PATIENCE_S)
    draft = Stage("draft", "a", lambda context: context.chat("Write.").content)

    def grade(context: StageContext) -> str:
        both.wait()
        return context.result(draft) + context.chat("Grade.").content

    left = Stage("left", "b", grade, after=(draft,))
    right = Stage("right", "c", grade, after=(draft,))
    total = Stage(
        "total", "a", lambda c: f"{c.result(left)} {c.result(right)}", after=(left, right)
    )
    results = Pipeline([draft, left, right, total], shim).run(["one", "two"])
    assert [item.result(total) for item in results] == ["ab ac", "ab ac"]
    assert list(results[0].results) == ["draft", "left", "right", "total"]
    assert sorted(reply.stage for reply in results[1].replies) == ["draft", "left", "right"]


def test_a_stage_starts_as_soon_as_what_it_needs_is_done(shim: Shim) -> None:
    """It does not wait for what else runs: the long one ends only after it has; replies in order."""
    later_ran = threading.Event()

    def long(context: StageContext) -> None:
        waits_for(later_ran)
        context.chat("long")

    def later_one(context: StageContext) -> None:
        context.chat("later")
        later_ran.set()

    left: Stage[None] = Stage("left", "a", long, after=())
    right = Stage("right", "b", lambda context: context.chat("short").content, after=())
    later = Stage("later", "c", later_one, after=(right,))
    (item,) = Pipeline([left, right, later], shim).run([0])
    assert [reply.stage for reply in item.replies] == ["right", "later", "left"]
    assert list(item.results) == ["left", "right", "later"]


def test_a_result_that_was_not_waited_for_is_refused_though_it_is_there(shim: Shim) -> None:
    """What a stage sees depends on its `after` (indirect ones, too), and not on which stage was faster."""
    right_done = threading.Event()
    first = Stage("first", "a", lambda context: 1)
    right: Stage[None] = Stage("right", "b", lambda context: None, after=(first,))
    # It starts when `right` is done, and so `left` goes on when the result is surely there.
    after_right = Stage("tail", "b", lambda context: right_done.set(), after=(right,))

    def peek(context: StageContext) -> object:
        waits_for(right_done)
        assert context.results == {"first": 1}
        return context.result(right)

    left = Stage("left", "c", peek, after=(first,))
    deep = Stage("deep", "a", lambda context: context.result(first), after=(after_right,))
    with pytest.raises(InvalidRequest, match="right has no result"):
        Pipeline([first, right, after_right, left], shim).run([0])
    (item,) = Pipeline([first, right, after_right, deep], shim).run([0])
    assert item.result(deep) == 1


def test_what_runs_and_what_waits_is_declared_in_order(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs heads the plan, then what waits in the order of the list, then the next inputs."""
    declared: list[str] = []
    tell = Plan.declare

    def declare(plan: Plan, models: list[str]) -> None:
        declared.append("".join(models))
        tell(plan, models)

    monkeypatch.setattr(Plan, "declare", declare)
    last_ran = threading.Event()
    first = Stage("first", "a", lambda context: None)
    left = Stage("left", "b", lambda context: waits_for(last_ran), after=(first,))
    right = Stage("right", "c", lambda context: None, after=(first,))
    last = Stage("last", "a", lambda context: last_ran.set(), after=(right,))
    end = Stage("end", "c", lambda context: last_ran.clear(), after=(left, last))
    Pipeline([first, left, right, last, end], shim).run([0, 1])
    # `left` and `last` end in any order: the round between them has one of the two.
    rounds = [["abcac"], ["bcac"], ["bac"], ["bc", "ac"], ["c"]]
    expected = [[r + "abcac" for r in choice] for choice in rounds] + rounds
    assert len(declared) == len(expected)
    assert all(answer in choice for answer, choice in zip(declared, expected, strict=True))


def test_a_stage_that_asks_later_than_the_next_one_is_still_expected(shim: Shim) -> None:
    """Its model would leave for another one, and be loaded again."""
    asked, looked = threading.Event(), threading.Event()
    seen = list[str]()

    def look(_: StageContext) -> None:
        waits_for(asked)
        seen.extend(use["model"] for row in shim.status()["declared"] for use in row["next"])
        looked.set()

    def ask(context: StageContext) -> None:
        context.chat("Hi.")
        asked.set()
        waits_for(looked)

    first = Stage("first", "a", lambda context: None)
    left = Stage("left", "b", look, after=(first,))
    right = Stage("right", "c", ask, after=(first,))
    Pipeline([first, left, right], shim).run([0])
    assert seen == ["b"]


def test_the_first_failure_is_raised_when_what_runs_has_ended(shim: Shim) -> None:
    """No stage starts after it, and the thread beside it is waited for."""
    both, threads, ran = (
        threading.Barrier(2, timeout=PATIENCE_S),
        list[threading.Thread](),
        list[str](),
    )

    def fail(context: StageContext) -> None:
        threads.append(threading.current_thread())
        both.wait()
        raise ValueError("the first")

    def fail_later(context: StageContext) -> None:
        both.wait()
        threads[0].join(PATIENCE_S)
        ran.append("right")
        raise ValueError("the second")

    left: Stage[None] = Stage("left", "a", fail, after=())
    right: Stage[None] = Stage("right", "b", fail_later, after=())
    last = Stage("last", "c", lambda context: ran.append("last"), after=(right,))
    with pytest.raises(ValueError, match="the first"):
        Pipeline([left, right, last], shim).run([0])
    assert ran == ["right"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_the_run(shim: Shim, kind: type[BaseException]) -> None:
    """Also when it comes up in a stage's thread, where it would be lost."""

    def interrupt(context: StageContext) -> None:
        raise kind

    left: Stage[None] = Stage("left", "a", interrupt, after=())
    right = Stage("right", "b", lambda context: None, after=())
    with pytest.raises(kind):
        Pipeline([left, right], shim).run([0])


def test_an_interrupt_while_the_caller_waits_ends_the_run(shim: Shim) -> None:
    """The signal of Ctrl-C reaches the main thread, which starts nothing more."""
    began, answer, ran = threading.Event(), threading.Event(), list[str]()
    main = threading.main_thread().ident
    assert main is not None

    def send(context: StageContext) -> None:
        waits_for(began)
        signal.pthread_kill(main, signal.SIGINT)
        answer.set()

    def go_on(context: StageContext) -> None:
        began.set()
        waits_for(answer)
        ran.append("right")

    left: Stage[None] = Stage("left", "a", send, after=())
    right: Stage[None] = Stage("right", "b", go_on, after=())
    third = Stage("third", "c", lambda context: ran.append("third"), after=(left, right))
    with pytest.raises(KeyboardInterrupt):
        Pipeline([left, right, third], shim).run([0])
    assert ran == ["right"]


def test_closing_the_results_leaves_no_thread(shim: Shim) -> None:
    """After the first result, with inputs left."""
    left = Stage("left", "a", lambda context: None, after=())
    right = Stage("right", "b", lambda context: None, after=())
    results: Any = Pipeline([left, right], shim).iterate([1, 2])
    next(results)
    results.close()


def test_a_row_stays_on_the_callers_thread(shim: Shim) -> None:
    """Also a lone stage of a graph; only those side by side get threads."""
    seen: dict[str, int] = {}

    def note(context: StageContext) -> None:
        seen[context.stage] = threading.get_ident()

    first = Stage("first", "a", note)
    left, right = (Stage(name, "b", note, after=(first,)) for name in ("left", "right"))
    last = Stage("last", "c", note, after=(left, right))
    Pipeline([first, left, right, last, Stage("end", "a", note)], shim).run([0])
    here = threading.get_ident()
    assert {name for name, ident in seen.items() if ident == here} == {"first", "last", "end"}


def test_threads_belong_to_the_plan_and_to_the_run(shim: Shim, tmp_path: Path) -> None:
    """Requests use up the pipeline's plan beside another one, and spans reach a run of this context."""
    names: list[str | None] = []

    def note(context: StageContext) -> None:
        names.append(shim._session.declarations.name())
        context.chat("Hi.")

    stages = [Stage(name, "a", note, after=()) for name in ("left", "right")]
    with RunTrace(directory=tmp_path, process_wide=False) as run, shim.plan(["b"]) as outer:
        Pipeline(stages, shim).run([0])
    assert None not in names
    assert outer.name not in names
    assert len(set(names)) == 1
    assert run.problems == []
    assert run.trace_path is not None
    loaded = json.loads(run.trace_path.read_text())
    events = loaded["traceEvents"] if isinstance(loaded, dict) else loaded
    found = [e["name"] for e in events if e.get("ph") == "X"]
    assert {"left", "right"} <= set(found)


def test_waiting_for_a_later_stage_is_a_mistake_of_the_pipeline(shim: Shim) -> None:
    """Found before it runs."""
    right = Stage("right", "b", lambda context: None)
    left = Stage("left", "a", lambda context: None, after=(right,))
    with pytest.raises(ConfigError, match="left waits for stage right"):
        Pipeline([left, right], shim)
