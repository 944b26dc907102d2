"""What needs no keeper: help, errors and exit codes, plug-ins, figures, status lines."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from backends.machine.files.file_locks import lock_keeper
from budget import errors
from budget.errors import (
    EndpointUnavailable,
    InternalError,
    KeeperUnavailable,
    KeepwarmError,
    error_from_wire,
)
from shim.cli import lazy, main
from shim.cli.commands.keeper import additions, last_lines, wait_gone
from shim.cli.console import progress
from shim.cli.console.failure import exit_code
from shim.cli.console.output import StatusLine, print_table, size, sizes, span
from shim.cli.console.progress import fetch_first, waiting_for
from shim.cli.root import COMMANDS
from shim.config import ModelEntry


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder and a private environment; nothing runs in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("KEEPWARM_CONFIG", "HARNESS_ENDPOINTS", "KEEPWARM_TRACE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with tempfile.TemporaryDirectory(prefix="kw") as runtime:
        monkeypatch.setenv("KEEPWARM_RUNTIME_DIR", runtime)
        yield tmp_path
        assert list(Path(runtime).iterdir()) == [], "a keeper was started"


def run(*args: str, stdin: str | bytes = "") -> Result:
    """`keepwarm` in this process."""
    return CliRunner().invoke(main, list(args), input=stdin)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("chta", "chat"),
        ("keper", "keeper"),
        ("ls", "list"),
        ("pull", "load"),
        ("rm", "stop or kv clear (keepwarm deletes no model files)"),
        ("serve", "keeper start"),
    ],
)
def test_a_mistyped_command_is_answered_with_its_like(typed: str, meant: str) -> None:
    """Also one that another program has."""
    done = run(typed)
    assert done.exit_code == 2
    assert f"No such command '{typed}'. Did you mean {meant}?" in done.stderr
    assert "Did you mean" not in run("qqqqqq").stderr


@pytest.mark.parametrize(
    "command",
    [
        *("run", "list", "show", "stop", "logs", "top", "doctor", "completion"),
        *("rerank", "transcribe", "speak", "tokenize"),
    ],
)
def test_the_help_of_a_command_has_an_example(command: str) -> None:
    """That can be typed as it stands."""
    assert re.search(rf"Example.*\bkeepwarm {command}\b", run(command, "--help").stdout)


def test_the_version_is_an_option(home: Path) -> None:
    """And says whose it is."""
    assert run("--version").stdout == f"keepwarm {importlib.metadata.version('keepwarm')}\n"


def test_config_may_stand_after_the_command(home: Path) -> None:
    """It counts more than one before the command, and every command of keepwarm takes it."""
    (home / "other.toml").write_text('[models.far]\nurl = "http://127.0.0.1:9"\n')
    done = run("--config", "absent.toml", "plan", "--json", "--config", "other.toml")
    assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["far"]
    groups = {"keeper": "status", "kv": "list", "trace": "list", "config": "check"}
    for name in COMMANDS:
        inner = [groups[name]] if name in groups else []
        assert "--config" in run(name, *inner, "--help").stdout, name


@pytest.mark.parametrize(
    "words", [("embed", "m", "a"), ("call", "m"), ("rerank", "m", "q", "a"), ("run", "v", "x")]
)
def test_what_a_model_does_not_do_is_refused_before_its_download(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """No file is fetched for an error, and no keeper starts (`home`)."""
    fetched: list[Any] = []
    monkeypatch.setattr("shim.cli.console.at_model.fetch_first", lambda *of: fetched.append(of))
    hub = 'hf = "some/model:file.gguf"\n'
    configure(home, f'[models.m]\n{hub}[models.v]\n{hub}role = "embedder"\n')
    refused = run(*words)
    assert (refused.exit_code, fetched) == (2, [])
    assert f"{words[1]} does not" in refused.stderr


def configure(home: Path, text: str = '[models.m]\npath = "m.gguf"\n') -> None:
    """Write the configuration file."""
    (home / "keepwarm.toml").write_text(text)


def test_help_lists_every_command_as_the_commands_describe_themselves() -> None:
    """The lines of help that are kept apart, so that nothing is imported, are the commands' own."""
    text = " ".join(run("--help").output.split())
    assert "Exit codes" in text
    for name, (place, line) in COMMANDS.items():
        assert f"{name} {line}" in text
        command = lazy.command_at(place)
        assert command.name == name
        assert command.get_short_help_str(200) == line


@pytest.mark.parametrize(
    "args", [["frobnicate"], ["chat"], ["chat", "m", "x", "--temperature", "-1"], ["inspect"]]
)
def test_usage_errors_exit_2(home: Path, args: list[str]) -> None:
    """Click's own messages, on stderr."""
    result = run(*args)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_every_error_has_the_exit_code_of_its_fault() -> None:
    """2 for the caller's, 3 for load, 4 for outside, 1 for ours; over the whole tree."""
    codes = {"caller": 2, "load": 3, "outside": 4, "ours": 1}
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, KeepwarmError)
    ]
    answer = {kind.__name__: exit_code(kind("x")) for kind in kinds if kind is not KeepwarmError}
    assert len(answer) > 20
    assert answer == {k.__name__: codes[k.fault] for k in kinds if k is not KeepwarmError}
    assert exit_code(ValueError()) == 1


def test_an_error_is_a_line_with_a_hint_and_an_object_with_json(home: Path) -> None:
    """The object is on stdout and is the error again."""
    configure(home)
    plain = run("chat", "unknown", "hi")
    assert plain.exit_code == 2
    assert plain.stdout == ""
    assert plain.stderr.splitlines()[0] == "keepwarm: error: No model is called 'unknown'."
    assert "has: m." in plain.stderr.splitlines()[1]
    answer = json.loads(run("chat", "unknown", "hi", "--json").stdout)
    error = error_from_wire(answer["error"])
    assert isinstance(error, errors.UnknownModel)
    assert error.facts == {"model": "unknown"}


def test_without_a_configuration_the_error_says_what_to_write(home: Path) -> None:
    """Exit code 2, and the name of the file."""
    for args in (["chat", "m", "hi"], ["plan"], ["load", "m"], ["keeper", "start"]):
        result = run(*args)
        assert result.exit_code == 2
        assert "Write a keepwarm.toml" in result.stderr


def test_config_is_honoured_from_the_group(home: Path) -> None:
    """`keepwarm --config FILE` reaches the commands; a file that is not there is an error."""
    other = home / "other.toml"
    other.write_text('[models.elsewhere]\npath = "m.gguf"\n')
    assert "elsewhere" in run("--config", str(other), "chat", "m", "hi").stderr
    assert run("--config", "nowhere.toml", "plan").exit_code == 2
    shown = json.loads(run("--config", str(other), "config", "path", "--json").stdout)
    assert shown == {"file": str(other)}


def test_a_bug_of_ours_exits_1_with_its_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr for a bug report, and as an InternalError for programs."""
    monkeypatch.setattr("shim.cli.commands.about.version.versions", lambda: 1 // 0)
    result = run("version", "--json")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    answer = error_from_wire(json.loads(result.stdout)["error"])
    assert isinstance(answer, InternalError)


def test_ctrl_c_exits_130_and_says_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was going on."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shim.cli.commands.about.version.versions", interrupt)
    result = run("version", "--json")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize("endpoints", ["", '{"far": {"url": "http://far:1"}}'])
def test_a_reload_without_a_configuration_file_is_a_mistake(
    home: Path, monkeypatch: pytest.MonkeyPatch, endpoints: str
) -> None:
    """It would remove every model of a keeper that runs; endpoints of the environment are no file."""
    monkeypatch.setenv("HARNESS_ENDPOINTS", endpoints)
    done = run("config", "reload")
    assert done.exit_code == 2
    assert "found no configuration" in done.stderr


def test_without_a_keeper_looking_and_letting_go_start_none(home: Path) -> None:
    """All exit with 0 and say so."""
    configure(home)
    assert "No keeper runs" in run("ps").stdout
    status = json.loads(run("ps", "--json").stdout)
    assert (status["running"], status["keeper"], status["engines"]) == (False, None, [])
    assert json.loads(run("unload", "m", "--json").stdout) == {"model": "m", "gone": True}
    for command in ("unpin", "release"):
        assert json.loads(run(command, "m", "--json").stdout) == {"model": "m", "told": False}
        assert "No keeper runs" in run(command, "m").stdout
    assert json.loads(run("keeper", "stop", "--json").stdout) == {"stopped": False, "pid": None}
    assert json.loads(run("keeper", "status", "--json").stdout)["running"] is False
    assert json.loads(run("config", "reload", "--json").stdout)["running"] is False
    assert run("unload", "unknown").exit_code == 2


@pytest.mark.parametrize(
    ("stdin", "says"), [("", "is empty"), (" \n", "is empty"), (b"\xff", "UTF-8")]
)
def test_a_prompt_that_is_none_is_refused(home: Path, stdin: str | bytes, says: str) -> None:
    """Before any keeper is started."""
    configure(home)
    result = run("chat", "m", stdin=stdin)
    assert result.exit_code == 2
    assert says in result.stderr


def test_commands_of_other_packages_are_listed_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through entry points; none is imported to list them."""
    point = EntryPoint("shown", "tests.cli.plugin:command", lazy.ENTRY_POINTS)
    broken = EntryPoint("broken", "tests.cli.nowhere:command", lazy.ENTRY_POINTS)
    wrong = EntryPoint("wrong", "tests.cli.plugin:NOT_A_COMMAND", lazy.ENTRY_POINTS)
    monkeypatch.setattr(lazy, "entry_points", lambda group: [point, broken, wrong])
    listed = run("--help").output
    assert "From the package tests." in listed
    assert run("shown").output == "shown\n"
    for name in ("broken", "wrong"):
        result = run(name)
        assert result.exit_code == 1
        assert "cannot be used" in result.stderr or "not a click command" in result.stderr
    assert run("shown").exit_code == 0


def test_the_demo_is_a_command_of_the_harness() -> None:
    """The project's entry point names something that is there."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    line = next(row for row in project.splitlines() if row.startswith("demo = "))
    module, _, attribute = line.partition('"')[2].rstrip('"').partition(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)
    assert "Run four small models" in run("--help").output


def test_figures_are_read_in_their_units() -> None:
    """Powers of 1024, three figures; times as people say them."""
    answer = [size(n) for n in (0, 1023, 1024, 1536, 25594321, 10**9, 5 * 2**30, 2**50)]
    assert answer == [
        "0 B",
        "1023 B",
        "1.00 KiB",
        "1.50 KiB",
        "24.4 MiB",
        "954 MiB",
        "5.00 GiB",
        "1024 TiB",
    ]
    assert sizes({"host": 2**20}) == "1.00 MiB"
    assert sizes({"cuda:0": 2**30, "host": 2**20}) == "cuda:0 1.00 GiB, host 1.00 MiB"
    assert [span(s) for s in (None, 0.4213, 42.4, 185, 7800)] == [
        "",
        "0.42 s",
        "42 s",
        "3 min 5 s",
        "2 h 10 min",
    ]


def test_a_table_in_a_pipe_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut, wrapped or coloured, brackets are text, and lines end where they end."""
    long = "x" * 500
    print_table(("a", "b"), [("[red]", long), (1, None)], right=("a",))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["    a  b", f"[red]  {long}", "    1"]


OURS = {"model": "m", "pid": 1, "waits_for": "a slot"}
OTHERS = {"model": "m", "pid": 2, "waits_for": "a slot"}


@pytest.mark.parametrize(
    ("row", "queue", "says"),
    [
        (
            {"state": "loading", "load_fraction": 0.5, "bytes": {"host": 2**20}},
            [],
            "50% of 1.00 MiB",
        ),
        ({"state": "evicting"}, [], "loaded again"),
        ({"state": "leased"}, [OTHERS, OURS], "m waits for a slot, after 1 other in line"),
        ({"state": "leased"}, [], "m is evaluating the prompt"),
        ({"state": "leased"}, [OTHERS], "m is evaluating the prompt"),
        ({"state": "absent"}, [OURS, OTHERS], "m waits for a slot"),
        ({"state": "failed"}, [], "m is failed"),
    ],
)
def test_the_status_line_says_what_a_request_waits_for(
    row: dict[str, Any], queue: list[dict[str, Any]], says: str
) -> None:
    """By the keeper's status; without one the keeper is starting. Others' requests are not this one."""
    status = {"engines": [{"models": ["m"], **row}], "queue": queue}
    assert waiting_for(status, "m", 1).endswith(says)
    assert "reading other" in waiting_for(status, "other", 1)
    assert "starting the keeper" in waiting_for(None, "m", 1)


def test_a_hub_file_is_downloaded_once_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, before any keeper is asked; one in the cache is not asked for again."""
    calls: list[bool] = []

    def fetch(hf: str, *, offline: bool = False, on_progress: Any = None) -> Path:
        calls.append(offline)
        if offline and len(calls) == 1:
            raise EndpointUnavailable("not in the cache")
        if on_progress is not None:
            on_progress("m.gguf", 0, 100)
            on_progress("m.gguf", 50, None)
        return Path("m.gguf")

    monkeypatch.setattr(progress, "fetch_hub_file", fetch)
    entry = ModelEntry(hf="o/r:m.gguf")
    fetch_first(StatusLine(), entry)
    fetch_first(StatusLine(), entry)
    fetch_first(StatusLine(), ModelEntry(path=Path("m.gguf")))
    assert calls == [True, False, True]
    assert capsys.readouterr().err == "downloading m.gguf\n"


def test_the_end_of_a_log_is_read_whatever_is_in_it(tmp_path: Path) -> None:
    """Fewer lines than asked for, bytes that are no text, and no file at all."""
    file = tmp_path / "log"
    file.write_bytes(b"one\ntwo\n\xffthree\n")
    assert last_lines(file, 2) == ["two", "\ufffdthree"]
    assert len(last_lines(file, 99)) == 3
    assert last_lines(file, 0) == []
    assert last_lines(tmp_path / "none", 5) == []


def test_a_followed_log_loses_no_line_that_is_written_while_its_end_is_printed(
    tmp_path: Path,
) -> None:
    """The place is looked at first; what comes after it is an addition, and printed once."""
    file = tmp_path / "keeper.log"
    file.write_text("one\n")
    place = file.stat()
    with file.open("a") as log:
        log.write("two\n")
    assert last_lines(file, 5, up_to=place.st_size) == ["one"]
    assert next(additions(file, place)) == "two\n"


def test_traces_are_found_by_file_by_run_and_by_being_last(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trace open` names what it opens; what is not there is the caller's mistake."""
    opened: list[Path] = []
    monkeypatch.setattr(
        "shim.cli.commands.trace.command.open_trace", lambda path, **_: opened.append(path)
    )
    folder = home / "state" / "keepwarm" / "runs"
    assert run("trace", "open").exit_code == 2
    folder.mkdir(parents=True)
    line = {
        "service": "s",
        "started": "",
        "seconds": 1,
        "status": "ok",
        "requests": [],
        "problems": [],
    }
    runs = [{**line, "run_id": name, "trace": f"/t/{name}.json"} for name in ("r1", "r2")]
    text = "\n".join(json.dumps(row) for row in runs)
    (folder / "runs.jsonl").write_text(f"{text}\nbroken\n")
    file = home / "x.json"
    file.write_text("[]")
    for args in ([], ["r1"], [str(file)]):
        assert run("trace", "open", "--no-browser", *args).exit_code == 0
    assert opened == [Path("/t/r2.json"), Path("/t/r1.json"), file]
    assert run("trace", "open", "r9").exit_code == 2
    listed = run("trace", "list", "--json")
    assert [r["run_id"] for r in json.loads(listed.stdout)["runs"]] == ["r1", "r2"]
    assert "is not a run's line" in listed.stderr
    assert "/t/r2.json" in run("trace", "list").stdout


@pytest.mark.parametrize("is_keeper", [True, False])
def test_only_a_keeper_that_does_not_end_is_named_as_one_to_kill(
    runtime_dir: Path, *, is_keeper: bool
) -> None:
    """A stranger at its socket can say any process id when it is asked to stop."""
    with contextlib.ExitStack() as held:
        if is_keeper:
            held.enter_context(lock_keeper(runtime_dir))
        with pytest.raises(KeeperUnavailable, match="did not end") as caught:
            wait_gone(os.getpid(), runtime_dir, 0.0)
    assert (f"kill -9 {os.getpid()}" in caught.value.hint) == is_keeper


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{no", "The schema that --json-schema gives is not JSON"),
        ('{"a":' * 10_000, "The schema that --json-schema gives is not JSON"),
        ("nowhere.json", "write the schema itself"),
        ("list.json", "holds no JSON object"),
        ('{"type": "object"}', "No model is called 'far'"),
        ("schema.json", "No model is called 'far'"),
    ],
)
def test_a_schema_is_a_file_or_is_written_itself(home: Path, given: str, says: str) -> None:
    """As llama.cpp's own programs take it; a mistake in it says both ways."""
    configure(home)
    (home / "list.json").write_text("[1]")
    (home / "schema.json").write_text("{}")
    result = run("chat", "far", "hi", "--json-schema", given)
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize("args", [(), ("-",)])
def test_texts_to_embed_come_from_stdin(home: Path, args: tuple[str, ...]) -> None:
    """Without a text, and where `-` stands for it: so it is in `chat`."""
    (home / "keepwarm.toml").write_text(
        '[models.vec]\nurl = "http://127.0.0.1:9"\nmodel_id = "x"\nrole = "embedder"\n'
    )
    result = run("--config", "keepwarm.toml", "embed", "vec", *args, stdin=" \n")
    assert result.exit_code == 2
    assert "There is no text to embed" in result.stderr
