"""Every public door of the harness, given what it cannot use: a typed error, never one of Python's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import (
    Compressor,
    Dimension,
    EvaluatorPool,
    Graph,
    Judge,
    MemoryStore,
    Passage,
    Pipeline,
    Refine,
    RefineRecord,
    Retry,
    Roles,
    Rubric,
    Stage,
    Step,
    run_many,
)
from shim import InvalidRequest, KeepwarmError, Shim
from tests.harness.told import ToldShim, in_turn, scores
from traces.checked import shown


async def later(*_given: Any) -> Any:
    """A function whose answer has to be awaited."""


class Unshown:
    """A value whose own code fails where an error quotes it, or where it is taken for a path."""

    def __repr__(self) -> str:
        raise OSError("it is gone")

    def __fspath__(self) -> str:
        raise OSError("it is gone")


WRONG: tuple[Any, ...] = (
    object(),
    Unshown(),
    3.5,
    math.nan,
    math.inf,
    True,
    -1,
    b"x",
    "§",
    [3],
    {1: 2},
    None,
    print,
    later,
    10**400,
    "a\0",
    "\ud800",
    {"model": "x"},
    iter(()),
)
"""What a parameter may be given by mistake. Some fit one parameter or another, and are no mistake there."""
RUBRIC = Rubric([Dimension("facts", "Right.")])
FAR: dict[str, Any] = {"models": {"m": {"url": "http://127.0.0.1:9"}}}


def _told() -> ToldShim:
    return ToldShim({"writer": in_turn("a"), "judge": in_turn(scores(facts=9))})


def _judge(**given: Any) -> Judge:
    usual: dict[str, Any] = {"shim": _told(), "rubric": RUBRIC, "models": EvaluatorPool(["judge"])}
    return Judge(**usual | given)


def _loop(**given: Any) -> Refine:
    usual: dict[str, Any] = {
        "producer": "writer",
        "evaluator": "judge",
        "rubric": RUBRIC,
        "shim": _told(),
    }
    return Refine(**usual | given)


def _memory(folder: Path) -> MemoryStore:
    return MemoryStore(folder / "m.db")


def _step(**given: Any) -> Graph:
    return Graph([Step(**{"name": "one", "run": len, **given})])


def _pipeline(**given: Any) -> Pipeline:
    usual: dict[str, Any] = {"stages": [Stage("one", "m", lambda c: c.input)], "shim": Shim(FAR)}
    return Pipeline(**usual | given)


def _graph(**given: Any) -> Graph:
    usual: dict[str, Any] = {"steps": [Step("one", lambda _: 1)], "shim": Shim(FAR)}
    return Graph(**usual | given)


Door = tuple[Callable[..., Any], dict[str, Any]]


def doors(folder: Path) -> dict[str, Door]:
    """Each public function with arguments that it takes."""
    return _of_evaluation() | _of_memory(folder) | _of_refine(folder) | _of_graphs(folder)


def _of_evaluation() -> dict[str, Door]:
    compressor, text = Compressor(), {"task": "Write.", "answer": "It is so."}
    return {
        "Compressor": (Compressor, {"limit": 300, "measure": len}),
        "Compressor.compress": (compressor.compress, {"text": "x", "about": "y"}),
        "Compressor.for_evaluator": (
            Compressor.for_evaluator,
            {"shim": _told(), "model": "judge", "kv_bytes": 10**6},
        ),
        "Dimension": (
            lambda **given: Rubric([Dimension(**given)]),
            {"name": "a", "description": "b", "weight": 1.0, "anchors": {0: "bad"}},
        ),
        "Rubric": (Rubric, {"dimensions": RUBRIC.dimensions}),
        "EvaluatorPool": (EvaluatorPool, {"models": ["a"], "mode": "panel"}),
        "EvaluatorPool.chosen": (EvaluatorPool(["a"]).chosen, {"run_id": "x"}),
        "Judge": (
            _judge,
            {"shim": _told(), "rubric": RUBRIC, "models": EvaluatorPool(["judge"])}
            | {"compressor": Compressor(), "prompt": lambda _r, t, _a: t, "disagreement_over": 2}
            | {"options": {}, "overridden": ()},
        ),
        "Judge.evaluate": (_judge().evaluate, {**text, "run_id": "x"}),
        "Judge.evaluate_many": (_judge().evaluate_many, {"work": [("a", "b")], "at_once": 1}),
        "Judge.check_repeat": (_judge().check_repeat, text),
        "Judge.check_length": (_judge().check_length, text),
    }


def _of_memory(folder: Path) -> dict[str, Door]:
    memory = _memory(folder)
    return {
        "Passage": (Passage, {"text": "a", "metadata": {}, "quality": 1.0}),
        "MemoryStore": (MemoryStore, {"file": folder / "n.db", "embedder": None, "shim": None}),
        "MemoryStore.add": (memory.add, {"passages": ["a"]}),
        "MemoryStore.delete": (memory.delete, {"ids": [9], "where": None}),
        "MemoryStore.passages": (memory.passages, {"where": {"a": 1}}),
        "MemoryStore.import_jsonl": (memory.import_jsonl, {"file": Path("/dev/null")}),
        "MemoryStore.forget_vectors": (memory.forget_vectors, {"file": folder / "m.db"}),
        "MemoryStore.search": (
            memory.search,
            {"query": "a", "results": 1, "candidates": 2, "where": None, "weights": (1, 1)},
        ),
    }


def _of_refine(folder: Path) -> dict[str, Door]:
    loop = _loop()
    return {
        "Refine": (
            _loop,
            {"producer": "writer", "evaluator": "judge", "rubric": RUBRIC, "threshold": 8}
            | {"max_rounds": 1, "floor": 7, "shim": _told(), "compressor": None}
            | {"prompt": lambda r: r.task, "judge_prompt": lambda _r, t, _a: t}
            | {"overrides": (), "options": None, "judge_options": None},
        ),
        "Refine.run": (loop.run, {"task": "a", "record": None, "progress": None}),
        "Refine.begin": (loop.begin, {"task": "a", "record": None}),
        "Refine.step": (loop.step, {"record": loop.begin("a")}),
        "RefineRecord.from_json": (
            RefineRecord.from_json,
            {"data": loop.begin("a").to_json(), "name": "It"},
        ),
        "RefineRecord.load": (RefineRecord.load, {"file": _saved(loop, folder)}),
        "RefineRecord.save": (loop.begin("a").save, {"file": folder / "r.json"}),
        "run_many": (
            lambda **given: run_many(given.pop("refine"), given.pop("tasks"), **given),
            {"refine": loop, "tasks": ["a"], "records": None, "at_once": 1},
        ),
        "Roles": (Roles, {"models": [_told().describe("judge")], "overrides": ()}),
        "Roles.of": (Roles.of, {"shim": _told(), "overrides": ()}),
        "Roles.names": (Roles([]).names, {"role": "planner"}),
    }


def _of_graphs(folder: Path) -> dict[str, Door]:
    return {
        "Retry": (Retry, {"attempts": 1, "pause_s": 1, "growth": 2, "errors": (OSError,)}),
        "Step": (
            _step,
            {"name": "one", "run": len, "needs": (), "model": (), "over": None, "when": None}
            | {"retry": Retry(), "timeout_s": 1},
        ),
        "Graph": (
            Graph,
            {"steps": [Step("one", lambda _: 1)], "inputs": (), "shim": None, "at_once": 1},
        ),
        "Graph.run": (_graph().run, {"inputs": None, "record": None}),
        "Graph.resume": (_graph().resume, {"record": _journal(folder)}),
        "Stage": (
            lambda **given: _pipeline(stages=[Stage(**given)]),
            {"name": "one", "model": "m", "run": len, "after": None},
        ),
        "Pipeline": (_pipeline, {"stages": [Stage("one", "m", lambda _: 1)], "shim": Shim(FAR)}),
        "Pipeline.run": (_pipeline().run, {"inputs": [1]}),
    }


def _saved(loop: Refine, folder: Path) -> Path:
    loop.begin("a").save(folder / "saved.json")
    return folder / "saved.json"


def _journal(folder: Path) -> Path:
    file = folder / "journal.jsonl"
    file.unlink(missing_ok=True)
    _graph().run(record=file)
    return file


RESULTS = {
    "Compressed", "Evaluation", "Judgement", "Score", "GraphResult", "Outcome", "StepFailed", "StepContext",
    "CaughtUp", "Found", "Hit", "ItemResult", "StageContext", "StageReply", "Round",
}  # fmt: skip
"""What the harness makes itself and gives to its callers."""
TRUTHS = {"self", "cls", "check", "quiet"}
"""Parameters that may be anything: what is true is true."""


def test_every_public_name_has_its_door_here_with_every_parameter(tmp_path: Path) -> None:
    """So that what is added is walked through as well."""
    listed = doors(tmp_path)
    public = {name for name in harness.__all__ if callable(getattr(harness, name))}
    assert {name.partition(".")[0] for name in listed} == public - RESULTS - {"WiggumLoop"}
    for name, (_, given) in listed.items():
        owner, _, method = name.partition(".")
        found = getattr(harness, owner)
        known = inspect.signature(getattr(found, method) if method else found).parameters
        assert set(given) == set(known) - TRUTHS, name


def test_a_wrong_type_at_a_public_door_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parameter of each door in turn; what Python would say of it is never what a caller reads."""
    monkeypatch.chdir(tmp_path)
    raw = list[str]()
    for name, (call, usual) in doors(tmp_path).items():
        call(**usual)
        for parameter in usual:
            for wrong in WRONG:
                try:
                    call(**usual | {parameter: wrong})
                except KeepwarmError:
                    continue
                except Exception as error:
                    raw.append(
                        f"{name}({parameter}={shown(wrong)}): {type(error).__name__}: {error}"
                    )
    assert raw == []


@pytest.mark.parametrize(
    ("door", "parameter", "wrong"),
    [
        ("Compressor", "limit", RUBRIC),
        ("Compressor", "limit", 300.5),
        ("Dimension", "weight", True),
        ("EvaluatorPool", "models", 3),
        ("Compressor", "limit", "200"),
        ("Graph", "at_once", 2.5),
        ("Graph", "shim", "x"),
        ("Judge", "disagreement_over", math.nan),
        ("Judge.evaluate_many", "at_once", True),
        ("MemoryStore.search", "results", True),
        ("Passage", "quality", True),
        ("Pipeline", "stages", "x"),
        ("Refine", "judge_prompt", later),
        ("Refine", "max_rounds", 2.5),
        ("Refine", "max_rounds", True),
        ("Refine", "prompt", later),
        ("Refine", "threshold", 10**400),
        ("Refine", "threshold", "8"),
        ("Refine", "threshold", math.nan),
        ("Refine.run", "task", None),
        ("Retry", "attempts", 0),
        ("Retry", "errors", 3),
        ("Retry", "pause_s", math.inf),
        ("Roles", "models", "x"),
        ("Roles.names", "role", "judge"),
        ("Stage", "after", "a"),
        ("Stage", "run", later),
        ("Step", "retry", 3),
        ("Step", "when", later),
        ("Step", "timeout_s", 0),
        ("run_many", "refine", "x"),
    ],
)
def test_a_mistake_is_refused_with_what_was_found_and_what_is_allowed(
    tmp_path: Path, door: str, parameter: str, wrong: object
) -> None:
    """Nothing is taken for something near: no true for 1, no half of a round, no NaN for a bound."""
    call, usual = doors(tmp_path)[door]
    with pytest.raises(InvalidRequest) as refused:
        call(**usual | {parameter: wrong})
    said = str(refused.value)
    assert type(wrong).__name__ in said or repr(wrong)[:20] in said
    assert "e+" not in said, "a bound that says nothing"
