"""Produce, evaluate, revise: ends, the best round, records, batches, pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from harness import Dimension, EvaluatorPool, Refine, RefineRecord, Rubric, run_many
from harness.progress_bar import progress_bar
from harness.record_files import digest_of
from harness.refine.rendering import html
from harness.side_by_side import threads
from shim import InvalidRequest, LoadFailed, OutsideError, PromptTooLong, RoleViolation
from tests.harness.told import Answer, ToldShim, in_turn, scores
from tests.perfetto import FLOWS, query
from tests.processes import wait_until
from traces import RunTrace

ROOT = Path(__file__).resolve().parents[2]
RUBRIC = Rubric([Dimension("facts", "Right."), Dimension("style", "Reads well.")])


def judged(*composites: float) -> Answer:
    """A judge that gives these composites in turn."""
    return in_turn(*(scores(facts=c, style=c) for c in composites))


def refine(shim: ToldShim, **options: Any) -> Refine:
    """Writer and judge of a told shim."""
    return Refine("writer", "judge", RUBRIC, shim=shim, **options)


def test_it_ends_when_the_composite_passes() -> None:
    """A revision that passes is the last round, and the answer."""
    shim = ToldShim({"writer": in_turn("one", "two", "three"), "judge": judged(5, 8.5)})
    record = refine(shim).run("Write.")
    assert (record.stopped, record.passed, record.answer, record.composite) == (
        "passed",
        True,
        "two",
        8.5,
    )
    assert shim.asked == ["writer", "judge", "writer", "judge"]


def test_the_best_round_is_the_answer_and_not_the_last() -> None:
    """A revision may be worse."""
    shim = ToldShim({"writer": in_turn("one", "two", "three"), "judge": judged(5, 7, 6)})
    record = refine(shim).run("Write.")
    assert (record.stopped, record.answer, record.composite) == ("max_rounds", "two", 7.0)


def test_judges_are_told_what_the_caller_says() -> None:
    """Small judges need words that they know; the producer's are the caller's as well."""
    heard: list[Any] = []

    def judge(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        heard.extend(messages)
        return scores(facts=9, style=9)

    shim = ToldShim({"writer": in_turn("one"), "judge": judge})
    loop = refine(
        shim, judge_prompt=lambda _r, task, text: [{"role": "user", "content": task + text}]
    )
    assert loop.run("Write ").passed
    assert heard == [{"role": "user", "content": "Write one"}]


def test_producer_and_judges_have_options_of_their_own() -> None:
    """A deadline bounds a judge that hangs, too; neither gets the other's."""
    heard: list[tuple[str, object]] = []

    def answers(name: str, text: str) -> Answer:
        def answer(_messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
            heard.append((name, options.get("deadline_s")))
            return text

        return answer

    told = {"writer": answers("writer", "one"), "judge": answers("judge", scores(facts=9, style=9))}
    loop = refine(ToldShim(told), options={"deadline_s": 9}, judge_options={"deadline_s": 5})
    assert loop.run("Write.").passed
    assert heard == [("writer", 9), ("judge", 5)]
    with pytest.raises(InvalidRequest, match="cannot have model"):
        refine(ToldShim(told), judge_options={"model": "writer"})


def test_an_error_has_the_rounds_that_were_finished(tmp_path: Path) -> None:
    """Also without a file; saved into one, the run goes on from them."""
    judge, gone = judged(5, 9), [True]

    def judges_once(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        if "two" in str(messages) and gone[0]:
            raise LoadFailed("no place")
        return judge(messages, options)

    shim = ToldShim({"writer": in_turn("one", "two"), "judge": judges_once})
    with pytest.raises(LoadFailed) as caught:
        refine(shim).run("Write.")
    found = RefineRecord.from_json(caught.value.facts["record"])
    assert [one.produced.text for one in found.rounds] == ["one", "two"]
    found.save(tmp_path / "run.json")
    gone[0] = False
    assert refine(shim).run("Write.", tmp_path / "run.json").answer == "two"
    assert shim.asked == ["writer", "judge", "writer", "judge", "judge"]


def test_two_rounds_without_progress_end_it() -> None:
    """More rounds of the same kind are not worth their seconds."""
    shim = ToldShim({"writer": in_turn(*"abcdefgh"), "judge": judged(6, 5, 6, 9)})
    record = refine(shim, max_rounds=8).run("Write.")
    assert (record.stopped, len(record.rounds), record.answer) == ("no_progress", 3, "a")


def test_a_repeated_answer_ends_it_unjudged() -> None:
    """A producer in a circle would go on for ever; white space does not make a new answer."""
    shim = ToldShim({"writer": in_turn("one", "two", " one\n"), "judge": judged(5, 6)})
    record = refine(shim, max_rounds=9).run("Write.")
    assert (record.stopped, len(record.rounds), record.answer) == ("repeated", 3, "two")
    assert shim.asked.count("judge") == 2


def test_a_revision_is_told_what_was_weak_and_why() -> None:
    """Dimensions under the floor, the weakest first; good ones are not touched."""
    seen: list[str] = []

    def write(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        seen.append(messages[-1]["content"])
        return f"text {len(seen)}"

    first = json.dumps(
        {
            "facts": {"reasons": "the year is wrong", "score": 4},
            "style": {"reasons": "", "score": 9},
        }
    )
    shim = ToldShim({"writer": write, "judge": in_turn(first, scores(facts=9, style=9))})
    assert refine(shim).run("Write.").passed
    assert "- facts (4 of 10): the year is wrong" in seen[1]
    assert "style" not in seen[1]


def test_a_killed_run_goes_on_from_its_record(tmp_path: Path) -> None:
    """What was finished is not asked again; a finished record is returned as it is."""
    file = tmp_path / "run.json"

    def dies(_messages: Any, _options: Any) -> str:
        raise LoadFailed("no engine")

    # Half of a character, as an endpoint's broken JSON escape makes it, is kept like any text.
    broken = ToldShim({"writer": in_turn("one \ud83d", "two"), "judge": dies})
    with pytest.raises(LoadFailed):
        refine(broken).run("Write.", file)
    assert [one.evaluation for one in RefineRecord.load(file).rounds] == [None]
    whole = ToldShim({"writer": in_turn("two"), "judge": judged(5, 9)})
    record = refine(whole).run("Write.", file)
    assert whole.asked == ["judge", "writer", "judge"]
    assert (
        record
        == RefineRecord.load(file)
        == refine(ToldShim(dict(whole.answers))).run("Write.", file)
    )


_LOOP = """
import sys
from pathlib import Path
from harness import Dimension, Refine, Rubric
from tests.harness.told import ToldShim, scores
count = [0]
def write(_messages, _options):
    count[0] += 1
    print(count[0], flush=True)
    return f"text {count[0]}"
shim = ToldShim({"writer": write, "judge": lambda *_: scores(facts=min(9, count[0] / 2), style=0)})
rubric = Rubric([Dimension("facts", "Right."), Dimension("style", "Reads well.")])
loop = Refine("writer", "judge", rubric, shim=shim, max_rounds=10**6)
loop.run("Write.", Path(sys.argv[1]))
"""


def test_a_process_that_is_killed_leaves_a_whole_record(tmp_path: Path) -> None:
    """Killed at any moment: all rounds but perhaps the last one are there, and a run goes on from them.

    Until then the record is that process's, and another run hears so before it asks a model.
    """
    file = tmp_path / "run.json"
    shim = ToldShim({"writer": in_turn("better"), "judge": judged(9)})
    command = [sys.executable, "-c", _LOOP, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(6)]
        with pytest.raises(InvalidRequest, match="Another run works with") as caught:
            refine(shim, max_rounds=10**6).run("Write.", file)
        process.kill()
        assert (caught.value.facts["pid"], shim.asked) == (process.pid, [])
        rounds = int((said + process.stdout.readlines())[-1].strip() or 6)
    record = RefineRecord.load(file)
    assert len(record.rounds) >= rounds - 1 > 3
    went_on = refine(shim, max_rounds=10**6).run("Write.", file)
    assert went_on.rounds[: len(record.rounds) - 1] == record.rounds[:-1]
    assert went_on.passed
    # A kill in the middle of a save leaves what was not the record yet.
    assert {one.suffix for one in tmp_path.iterdir()} <= {".json", ".new"}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data["rounds"][0]["produced"].update(text="mine"), "edited"),
        (lambda data: data.update(version=99), "version 99"),
        (lambda data: data.clear(), "no record of a refined answer: it has no version"),
    ],
)
def test_a_record_that_is_not_ours_is_refused(tmp_path: Path, edit: Any, said: str) -> None:
    """Scores of an edited text would be lies."""
    file = tmp_path / "run.json"
    shim = ToldShim({"writer": in_turn("one"), "judge": judged(9)})
    refine(shim).run("Write.", file)
    data = json.loads(file.read_text("utf-8"))
    edit(data)
    file.write_text(json.dumps(data), "utf-8")
    with pytest.raises(InvalidRequest, match=said):
        refine(shim).run("Write.", file)
    file.write_text("not JSON", "utf-8")
    with pytest.raises(InvalidRequest, match="no record"):
        refine(shim).run("Write.", file)


@pytest.mark.parametrize(
    "change", [{"rounds": 5}, {"rounds": [{}]}, {"settings": {}}, {"notes": None}]
)
def test_a_record_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    """Also where its digest is right, as another program may write it."""
    shim = ToldShim({"writer": in_turn("one"), "judge": judged(9)})
    data = {**refine(shim).run("Write.").to_json(), **change}
    del data["digest"]
    with pytest.raises(InvalidRequest, match="no record"):
        RefineRecord.from_json({**data, "digest": digest_of(data)})


def test_another_task_or_other_settings_do_not_go_on_from_a_record(tmp_path: Path) -> None:
    """The error names what differs."""
    file = tmp_path / "run.json"
    shim = ToldShim({"writer": in_turn("one"), "judge": judged(9)})
    refine(shim).run("Write.", file)
    with pytest.raises(InvalidRequest, match="another task"):
        refine(shim).run("Draw.", file)
    with pytest.raises(InvalidRequest, match="threshold"):
        refine(shim, threshold=9.5).run("Write.", file)


def test_an_evaluator_under_the_floor_needs_its_name_and_record_and_trace_say_so(
    tmp_path: Path,
) -> None:
    """So does the producer as its own judge; an override of no evaluator is a mistake."""
    answers = {"writer": in_turn("one"), "judge": judged(9)}
    shim = ToldShim(answers, bits={"judge": 4.5})
    with pytest.raises(RoleViolation, match="bits per weight"):
        refine(shim)
    with RunTrace(directory=tmp_path) as run:
        record = refine(shim, overrides=["judge"]).run("Write.")
    assert record.settings.overrides == ("judge",)
    assert "judge judged although it is not fit to." in html(record)
    assert run.trace_path is not None
    events = json.loads(run.trace_path.read_text("utf-8"))
    assert [e["args"]["overridden"] for e in events if e.get("name") == "judge"] == [True]
    with pytest.raises(RoleViolation, match="one model"):
        Refine("writer", "writer", RUBRIC, shim=ToldShim(answers))
    with pytest.raises(InvalidRequest, match="no evaluator"):
        refine(ToldShim(answers), overrides=["writer"])
    assert refine(ToldShim(answers), overrides=["judge"]).run("Write.").settings.overrides == ()


def test_a_batch_is_grouped_by_model(tmp_path: Path) -> None:
    """All texts of a round, then all judgements: the order of models changes as rarely as it can."""
    tasks = [f"Write {number}." for number in range(6)]

    def write(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        return f"{messages[0]['content']} {len(messages)}"

    def marks(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        good = "3\n~~~" in messages[-1]["content"]
        return scores(facts=9 if good else 5, style=9 if good else 5)

    shim = ToldShim({"writer": write, "judge": marks})
    records = run_many(refine(shim), tasks, records=tmp_path / "all", quiet=True)
    assert [record.task for record in records] == tasks
    assert all(record.passed for record in records)
    assert shim.asked == ["writer"] * 6 + ["judge"] * 6 + ["writer"] * 6 + ["judge"] * 6
    assert shim.uses.declared == [["writer", "judge"], ["judge", "writer"]] * 2
    again = ToldShim({"writer": write, "judge": marks})
    assert run_many(refine(again), tasks, records=tmp_path / "all", quiet=True) == records
    assert again.asked == []


def test_models_that_take_turns_are_said_with_their_bytes(caplog: pytest.LogCaptureFixture) -> None:
    """What fits is computed; nothing is said where both fit."""
    shim = ToldShim({"writer": in_turn("text"), "judge": judged(9)})
    with caplog.at_level("INFO", "keepwarm.harness"):
        run_many(refine(shim), ["Write."], quiet=True)
        assert caplog.messages == []
        shim.limit = 100
        (record,) = run_many(refine(shim), ["Write again."], quiet=True)
        assert record.notes == tuple(caplog.messages)
    assert refine(shim).run("Write alone.").notes == record.notes
    assert caplog.messages[0] in html(record)
    assert (
        "writer takes 60 bytes of host, judge takes 60 bytes of host; the limit is 100 bytes"
        in (caplog.messages[0])
    )


def test_a_judge_that_cannot_be_looked_at_is_said_to_be_unchecked() -> None:
    """Its file is on another machine."""
    shim = ToldShim({"writer": in_turn("text"), "judge": judged(9)}, far=["judge"])
    said = "judge: precision unchecked, because it cannot be read."
    assert refine(shim).run("Write.").notes == (said,)
    assert [record.notes for record in run_many(refine(shim), ["Write."], quiet=True)] == [(said,)]


def test_a_failure_in_a_batch_keeps_what_was_finished(tmp_path: Path) -> None:
    """The next run goes on from there."""

    def write(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        if "2" in messages[0]["content"]:
            raise LoadFailed("no engine")
        return "text"

    shim = ToldShim({"writer": write, "judge": judged(9)})
    with pytest.raises(LoadFailed):
        run_many(refine(shim), ["Write 1.", "Write 2."], records=tmp_path, at_once=1, quiet=True)
    assert [RefineRecord.load(file).task for file in tmp_path.iterdir()] == ["Write 1."]


@pytest.mark.parametrize("where", ["writer", "judge", "an empty text"])
def test_a_task_that_cannot_be_done_ends_by_itself(tmp_path: Path, where: str) -> None:
    """The others pass; its record says why, and its file is as before, so that it is tried again."""

    def write(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        if "2" in messages[0]["content"] and where != "judge":
            if where == "writer":
                raise PromptTooLong("too long")
            return ""
        return f"text for {messages[0]['content']}"

    def marks(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        if "2" in messages[1]["content"] and where == "judge":
            raise PromptTooLong("too long")
        return scores(facts=9, style=9)

    tasks = [f"Write {number}." for number in range(1, 5)]
    shim = ToldShim({"writer": write, "judge": marks})
    records = run_many(refine(shim), tasks, records=tmp_path, quiet=True)
    assert [record.stopped for record in records] == ["passed", "failed", "passed", "passed"]
    assert ("too long" in records[1].notes[-1]) == (where != "an empty text")
    assert escape(records[1].notes[-1]) in html(records[1])
    with pytest.raises(
        InvalidRequest, match=r"No round of this record was judged yet\. The run failed"
    ):
        _ = records[1].answer
    kept = [RefineRecord.load(file) for file in tmp_path.iterdir()]
    assert {record.stopped for record in kept if record.task != "Write 2."} == {"passed"}
    assert all(record.stopped is None for record in kept if record.task == "Write 2.")


def test_a_batch_of_which_no_task_can_be_done_is_an_error(tmp_path: Path) -> None:
    """It is no single task's failure then."""

    def write(*_: Any) -> str:
        raise PromptTooLong("too long")

    shim = ToldShim({"writer": write, "judge": judged(9)})
    with pytest.raises(PromptTooLong):
        run_many(refine(shim), ["Write 1.", "Write 2."], records=tmp_path, quiet=True)


def test_a_batch_keeps_each_step_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """A kill in the middle of a phase loses only what was under way."""

    def write(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        if "2" in messages[0]["content"]:
            assert wait_until(lambda: any(tmp_path.iterdir()))
        return "text"

    def marks(messages: Sequence[Mapping[str, Any]], _options: Mapping[str, Any]) -> str:
        if "2" in messages[1]["content"]:
            assert wait_until(lambda: any(b"passed" in f.read_bytes() for f in tmp_path.iterdir()))
        return scores(facts=9, style=9)

    shim = ToldShim({"writer": write, "judge": marks})
    records = run_many(refine(shim), ["Write 2.", "Write 1."], records=tmp_path, quiet=True)
    assert [record.stopped for record in records] == ["passed", "passed"]


def test_a_panel_reads_a_batch_judge_by_judge() -> None:
    """Judges that take turns for their bytes are loaded once a round, not once a text."""
    shim = ToldShim({"writer": in_turn("text"), "a": judged(9), "b": judged(9)})
    loop = Refine("writer", EvaluatorPool(["a", "b"], "panel"), RUBRIC, shim=shim)
    run_many(loop, ["one", "two", "three"], quiet=True)
    assert shim.asked == ["writer"] * 3 + ["a"] * 3 + ["b"] * 3


def test_the_bar_of_a_batch_ends_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where tasks pass before their last round; outside a terminal nothing is shown."""
    seen: list[tuple[str, int | None, int]] = []
    told: list[str] = []

    @contextmanager
    def bar(what: str, total: int | None, *, quiet: bool) -> Iterator[Any]:
        done: list[int] = []
        assert not quiet

        def advance(steps: int, what: str) -> None:
            done.append(steps)
            told.append(what)

        yield advance
        seen.append((what, total, sum(done)))

    monkeypatch.setattr("harness.refine.batch.progress_bar", bar)
    shim = ToldShim({"writer": in_turn(*"abcdef"), "judge": judged(9, 5, 9)})
    run_many(refine(shim), ["one", "two"], at_once=1)
    assert seen == [("0 of 2 tasks done", 12, 12)]
    assert told[0] == "0 of 2 tasks done"
    assert "1 of 2 tasks done" in told
    assert told[-1] == "2 of 2 tasks done"


def test_progress_is_shown_in_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that a pipe gets answers only."""

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    for stream, quiet, shown in (
        (StringIO(), False, False),
        (Terminal(), True, False),
        (Terminal(), False, True),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar("steps", 2, quiet=quiet) as advance:
            advance(1, "facts, verdict")
        assert ("1/2" in stream.getvalue()) == shown
        assert ("facts, verdict" in stream.getvalue()) == shown


def test_an_interrupt_drops_work_that_has_not_begun() -> None:
    """What is under way is waited for; a second interrupt would end that."""
    begun, ran = Event(), list[int]()

    def work(number: int) -> None:
        ran.append(number)
        begun.wait(10)

    def interrupted() -> None:
        with threads(1, "t") as pool:
            for number in range(9):
                pool.submit(work, number)
            assert wait_until(lambda: ran == [0])
            begun.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(ran) < 9


@pytest.mark.parametrize(
    "options", [{"threshold": 11}, {"max_rounds": 0}, {"floor": -1}, {"threshold": float("nan")}]
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """Before anything is asked."""
    with pytest.raises(InvalidRequest):
        refine(ToldShim({"writer": in_turn("x"), "judge": judged(9)}), **options)


@pytest.mark.parametrize("place", ["none/run.json", "folder", "file/run.json", "a" * 300])
def test_a_record_that_cannot_be_kept_is_noticed_before_anything_is_asked(
    tmp_path: Path, place: str
) -> None:
    """No folder, a folder of that name, a file in its place, a name that no file can have."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    shim = ToldShim({"writer": in_turn("x"), "judge": judged(9)})
    with pytest.raises(OutsideError, match="Nothing was run"):
        refine(shim).run("Write.", tmp_path / place)
    with pytest.raises(OutsideError, match="Nothing was run"):
        run_many(refine(shim), ["Write."], records=tmp_path / "file" / "records", quiet=True)
    assert shim.asked == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_arrows_join_the_steps_of_each_task_on_the_trace(tmp_path: Path) -> None:
    """From a text to its evaluation and from there to its revision, and not to another task's."""
    shim = ToldShim({"writer": in_turn("one", "two", "three"), "judge": judged(5, 8.5, 9)})
    with RunTrace(directory=tmp_path) as run:
        refine(shim).run("Write.")
        refine(shim).run("Write more.")
    assert run.trace_path is not None
    arrows = [row for row in query(run.trace_path, FLOWS) if row["flow"] == "next"]
    assert [(row["source"], row["target"]) for row in arrows] == [
        ("produce", "evaluate"),
        ("evaluate", "revise"),
        ("revise", "evaluate"),
        ("produce", "evaluate"),
    ]


def test_empty_and_doubled_tasks_are_refused() -> None:
    """Two equal tasks would share a record."""
    loop = refine(ToldShim({"writer": in_turn("x"), "judge": judged(9)}))
    with pytest.raises(InvalidRequest, match="empty"):
        loop.run(" ")
    with pytest.raises(InvalidRequest, match="twice"):
        run_many(loop, ["a", "a"], quiet=True)
