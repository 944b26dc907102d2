"""What `keepwarm trace` makes of files and folders that are not as they should be."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shim.cli import main
from shim.cli.commands.trace import command
from tests.traces.support import events, load, now, request
from traces import RunTrace
from traces.chrome.perfetto import TraceServer
from traces.processes.late_parts import _cut_end, _there
from traces.reading.stored_events import BadTrace, TraceFile


def trace(*words: str | Path) -> Result:
    """The command."""
    return CliRunner().invoke(main, ["trace", *map(str, words)])


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is served: `trace open` would wait for Ctrl-C."""
    monkeypatch.setattr(command, "open_trace", lambda *_args, **_more: None)


def recorded(folder: Path, name: str) -> Path:
    """The trace of a run with three requests."""
    with RunTrace(name, folder) as run:
        for number in range(3):
            run.request(request(f"{name}{number}", now()))
    assert run.trace_path is not None
    return run.trace_path


# -- NULs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nuls", [1, 5000, 20_000_000])
@pytest.mark.parametrize("cut", [0, 1, 3, 40])
def test_a_file_with_nuls_for_its_end_is_read_up_to_them(
    tmp_path: Path, nuls: int, cut: int
) -> None:
    """A power loss leaves them, as many as there were bytes not written yet."""
    file = recorded(tmp_path, "r")
    whole, data = events(file), file.read_bytes().removesuffix(b"\n]\n")
    file.write_bytes(data[: len(data) - cut] + b"\0" * nuls)
    read = TraceFile(file)
    found = list(read.events())
    assert found == whole[: len(whole) - bool(cut)]
    assert (read.nuls, read.cut > 1) == (True, True)


def test_nuls_are_said_and_the_engine_reads_up_to_them_too(tmp_path: Path) -> None:
    """By `summary`, by `sql`, and by the page that `open` shows; `merge` makes a whole file of it."""
    file = recorded(tmp_path, "r")
    data = file.read_bytes()
    file.write_bytes(data[:-9] + b"\0" * 9000)
    for words in (("summary", file), ("sql", file, "SELECT 1")):
        said = trace(*words)
        assert said.exit_code == 0, said.output
        assert "NULs from line" in said.stderr
    with TraceServer(file) as server, urllib.request.urlopen(server.trace_url) as told:
        assert told.read() == data[:-9]
    assert trace("merge", file, "-o", tmp_path / "whole.json").exit_code == 0
    assert events(tmp_path / "whole.json") == list(TraceFile(file).events())
    file.write_bytes(b"\0" * 100)
    with pytest.raises(BadTrace, match="begins with NULs"):
        list(TraceFile(file).events())


@pytest.mark.parametrize("tail", [b"\0" * 20_000_000, b" \n\n"], ids=["NULs", "space"])
def test_parts_are_added_before_nuls_and_space(tmp_path: Path, tail: bytes) -> None:
    """The file of a run whose machine crashed takes the parts of its other processes all the same."""
    code = (
        "from traces import current_run\n"
        "with current_run().span('late'): pass\n"
    )  # fmt: skip
    with RunTrace("r", tmp_path) as run:
        child = subprocess.run([sys.executable, "-c", code], check=True)
        assert child.returncode == 0
        kept = [(part, part.read_bytes()) for part in tmp_path.glob("*.part")]
    assert run.trace_path is not None
    file = run.trace_path
    file.write_bytes(file.read_bytes() + tail)
    for part, data in kept:
        part.write_bytes(data)
    assert trace("summary", file).exit_code == 0
    assert sum(event["name"] == "late" for event in events(file)) >= 1
    assert file.stat().st_size < 1_000_000


# -- bytes behind the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (b"rubbish", "7 bytes behind the end of"),
        (b" x\n" * 500_000, "1,500,000 bytes behind the end of"),
        (b"[\n]\n", "4 bytes behind the end of"),
        (b"\n  \n", ""),
    ],
)
@pytest.mark.parametrize("form", [b"[\n%s\n]\n", b'{"traceEvents": [%s]}\n', b"[%s]\n"])
def test_bytes_behind_the_end_of_a_trace_are_counted_and_said(
    tmp_path: Path, form: bytes, more: bytes, said: str
) -> None:
    """As two files put together by `cat`: all that the second one has was missing without a word."""
    file = tmp_path / "x.json"
    event = b'{"ph":"X","name":"run","cat":"run","pid":1,"tid":1,"ts":0,"dur":9}'
    file.write_bytes(form % event + more)
    packed = tmp_path / "packed.json"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    for one in (file, packed):
        told = f"keepwarm: {said} {one} are not read.\n" if said else ""
        for words in (("summary", one), ("open", one)):
            found = trace(*words)
            assert (found.exit_code, found.stderr) == (0, told), found.output


def test_every_command_says_what_is_not_read_of_a_trace(tmp_path: Path) -> None:
    """Bytes behind the end, NULs and a cut; `sql` and `open` said it of NULs alone."""
    file, other = recorded(tmp_path, "r"), recorded(tmp_path, "other")
    data = file.read_bytes()
    for content, said in (
        (data + b"rubbish", f"7 bytes behind the end of {file} are not read."),
        (data[:-20], f"{file} was cut in line"),
        (data[:-20] + bytes(9), f"{file} has NULs from line"),
    ):
        file.write_bytes(content)
        for words in (
            ("open", file), ("summary", file), ("diff", file, other),
            ("merge", file, "-o", tmp_path / f"{len(content)}.json"),
        ):  # fmt: skip
            found = trace(*words)
            assert (found.exit_code, f"keepwarm: {said}" in found.stderr) == (0, True), words
    assert f"keepwarm: {said}" in trace("sql", file, "SELECT 1").stderr


def test_a_trace_that_is_still_recorded_is_not_called_cut(tmp_path: Path) -> None:
    """`trace list` said that it is recording, and all others that it was cut."""
    with RunTrace("live", tmp_path) as run:
        run.request(request("r0", now()))
        run.flush()
        assert run.trace_path is not None
        for words in ("summary", "open"):
            told = trace(words, run.trace_path).stderr
            assert "live.trace.json is still being recorded; it is read up to line" in told


def test_a_further_file_of_a_run_that_goes_on_is_as_its_first_was(tmp_path: Path) -> None:
    """It was listed as that of a killed run, and called cut."""
    with RunTrace("live", tmp_path, service="me", max_bytes=1 << 16) as run:
        run.load(load("l", now(), model="m" * 70_000))
        run.flush()
        run.request(request("r0", now()))
        run.flush()
        listed = json.loads(trace("list", "--folder", tmp_path, "--json").stdout)["runs"]
        assert [(one["run_id"], one["service"], one["status"]) for one in listed] == [
            ("live", "me", "ok"),
            ("live-2", "me", "recording"),
        ]
        assert "is still being recorded" in trace("summary", "live-2", "--folder", tmp_path).stderr
    (tmp_path / "runs.jsonl").unlink()
    (tmp_path / "live.open").write_text("{}")
    listed = json.loads(trace("list", "--folder", tmp_path, "--json").stdout)["runs"]
    assert {one["status"] for one in listed} == {"no line"}


def test_of_a_trace_of_another_form_nothing_is_said_that_is_not_known(tmp_path: Path) -> None:
    """Perfetto opens JSON of any lines; a line that begins with `]` is the end of ours only."""
    file = tmp_path / "x.json"
    event = {"ph": "X", "name": "run", "pid": 1, "tid": 1, "ts": 0, "dur": 9, "args": {"a": [1]}}
    for form in ([event, event], {"traceEvents": [event], "more": [[1], [2]]}):
        file.write_text(json.dumps(form, indent=1))
        found = trace("open", file)
        assert (found.exit_code, found.stderr) == (0, ""), found.output


def test_bytes_behind_a_packed_trace_are_said_too(tmp_path: Path) -> None:
    """They are not gzip, so that nothing can count them."""
    file = tmp_path / "x.json.gz"
    file.write_bytes(gzip.compress(recorded(tmp_path, "r").read_bytes()) + b"rubbish")
    for words in (("summary", file), ("open", file)):
        found = trace(*words)
        assert (found.exit_code, "keepwarm: Bytes behind the end of" in found.stderr) == (0, True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data + b"rubbish", "ends before the file does"),
        (lambda data: json.dumps(json.loads(data)).encode(), "its events are in one line"),
    ],
)
def test_parts_are_not_added_behind_the_end_of_a_trace(
    tmp_path: Path, change: Callable[[bytes], bytes], why: str
) -> None:
    """Nothing would read them there: they stay as they are, and that is said. `jq -c` makes it one line."""
    file = recorded(tmp_path, "r")
    part = tmp_path / "r.77.part"
    part.write_text("{}\n")
    data = change(file.read_bytes())
    file.write_bytes(data)
    found = trace("summary", file)
    assert "parts of other processes cannot be added" in found.stderr
    assert why in found.stderr
    assert (part.read_text(), file.read_bytes()) == ("{}\n", data)


def test_parts_are_added_to_a_trace_that_was_cut_in_an_event_of_endless_depth(
    tmp_path: Path,
) -> None:
    """It is no event, as any other that was cut; Python's limit of recursion was a traceback."""
    file = recorded(tmp_path, "r")
    whole = file.read_bytes()
    file.write_bytes(whole.removesuffix(b"\n]\n") + b",\n" + b"[" * 100_000)
    _there(file)
    with file.open("r+b") as opened:
        _cut_end(opened.fileno())
    assert file.read_bytes() == whole.removesuffix(b"\n]\n")


@pytest.mark.parametrize("last", ["1000000d", "999999999", "366d"])
def test_a_time_that_is_too_long_is_refused_by_the_name_of_its_option(last: str) -> None:
    """The keeper refused it, by the name of a field of a message."""
    found = trace("capture", "--last", last)
    assert found.exit_code == 2
    for words in ("'--last'", f"found {last}", "too long", "at most 365d"):
        assert words in found.stderr


# -- merging and empty files ------------------------------------------------------------------------------


def test_merging_into_gz_packs_and_every_reader_takes_it(tmp_path: Path) -> None:
    """summary, diff, sql, merge: by the file's first bytes, whatever it is called."""
    files = [recorded(tmp_path, name) for name in "ab"]
    packed = tmp_path / "both.json.gz"
    made = trace("merge", *files, "-o", packed)
    assert made.exit_code == 0, made.output
    assert len(json.loads(gzip.decompress(packed.read_bytes()))) > 10
    assert packed.stat().st_mode & 0o777 == 0o600
    renamed = packed.with_name("packed.json")
    renamed.write_bytes(packed.read_bytes())
    for file in (packed, renamed):
        for words in (("summary", file), ("diff", file, files[0])):
            assert trace(*words).exit_code == 0
        assert trace("merge", file, "-o", tmp_path / f"{file.stem}.out").exit_code == 0
    assert trace("sql", renamed, "SELECT 1").exit_code == 0
    told = json.loads(trace("summary", packed, "--json").stdout)
    assert told["models"]["m"]["requests"] == 6


def test_a_trace_is_not_merged_with_itself(tmp_path: Path) -> None:
    """By its run, by its path, through a link: it would count twice."""
    file = recorded(tmp_path, "a")
    link = tmp_path / "link.json"
    link.symlink_to(file)
    for other in ("a", file, link):
        said = trace("merge", file, other, "-o", tmp_path / "o.json", "--folder", tmp_path)
        assert (said.exit_code, "is given twice" in said.stderr) == (2, True)
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    "text", ["[]", "[\n]\n", "[\n", '{"traceEvents": []}', '[{"ph": "X", "ts": 1}]']
)
def test_a_trace_without_a_run_is_told_as_such(tmp_path: Path, text: str) -> None:
    """No table of zeros is made of it."""
    file = tmp_path / "x.json"
    file.write_text(text)
    for words in (("summary", file), ("diff", file, file)):
        said = trace(*words)
        assert said.exit_code == 2
        assert "has no run in it: none of its" in said.stderr


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """By every command that was given one."""
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    for words in (
        ("list",), ("summary",), ("open",), ("prune", "--keep", "1"), ("diff", "a", "b"),
        ("sql", "SELECT 1"), ("merge", "a", "-o", tmp_path / "o"),
    ):  # fmt: skip
        said = trace(*words, "--folder", missing)
        assert (said.exit_code, f"Found nothing at {missing}." in said.stderr) == (2, True), words
        assert f"Found no folder at {file}." in trace(*words, "--folder", file).stderr


def test_without_a_run_the_command_says_how_to_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found, where it was looked for, and what to do."""
    monkeypatch.setenv("KEEPWARM_TRACE_DIR", str(tmp_path / "never"))
    said = trace("summary")
    assert f"No run has been traced yet: found no such folder at {tmp_path}/never." in said.stderr
    assert "with RunTrace():" in said.stderr
    assert "with RunTrace():" in trace("list").stdout
    recorded(tmp_path / "never", "a")
    assert f"no run 'b': {tmp_path}/never has 1 traced runs." in trace("summary", "b").stderr


# -- runs that have not ended ---------------------------------------------------------------------------


KILLED = """
import sys, os, signal
from pathlib import Path
from tests.traces.support import now, request
from traces import RunTrace
run = RunTrace("killed", Path(sys.argv[1]), service="letters").__enter__()
run.request(request("k", now()))
run.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_was_killed_is_listed_and_used_by_its_name(tmp_path: Path) -> None:
    """It is the last run of the folder, marked as not ended; its figures are in its trace."""
    recorded(tmp_path, "a")
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert child.returncode == -signal.SIGKILL
    rows = json.loads(trace("list", "--folder", tmp_path, "--json").stdout)["runs"]
    assert [(row["run_id"], row["status"]) for row in rows] == [
        ("a", "ok"),
        ("killed", "not ended"),
    ]
    assert (rows[1]["service"], rows[1]["requests"]) == ("letters", None)
    assert "not ended" in trace("list", "--folder", tmp_path).stdout
    for words in (("summary", "killed"), ("summary",)):
        said = trace(*words, "--folder", tmp_path)
        assert said.exit_code == 0, said.output
        assert "run killed has not ended, or was killed" in said.stderr
    recorded(tmp_path, "later")
    assert trace("summary", "--folder", tmp_path).stderr == "", "a later run is the last one"
    summary = json.loads(trace("summary", "killed", "--folder", tmp_path, "--json").stdout)
    assert summary["models"]["m"]["requests"] == 1


def test_a_run_that_is_recorded_now_is_listed_and_is_not_the_last_one(tmp_path: Path) -> None:
    """Without a name a program is done with the run that is meant; by its name it is shown so far."""
    recorded(tmp_path, "a")
    (tmp_path / "merged.trace.json").write_text("[\n]\n")
    (tmp_path / "link.trace.json").symlink_to(tmp_path / "a.trace.json")
    with RunTrace("now", tmp_path) as run:
        run.request(request("n", now()))
        run.flush()
        rows = json.loads(trace("list", "--folder", tmp_path, "--json").stdout)["runs"]
        assert {row["run_id"]: row["status"] for row in rows} == {
            "a": "ok",
            "merged": "no line",
            "now": "recording",
        }
        assert trace("summary", "--folder", tmp_path).stderr == ""
        assert "is still recorded" in trace("summary", "now", "--folder", tmp_path).stderr


# -- figures and names of another program ---------------------------------------------------------------


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "1e400", '"soon"', "null", "[]", "9" * 400])
@pytest.mark.parametrize("key", ["ts", "dur"])
def test_what_is_no_figure_in_a_trace_is_no_traceback_and_in_no_answer(
    tmp_path: Path, key: str, figure: str
) -> None:
    """It is refused as no event, or counts for nothing: `--json` stays JSON."""
    file = recorded(tmp_path, "r")
    mark = f'"{key}":'
    file.write_text(file.read_text().replace(mark, f'{mark}{figure},"was":'))
    for words in (("summary", file), ("diff", file, file), ("merge", file, "-o", tmp_path / "m")):
        assert trace(*words).exit_code in (0, 2)
    answer = trace("summary", file, "--json").stdout
    assert "NaN" not in answer
    assert "Infinity" not in answer


def test_a_name_too_long_for_any_file_names_no_run(tmp_path: Path) -> None:
    """It is the caller's mistake, not a bug of keepwarm."""
    found = trace("summary", "a" * 5000, "--folder", tmp_path)
    assert found.exit_code == 2
    assert "There is no file and no run" in found.stderr


def test_a_run_without_requests_has_no_heading_of_models(tmp_path: Path) -> None:
    """A table of nothing but its heading looks like something lost."""
    with RunTrace("quiet", tmp_path) as run:
        pass
    assert run.trace_path is not None
    shown = trace("summary", run.trace_path)
    assert shown.exit_code == 0
    assert "tokens/s" not in shown.output
    assert "0 evictions; 0 requests failed." in shown.output
