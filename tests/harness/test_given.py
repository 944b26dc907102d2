"""What a caller gives to the harness: lists that are no texts, and files by a path or a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Dimension,
    EvaluatorPool,
    Graph,
    MemoryStore,
    Pipeline,
    Refine,
    RefineRecord,
    Rubric,
    Stage,
    Step,
    run_many,
)
from shim import InvalidRequest, Shim
from tests.harness.told import ToldShim, in_turn, scores

RUBRIC = Rubric([Dimension("facts", "Right.")])
FAR: dict[str, Any] = {"models": {"m": {"url": "http://127.0.0.1:9"}}}


def _loop() -> Refine:
    judge = in_turn(*(scores(facts=9) for _ in range(3)))
    return Refine(
        "writer", "judge", RUBRIC, shim=ToldShim({"writer": in_turn("a"), "judge": judge})
    )


def _pipeline() -> Pipeline:
    return Pipeline([Stage("one", "m", lambda c: c.input)], shim=Shim(FAR))


@pytest.mark.parametrize(
    "asked",
    [
        lambda text, _: run_many(_loop(), text, quiet=True),
        lambda text, _: EvaluatorPool(text),
        lambda text, _: Rubric(text),
        lambda text, _: Graph(text),
        lambda text, _: Graph([Step("one", lambda c: c)], inputs=text),
        lambda text, _: Graph([Step("one", lambda c: c, needs=text)], inputs=["abc"]),
        lambda text, _: _pipeline().run(text),
        lambda text, folder: MemoryStore(folder / "m.db").add(text),
        lambda text, folder: MemoryStore(folder / "m.db").delete(text),
        lambda text, _: Shim(FAR).fit_together(text),
    ],
)
def test_a_text_is_not_taken_for_a_list_of_its_letters(
    asked: Callable[[Any, Path], object], tmp_path: Path
) -> None:
    """Nothing is kept or asked, and the error quotes the text."""
    with pytest.raises(InvalidRequest, match="'abc'"):
        asked("abc", tmp_path)
    if (tmp_path / "m.db").exists():
        assert len(MemoryStore(tmp_path / "m.db")) == 0


@pytest.mark.parametrize(
    "asked",
    [
        lambda number, _: EvaluatorPool(["a"]).chosen(number),
        lambda number, _: Graph([Step("one", lambda c: c)], at_once=-number),
        lambda number, _: Rubric([Dimension("facts", "Right.", weight=number)]),
        lambda number, folder: MemoryStore(folder / "m.db").search("a", where={"n": number}),
    ],
)
def test_a_number_of_too_many_digits_to_be_written_is_refused_typed(
    asked: Callable[[int, Path], object], tmp_path: Path
) -> None:
    """The error quoted it, and ended in Python's ValueError."""
    with pytest.raises(InvalidRequest):
        asked(10**5000, tmp_path)


@pytest.mark.parametrize("asked", [EvaluatorPool, Rubric, Graph, Pipeline])
def test_what_is_used_up_by_a_look_is_looked_into_as_it_is_used(
    asked: Callable[[Any], object],
) -> None:
    """A generator was taken as it came, and its first wrong value was an `AttributeError`."""
    with pytest.raises(InvalidRequest, match=r"^One of .* cannot be 3 \(int\)"):
        asked(iter([3]))


def test_overrides_that_are_used_up_by_a_look_hold() -> None:
    """The judge was refused for its precision although it was named, and a wrong name was a `TypeError`."""
    shim = ToldShim({"p": in_turn("one"), "j": in_turn(scores(facts=9))}, bits={"j": 4.5})
    loop = Refine("p", "j", RUBRIC, shim=shim, overrides=iter(["j"]))  # type: ignore[arg-type]
    assert loop.run("Write.").settings.overrides == ("j",)
    with pytest.raises(InvalidRequest, match=r"One of the overrides cannot be 3 \(int\)"):
        Refine("p", "j", RUBRIC, shim=shim, overrides=iter([3]))  # type: ignore[arg-type]


def test_what_is_no_list_at_all_is_refused_by_its_type(tmp_path: Path) -> None:
    """A number where ids are due."""
    with pytest.raises(InvalidRequest, match=r"The ids cannot be 1 \(int\).*Give a list"):
        MemoryStore(tmp_path / "m.db").delete(1)  # type: ignore[arg-type]


def test_files_may_be_named_by_a_text(tmp_path: Path) -> None:
    """A record of the loop, the journal of a graph, a memory, and lines to import."""
    record = str(tmp_path / "run.json")
    done = _loop().run("Write.", record=record)
    assert RefineRecord.load(record) == done
    assert _loop().run("Write.", record=record) == done
    graph, journal = Graph([Step("one", lambda _: 1)], shim=Shim(FAR)), str(tmp_path / "g.jsonl")
    assert graph.run(record=journal)["one"] == graph.resume(journal)["one"] == 1
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "a passage"}\n')
    assert MemoryStore(str(tmp_path / "m.db")).import_jsonl(str(lines), quiet=True) == 1


def test_a_record_that_cannot_be_gone_on_from_is_named(tmp_path: Path) -> None:
    """One that was edited, and a journal that is not there."""
    record = tmp_path / "run.json"
    _loop().run("Write.", record=record)
    record.write_text(record.read_text().replace("Write.", "Wrote."))
    with pytest.raises(InvalidRequest, match=r"run\.json was edited"):
        _loop().run("Write.", record=record)
    with pytest.raises(InvalidRequest, match=r"none\.jsonl is not there"):
        Graph([Step("one", lambda _: 1)], shim=Shim(FAR)).resume(tmp_path / "none.jsonl")
