"""Records of runs: one run at a time, files that are none, and what was finished is never lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.machine.files import file_locks
from backends.machine.files.whole_files import write_whole
from harness import (
    Dimension,
    Graph,
    MemoryStore,
    Refine,
    RefineRecord,
    Rubric,
    Step,
    StepContext,
    run_many,
)
from harness.graphs.journal import Journal
from harness.progress_bar import progress_bar
from harness.record_files import owned
from harness.refine import batch
from harness.refine import record as records
from harness.refine.refine import run_id
from shim import EndpointError, InvalidRequest, KeepwarmError, OutsideError, Shim, UnknownModel
from tests.harness.told import ToldShim, in_turn, scores

RUBRIC = Rubric([Dimension("facts", "Right.")])


def loop(*texts: str, judge: Any = None, **options: Any) -> Refine:
    """A loop whose writer answers these texts; its judge is never content."""
    low = [scores(facts=score) for score in (5, 5.5, 6, 6.5)]
    answers = {"writer": in_turn(*texts), "judge": judge or in_turn(*low)}
    return Refine("writer", "judge", RUBRIC, shim=ToldShim(answers), **options)


def stuck(path: Path) -> Path:
    """A file that no record can be in: a FIFO, which would wait for a reader for ever."""
    os.mkfifo(path)
    return path


def test_what_is_no_regular_file_is_never_replaced_by_a_record(tmp_path: Path) -> None:
    """A record called /dev/null took its place for the whole machine, where root ran it."""
    fifo = stuck(tmp_path / "fifo")
    link = tmp_path / "link"
    link.symlink_to(fifo)
    for place in (fifo, link):
        with pytest.raises(OutsideError, match="no regular file"):
            loop("one").run("Write.", record=place)
        with pytest.raises(OutsideError, match="not a regular file"):
            RefineRecord.load(place)
    graph = Graph([Step("a", lambda _: 1)], shim=ToldShim({}))
    with pytest.raises(OutsideError, match="not a regular file"):
        graph.resume(fifo)
    assert fifo.is_fifo()
    assert link.is_symlink()


def test_a_record_behind_a_link_is_written_where_the_link_leads(tmp_path: Path) -> None:
    """The link was replaced, and the file on the large disk stayed as it was."""
    (tmp_path / "link").symlink_to(tmp_path / "far")
    loop("one", max_rounds=1).run("Write.", record=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert RefineRecord.load(tmp_path / "far").answer == "one"


@pytest.mark.parametrize("name", ["a\0b", "\ud800", ""])
def test_a_name_that_no_record_can_have_is_refused_before_anything_runs(name: str) -> None:
    """It was found out when the first text was to be kept, which was lost then."""
    one = loop("one")
    graph = Graph([Step("a", lambda _: 1)], shim=ToldShim({}))
    calls: list[Any] = [
        lambda: one.run("Write.", record=name),
        lambda: RefineRecord.load(name),
        lambda: graph.resume(name),
        lambda: graph.run(record=name),
    ]
    for call in calls:
        with pytest.raises(KeepwarmError):
            call()
    assert isinstance(one.shim, ToldShim)
    assert one.shim.asked == []


def nested(file: Path, other: Callable[[], Any]) -> tuple[Refine, list[KeepwarmError]]:
    """A loop that works with the record `file`, while whose writer answers `other` runs, and its errors."""
    refused: list[KeepwarmError] = []

    def writes(_messages: Any, _options: Any) -> str:
        try:
            other()
        except KeepwarmError as error:
            refused.append(error)
        return "ours"

    mine = loop("", max_rounds=1)
    assert isinstance(mine.shim, ToldShim)
    mine.shim.answers["writer"] = writes
    return mine, refused


def test_a_record_is_one_runs_alone_from_its_start(tmp_path: Path) -> None:
    """Two runs that saved in one instant both wrote, and the other one was told at its next save."""
    file, theirs = tmp_path / "run.json", loop("theirs", max_rounds=1)
    (tmp_path / "link").symlink_to(file)
    mine, refused = nested(file, lambda: theirs.run("Write.", record=tmp_path / "link"))
    assert mine.run("Write.", record=file).answer == "ours"
    assert "Another run works with" in str(refused[0])
    assert f"process {os.getpid()} of" in str(refused[0])
    assert refused[0].facts["pid"] == os.getpid()
    assert isinstance(theirs.shim, ToldShim)
    assert theirs.shim.asked == []
    assert RefineRecord.load(file).answer == "ours"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["link", "run.json"]
    assert theirs.run("Write.", record=file).answer == "ours"


def test_a_task_whose_record_another_run_has_fails_by_itself(tmp_path: Path) -> None:
    """The other tasks of the batch go on; where it is the only one, the batch ends with the error."""
    found: list[RefineRecord] = []
    theirs = loop("theirs", "theirs", max_rounds=1)

    def batches() -> None:
        found.extend(run_many(theirs, ["Write.", "Write too."], records=tmp_path, at_once=1))
        run_many(theirs, ["Write."], records=tmp_path)

    mine, refused = nested(tmp_path, batches)
    assert run_many(mine, ["Write."], records=tmp_path)[0].answer == "ours"
    assert [one.stopped for one in found] == ["failed", "max_rounds"]
    assert "Another run works with" in found[0].notes[-1]
    assert "Another run works with" in str(refused[0])
    assert len(list(tmp_path.iterdir())) == 2


def test_the_lock_of_a_killed_run_goes_also_where_its_record_had_ended(tmp_path: Path) -> None:
    """A batch that is killed leaves a lock for each task; the next one takes up only those that go on."""
    tasks = ["Write.", "Write too."]
    run_many(loop("one", "two", max_rounds=1), tasks, records=tmp_path, quiet=True)
    records = sorted(tmp_path.iterdir())
    for record in records:
        record.with_name(f".{record.name}.lock").touch()
    run_many(loop("", max_rounds=1), tasks, records=tmp_path, quiet=True)
    assert sorted(tmp_path.iterdir()) == records
    records[0].with_name(f".{records[0].name}.lock").touch()
    task = RefineRecord.load(records[0]).task
    assert loop("", max_rounds=1).run(task, record=records[0]).stopped == "max_rounds"
    assert sorted(tmp_path.iterdir()) == records
    with owned(records[0]):
        loop("", max_rounds=1).run(task, record=records[0])
        assert len(list(tmp_path.iterdir())) == 3, "that of a run at work stays"


def test_a_child_that_was_forked_leaves_its_parents_record_alone(tmp_path: Path) -> None:
    """It ended with the lock file of its parent, beside which another run could make a new one."""
    with owned(tmp_path / "run.json"):
        file_locks._release_after_fork()  # what the system calls in the child
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir())


@pytest.mark.real
def test_a_batch_of_more_records_than_open_files_raises_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record that a run owns is an open file, and many systems allow 1,024 unless asked."""
    monkeypatch.setattr(batch, "MANY_RECORDS", 2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(fd.name) for fd in Path("/dev/fd").iterdir()) + 10
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    tasks = [f"task {n}" for n in range(20)]
    try:
        found = run_many(loop(*tasks, max_rounds=1), tasks, records=tmp_path, at_once=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert {one.stopped for one in found} == {"max_rounds"}


def test_where_no_lock_can_be_made_nothing_is_run(tmp_path: Path) -> None:
    """A folder has the name of the lock file, or the name would be too long for one."""
    (tmp_path / ".run.json.lock").mkdir()
    one, graph = loop("one"), Graph([Step("a", lambda _: 1)], shim=ToldShim({}))
    for name in ("run.json", "r" * 252):
        with pytest.raises(OutsideError, match="No other run can be kept from"):
            one.run("Write.", record=tmp_path / name)
        with pytest.raises(OutsideError, match="No other run can be kept from"):
            graph.run(record=tmp_path / name)
    assert isinstance(one.shim, ToldShim)
    assert one.shim.asked == []


def test_without_locks_a_run_ends_where_another_wrote_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that comes later with its step is refused; the other one's rounds stay."""

    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    file = tmp_path / "run.json"
    mine, _ = nested(file, lambda: loop("theirs", max_rounds=1).run("Write.", record=file))
    with pytest.raises(InvalidRequest, match="written by another run"):
        mine.run("Write.", record=file)
    assert RefineRecord.load(file).answer == "theirs"
    assert list(tmp_path.iterdir()) == [file]
    folder, tasks = tmp_path / "many", ["Write.", "Write too."]
    others = iter([tasks[:1], tasks[:1]])
    mine, refused = nested(
        folder,
        lambda: run_many(loop("theirs", max_rounds=1), next(others, []), records=folder),
    )
    found = run_many(mine, tasks, records=folder, at_once=1)
    assert [one.stopped for one in found] == ["failed", "max_rounds"]
    assert "written by another run" in found[0].notes[-1]
    assert refused == []
    graph = Graph([Step("a", lambda _: 1)], shim=ToldShim({}))
    assert graph.run(record=tmp_path / "run.jsonl")["a"] == 1


def test_a_journal_is_one_runs_alone(tmp_path: Path) -> None:
    """A run that is resumed while it still works did everything twice."""
    file = tmp_path / "run.jsonl"

    def again(_: StepContext) -> str:
        with pytest.raises(InvalidRequest, match="Another run works with"):
            graph.resume(file)
        return "once"

    graph = Graph([Step("a", again)], shim=ToldShim({}))
    assert graph.run(record=file)["a"] == "once"
    assert graph.resume(file)["a"] == "once"
    read = Journal.load(file, graph.steps)
    file.write_bytes(file.read_bytes() + b'{"key": "half of ano')
    with pytest.raises(InvalidRequest, match="written by another run since"), read:
        pass
    assert file.read_bytes().endswith(b"half of ano")
    with Journal.load(file, graph.steps):
        assert file.read_bytes().endswith(b"\n")


def test_a_full_disk_is_a_typed_error_and_the_record_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an OSError without a file or a hint."""
    file = tmp_path / "run.json"
    left = [1]

    def full(path: Path, data: bytes) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        write_whole(path, data)

    monkeypatch.setattr(records, "write_whole", full)
    with pytest.raises(OutsideError, match="No space left on device") as caught:
        loop("one", "two").run("Write.", record=file)
    assert caught.value.facts["file"] == str(file)
    assert RefineRecord.load(file).rounds[0].evaluation is None
    assert RefineRecord.from_json(caught.value.facts["record"]).rounds[0].evaluation is not None


@pytest.mark.parametrize("content", [b"", b'{"version": 1, "gra'])
def test_a_journal_whose_first_line_was_cut_says_that_it_holds_nothing(
    tmp_path: Path, content: bytes
) -> None:
    """A kill or a full disk cut it; a newer keepwarm was said to have written it."""
    file = tmp_path / "run.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match="nothing of a run") as caught:
        Graph([Step("a", lambda _: 1)], shim=ToldShim({})).resume(file)
    assert "Remove the file" in str(caught.value)


@pytest.mark.parametrize("given", [{1: "a"}, (1, 2), {"a": (1,)}, [{2.5: 1}], {True: 1}])
def test_inputs_that_would_come_back_as_others_are_refused(tmp_path: Path, given: Any) -> None:
    """A resumed run got the key "1" where the first one had 1: a task that differs without a word."""
    graph = Graph([Step("a", lambda step: repr(step["x"]), ["x"])], ["x"], shim=ToldShim({}))
    with pytest.raises(InvalidRequest, match="cannot be kept"):
        graph.run({"x": given}, record=tmp_path / "run.jsonl")
    assert list(tmp_path.iterdir()) == []
    assert graph.run({"x": given})["a"] == repr(given)


@pytest.mark.real
def test_a_program_without_free_descriptors_removes_no_record_of_another_run(
    tmp_path: Path,
) -> None:
    """Linux refuses such a file before it looks whether one is there; nothing was run, nothing is lost."""
    file, steps = tmp_path / "run.jsonl", [Step("a", lambda _: 1)]
    Journal.begin(file, steps, {}).keep("a", 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OutsideError, match="Too many open files"):
            Journal.begin(file, steps, {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert Journal.load(file, steps).known["a"] == 1


@pytest.mark.real
def test_a_disk_that_was_full_for_a_moment_leaves_a_record_that_can_be_resumed(
    tmp_path: Path,
) -> None:
    """Half of a line stayed, the next result was written behind it, and no run could read either."""
    file, steps = tmp_path / "run.jsonl", [Step("a", lambda _: 1), Step("b", lambda _: 2)]
    journal = Journal.begin(file, steps, {})
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OutsideError, match="cannot be kept"):
            journal.keep("a", "x" * 100)
        full = tmp_path / "full.jsonl"
        with pytest.raises(OutsideError, match="Nothing was run"):
            Journal.begin(full, steps, {"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not full.exists()
    journal.keep("b", 2)
    assert Journal.load(file, steps).known == {"b": 2}


def test_inputs_that_are_too_deep_for_a_record_are_refused(tmp_path: Path) -> None:
    """They ended in a RecursionError."""
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 5):
        deep = [deep]
    graph = Graph([Step("a", lambda _: 1, ["x"])], ["x"], shim=ToldShim({}))
    with pytest.raises(InvalidRequest, match="cannot be kept"):
        graph.run({"x": deep}, record=tmp_path / "run.jsonl")


def test_a_result_that_cannot_be_kept_names_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step itself had not failed, but its error said so."""
    journal = Journal.begin(tmp_path / "run.jsonl", [Step("a", lambda _: 1)], {})

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutsideError, match=r"cannot be kept in .*run.jsonl: No space left"):
        journal.keep("a", 1)


def test_an_empty_answer_is_told_and_does_not_spoil_the_record(tmp_path: Path) -> None:
    """Its record could never be gone on with: a text of nothing stood there to be judged."""
    file = tmp_path / "run.json"
    with pytest.raises(EndpointError, match="writer answered nothing"):
        loop("one", "  ").run("Write.", record=file)
    assert [one.produced.text for one in RefineRecord.load(file).rounds] == ["one"]
    assert loop("two", max_rounds=3).run("Write.", record=file).stopped
    found = run_many(loop("  ", "one", max_rounds=1), ["first", "second"], at_once=1)
    assert [one.stopped for one in found] == ["failed", "max_rounds"]


def test_an_empty_text_of_an_older_record_is_written_anew(tmp_path: Path) -> None:
    """Such records are there already."""
    file = tmp_path / "run.json"
    one = loop("one", max_rounds=1)
    one.begin("Write.").with_text(records.Produced(" \n")).save(file)
    assert one.run("Write.", record=file).answer == "one"


def test_half_a_character_in_a_judges_reasons_leaves_the_record_readable(tmp_path: Path) -> None:
    """The record was no UTF-8, which other programs that read JSON refuse."""
    file = tmp_path / "run.json"
    said = json.dumps({"facts": {"reasons": "\ud800", "score": 9}})
    loop("one", judge=in_turn(said)).run("Write.", record=file)
    assert json.loads(file.read_text("utf-8"))["stopped"] == "passed"
    assert RefineRecord.load(file).passed


def test_steps_out_of_their_order_are_typed_errors(tmp_path: Path) -> None:
    """A record without a text has nothing to judge, and one that is not there is none."""
    one = loop("one")
    with pytest.raises(InvalidRequest, match="no text that is to be judged"):
        one.judged(one.begin("Write."))
    with pytest.raises(InvalidRequest, match="cannot be 5"):
        one.is_to_judge(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="is not there"):
        RefineRecord.load(tmp_path / "run.json")
    with pytest.raises(OutsideError, match="cannot be written"):
        one.begin("Write.").save(tmp_path / "none" / "run.json")


def test_tasks_can_be_given_one_after_the_other() -> None:
    """A generator of tasks has no length."""
    found = run_many(loop("one", max_rounds=1), (f"task {n}" for n in range(2)))  # type: ignore[arg-type]
    assert [one.task for one in found] == ["task 0", "task 1"]


def test_a_program_without_stderr_has_no_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was started with it closed, as a service may be, failed at its first batch."""
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar("steps", 2) as advance:
        advance(1)


def test_a_records_text_is_not_taken_for_a_record_without_a_version() -> None:
    """What `to_json` gives is data; its text has to be parsed, and the error says so."""
    text = json.dumps(loop("one", max_rounds=1).run("Write.").to_json())
    with pytest.raises(InvalidRequest, match="is text") as error:
        RefineRecord.from_json(text)
    assert "RefineRecord.load" in error.value.hint
    assert RefineRecord.from_json(json.loads(text)).answer == "one"


def test_a_folder_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    """The error named a file of its own in that folder, or said that a database cannot be opened."""
    file = tmp_path / "nowhere" / "run.json"
    for begin in (
        lambda: loop("one", max_rounds=1).run("Write.", record=file),
        lambda: Graph([Step("a", lambda _: 1)]).run(record=file),
        lambda: MemoryStore(file),
    ):
        with pytest.raises(OutsideError, match=f"there is no folder {file.parent}") as error:
            begin()
        assert error.value.hint.startswith("Make the folder")
        assert "Errno" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_embedder_leaves_no_memory_behind(tmp_path: Path) -> None:
    """The file was made before the model was looked up."""
    with Shim({}) as shim, pytest.raises(UnknownModel):
        MemoryStore(tmp_path / "m.db", "nothing", shim=shim)
    assert list(tmp_path.iterdir()) == []


def test_a_tasks_record_is_found_by_its_first_words(tmp_path: Path) -> None:
    """A folder of hashes says nothing. Tasks that begin alike, or in another script, have their own."""
    tasks = [
        "Write a Report on Paul / his pets!",
        "Write a report on Paul. His pets?",
        "写一份报告",
        "../x",
    ]
    run_many(loop("one", max_rounds=1), tasks, records=tmp_path, quiet=True)
    names = sorted(one.name for one in tmp_path.iterdir())
    assert [name[:-21].rstrip("-") for name in names] == [
        "",
        "write-a-report-on-paul-his-pets",
        "write-a-report-on-paul-his-pets",
        "x",
    ]
    assert {RefineRecord.load(one).task for one in tmp_path.iterdir()} == set(tasks)


def test_a_batch_goes_on_with_records_that_an_earlier_keepwarm_named(tmp_path: Path) -> None:
    """They had the hash alone for a name: all of a folder's work would be done again beside them."""
    run_many(loop("one", max_rounds=1), ["Write."], records=tmp_path, quiet=True)
    (record,) = tmp_path.iterdir()
    earlier = record.rename(tmp_path / f"{run_id('Write.')[:32]}.json")
    again = loop("two", max_rounds=1)
    assert run_many(again, ["Write."], records=tmp_path, quiet=True)[0].answer == "one"
    assert isinstance(again.shim, ToldShim)
    assert again.shim.asked == []
    assert list(tmp_path.iterdir()) == [earlier]


def test_a_place_that_cannot_be_looked_at_is_a_typed_error(tmp_path: Path) -> None:
    """Looking whether its folder is there failed as well, with the system's own error."""
    place = tmp_path / ("r" * 300) / "in"
    for begin in (
        lambda: loop("one", max_rounds=1).run("Write.", record=place),
        lambda: run_many(loop("one", max_rounds=1), ["Write."], records=place / "in"),
        lambda: Graph([Step("a", lambda _: 1)]).run(record=place),
        lambda: MemoryStore(place),
    ):
        with pytest.raises(OutsideError, match="File name too long") as error:
            begin()
        assert "Make the folder" not in error.value.hint
    done, file = loop("one", max_rounds=1).run("Write."), tmp_path / ("r" * 252)
    file.write_text(json.dumps(done.to_json()))
    assert loop("two", max_rounds=1).run("Write.", record=file) == done, "no room for a lock's name"


def test_a_file_that_is_no_record_is_named_by_the_errors_facts(tmp_path: Path) -> None:
    """A program that reads many records knows which one to leave out."""
    file = tmp_path / "run.json"
    file.write_text("no JSON")
    with pytest.raises(InvalidRequest, match="no record of a refined answer") as error:
        RefineRecord.load(file)
    assert error.value.facts["file"] == str(file)
