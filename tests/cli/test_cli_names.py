"""Names with line breaks, tabs and codes of a terminal: a row stays a row, and `--json` is exact."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backends.foreign.shown_text import one_line
from budget.errors import UnknownModel
from shim.cli import main
from shim.cli.commands import build
from shim.cli.commands.ps import command as ps_command
from shim.cli.commands.ps import top as top_module
from shim.cli.commands.ps.top import CpuShares, screen
from shim.cli.console.output import console, print_table
from shim.cli.console.said_lines import say_all
from shim.config import Config
from tests.cli.test_cli_top import status
from tests.traces.support import evict, load, now, request
from traces import RunTrace

NASTY = "a\nb\tc\x1b[2Jd\r\x85e\u2028f\u202eg"
SHOWN = r"a\nb\tc\x1b[2Jd\r\x85e\u2028f\u202eg"
CONTROL = {chr(n) for n in (*range(32), *range(127, 160))} - {"\n"} | {"\u2028", "\u202e"}
SHELL = Path(__file__).parents[2] / "shim" / "cli"


def ran(*words: object) -> Result:
    """A command."""
    return CliRunner().invoke(main, list(map(str, words)))


def is_safe(text: str) -> bool:
    """Whether no control character, and no line that a name begins, is in what was printed."""
    begun = [line for line in text.splitlines() if line.startswith(("b\tc", r"b\tc"))]
    return not begun and not CONTROL & set(text)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace whose service, models, device, requests and reasons have such names."""
    with RunTrace("r", tmp_path, service=NASTY) as run:
        at = now()
        run.load(load(NASTY, at, ms=2000, model=NASTY, device=NASTY, reason=NASTY, bytes=10))
        run.evict(evict(NASTY, at, model=NASTY, device=NASTY, reason=f"evicted for {NASTY}"))
        waits = {"model": NASTY, "waited_for_load": NASTY, "waited_for": NASTY, "cold": True}
        run.request(request(NASTY, at, granted_ns=at + 3 * 10**9, end_ns=at + 4 * 10**9, **waits))
    assert run.trace_path is not None
    return run.trace_path


def test_names_in_traces_break_no_row(trace: Path, tmp_path: Path) -> None:
    """Of `list`, `summary`, `diff` and `sql`: each name is there once in each row, as escapes."""
    for words in (
        ("list", "--folder", tmp_path), ("summary", trace), ("diff", trace, trace),
        ("sql", trace, "SELECT name AS 'a\nb' FROM process"),
    ):  # fmt: skip
        told = ran("trace", *words)
        assert told.exit_code == 0, told.output
        assert is_safe(told.output), told.output
        assert r"a\nb" in told.stdout
    assert f" {SHOWN} " in ran("trace", "list", "--folder", tmp_path).stdout


def test_json_has_the_names_themselves(trace: Path, tmp_path: Path) -> None:
    """A program that reads it gets what there is."""
    listed = json.loads(ran("trace", "list", "--folder", tmp_path, "--json").stdout)
    assert listed["runs"][0]["service"] == NASTY
    assert NASTY in json.loads(ran("trace", "summary", trace, "--json").stdout)["models"]


def test_lines_of_advice_are_toml_whatever_the_model_is_called(trace: Path) -> None:
    """They are there to be copied: a line break stood in the middle of a key."""
    summary = json.loads(ran("trace", "summary", trace, "--json").stdout)
    for advice in summary["advice"]:
        assert "\n" not in advice["section"]


def test_names_in_a_configuration_break_no_line(tmp_path: Path) -> None:
    """Of `config check`, with mistakes and without, and of an error's message and hint."""
    file = tmp_path / "keepwarm.toml"
    name = json.dumps(NASTY, ensure_ascii=True).replace("\\u001b", "\\u001B")
    file.write_text(f"[models.{name}]\nurl = 'http://127.0.0.1:9'\n")
    for words in (("config", "check"), ("config", "show"), ("list",), ("show", "none")):
        told = ran("--config", file, *words)
        assert is_safe(told.output), told.output
        assert r"a\nb" in told.output
    file.write_text(f"[models.{name}]\n{name} = 3\n")
    told = ran("--config", file, "config", "check")
    assert told.exit_code == 2
    assert is_safe(told.output), told.output
    mistakes = [line for line in told.stdout.splitlines() if line.startswith("  ")]
    listed = json.loads(ran("--config", file, "config", "check", "--json").stdout)["problems"]
    assert len(mistakes) == len(listed), "one line for each"


def _everywhere(value: Any) -> Any:
    """The same with such a name in place of each text, keys included."""
    match value:
        case dict():
            return {key: _everywhere(one) for key, one in value.items()}
        case list():
            return [_everywhere(one) for one in value]
        case str():
            return NASTY
    return value


def test_names_of_a_keepers_status_break_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `top`, in a pipe and live, where what is drawn is spared no escape."""
    said = _everywhere(status())
    monkeypatch.setattr(top_module, "read_status", lambda: said)
    told = ran("top")
    assert told.exit_code == 0, told.output
    assert is_safe(told.stdout), told.stdout
    target = console()
    with target.capture() as captured:
        target.print(screen(said, 120, CpuShares()))
    assert not CONTROL & set(captured.get())


def test_names_of_models_break_no_line_of_ps(capsys: pytest.CaptureFixture[str]) -> None:
    """Their tables, their placements, and why one cannot be run."""
    usual = {"pinned": False, "leases": [], "slots": 1, "waiting": 0, "measured": None}
    more = {"loaded_s": 1.0, "draining_for": NASTY, "load_fraction": None, "last_error": None}
    engine = {
        "id": NASTY,
        "models": [NASTY],
        "state": "leased",
        "bytes": {NASTY: 1},
        **usual,
        **more,
    }
    waits = {"model": NASTY, "want": NASTY, "priority": 0, "waited_s": 0, "waits_for": NASTY}
    keeper = {"pid": 1, "uptime_s": 1, "config": NASTY, "restart": [], "faults": {}}
    ps_command._print(
        {
            **ps_command.NO_KEEPER,
            "running": True,
            "keeper": keeper,
            "engines": [{**engine, "placement": NASTY}],
            "queue": [{**waits, "rank_reason": NASTY}],
            "unavailable": {NASTY: {"message": f"{NASTY}\nits log"}},
            "ollama": [],
            "prefetch": {"loads": 0, "staged_bytes": 0},
        }
    )
    told = capsys.readouterr().out
    assert is_safe(told), told
    assert f"{SHOWN} cannot be run: a\n  b" in told


def test_the_path_of_the_configuration_is_exact_in_a_pipe(tmp_path: Path) -> None:
    """`$(keepwarm config path)` names the file, whatever its folder is called."""
    file = tmp_path / "a\tb\u202e" / "keepwarm.toml"
    file.parent.mkdir()
    file.write_text("")
    assert ran("--config", file, "config", "path").stdout == f"{file}\n"


def test_an_error_of_several_lines_passes_for_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    """It may quote a log; what follows its first line is indented."""
    error = UnknownModel(f"No {NASTY}.\nkeepwarm: error: a made-up one", model="x")
    say_all(error.message, before="keepwarm: error: ", err=True)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "keepwarm: error: No a"
    assert all(line.startswith("  ") for line in rest)


def test_lines_that_an_error_quotes_are_shown_as_a_log_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `build --check`, too: what an engine said was one line, with escapes in it."""
    plan = SimpleNamespace(effort="fast")
    found = SimpleNamespace(missing={"m": "it ended:\r\n  | at\tx\r\n"}, changes=[])
    monkeypatch.setattr(build, "usable_plan", lambda: (plan, ""))
    monkeypatch.setattr(build, "decisions_of", lambda *_: found)
    build.checked(Config(), as_json=False)
    _, *told = capsys.readouterr().out.splitlines()
    assert told == ["m is not in the plan: it ended:", "    | at  x"]


def test_a_table_has_a_line_for_each_row_whatever_is_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also in its header; markup is text."""
    print_table((NASTY, "[red]"), [(NASTY, "[/red]"), (None, NASTY * 2)], title=NASTY)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].split() == [SHOWN, "[/red]"]


def test_one_line_keeps_what_can_be_read() -> None:
    """Other scripts, and characters that are joined, are no danger."""
    for text in ("Ü 模型 שלום", "👩\u200d💻", "C:\\new"):
        assert one_line(text) == text


def test_no_command_prints_a_name_as_it_is() -> None:
    """`click.echo` is for fixed texts and for content; a line with names in it is for `say`."""
    found = [
        f"{path.relative_to(SHELL)}:{call.lineno}"
        for path in SHELL.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "click.echo"
        if any(isinstance(part, ast.FormattedValue) for part in ast.walk(call))
    ]
    assert found == []
