"""Standard streams that are closed, full, broken or of another encoding, and what a terminal is sent."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shim.cli.console import interrupt_and_memory
from shim.cli.root import main
from tests.cli.forked_commands import BROKEN, CLOSED, Ended, ForkedCommands
from tests.cli.support import ENDLESS, KEEPWARM, LIMIT_S, CommandPlace, new_place, terminal
from tests.processes import wait_until

NASTY = "a\x1b]0;title\x07b\x1b[2Jc\tdö\n"
LINES = [
    ("ps",),
    ("config", "show", "--json"),
    ("--help",),
    ("chat", "absent", "hi", "--json"),
]


class _Answers(BaseHTTPRequestHandler):
    """An endpoint whose answers hold codes of a terminal."""

    def do_POST(self) -> None:
        """Answer a chat as a whole."""
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(
            {"choices": [{"message": {"content": NASTY}, "finish_reason": "stop"}]}
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def cold(cache: Path) -> Iterator[CommandPlace]:
    """A place without a keeper, whose one model is at an endpoint that answers with codes."""
    with HTTPServer(("127.0.0.1", 0), _Answers) as server, new_place(cache) as own:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        own.configure({"far": {"url": f"http://127.0.0.1:{server.server_port}"}})
        try:
            yield own
        finally:
            server.shutdown()


def shell(
    place: CommandPlace, script: str, *args: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """A script of bash, in which `"$@"` is keepwarm with arguments."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}", "bash", *KEEPWARM, *args],
        env={**place.env, **env},
        cwd=place.root,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture(scope="module")
def commands() -> Iterator[ForkedCommands]:
    """Children with any streams."""
    with ForkedCommands() as forked:
        yield forked


Run = Callable[..., Ended]


@pytest.fixture
def run(cold: CommandPlace, commands: ForkedCommands) -> Run:
    """A command in the cold place, with streams that are not as usual."""
    return lambda *args, **given: commands.run(
        {**cold.env, **given.pop("env", {})}, cold.root, *args, **given
    )


@pytest.mark.parametrize("args", LINES, ids=" ".join)
def test_a_stdout_that_cannot_be_written_is_one_line_and_code_4(
    run: Run, args: tuple[str, ...]
) -> None:
    """A full one and a closed one; the line names the stream."""
    for stdout in ("/dev/full", CLOSED):
        done = run(*args, stdout=stdout)
        assert done.code == 4, done.stderr
        assert done.stderr.splitlines()[-1].startswith(
            "keepwarm: error: stdout cannot be written: "
        )
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", LINES, ids=" ".join)
def test_a_reader_that_ended_is_a_silent_141(run: Run, args: tuple[str, ...]) -> None:
    """As of a program that SIGPIPE ends. The reader ends before the command begins."""
    done = run(*args, stdout=BROKEN)
    assert done.code == 141
    assert "stdout" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", LINES, ids=" ".join)
def test_a_stderr_that_cannot_be_written_changes_nothing_else(
    run: Run, args: tuple[str, ...]
) -> None:
    """The exit code and stdout are the same, with stderr closed and with stderr full."""
    whole = run(*args)
    for stderr in ("/dev/full", CLOSED):
        done = run(*args, stderr=stderr)
        assert (done.code, done.stdout) == (whole.code, whole.stdout)


def test_a_process_of_its_own_has_the_same_ends(cold: CommandPlace) -> None:
    """As a shell starts it: Python's own streams at the start and its end change nothing."""
    ends = {
        '"$@" >/dev/full': 4,
        '"$@" >&-': 4,
        '"$@" 2>&-': 0,
        '{ sleep 0.3; exec "$@"; } | true': 141,
    }
    for script, code in ends.items():
        done = shell(cold, script, "--help")
        assert done.returncode == code, script
        assert "Traceback" not in done.stderr


def test_a_closed_stdin_is_an_empty_prompt(run: Run, cold: CommandPlace) -> None:
    """A mistake of the caller, of chat, run and embed; one that is open for writing only, too."""
    for command in ("chat", "run", "embed"):
        closed = run(command, "far", stdin=CLOSED)
        assert closed.code == 2
        assert "Traceback" not in closed.stderr
    written = str(cold.root / "written")
    unreadable = run("chat", "far", stdin=written, stdout=written)
    assert unreadable.code == 2
    assert "stdin cannot be read" in unreadable.stderr


def test_an_answer_keeps_its_codes_in_a_pipe_and_shows_them_on_a_terminal(
    run: Run, cold: CommandPlace
) -> None:
    """A terminal neither changes its title nor is cleared, and the pipe has every byte."""
    args = ("chat", "far", "hi", "--no-stream")
    assert run(*args).stdout.decode() == NASTY + "\n"
    code, shown = on_a_terminal(run, *args)
    assert code == 0, shown
    assert r"a\x1b]0;title\x07b\x1b[2Jc" in shown
    assert "\x1b" not in shown.partition("far · ")[0]
    assert "\x07" not in shown


def test_an_error_shows_codes_on_a_terminal(run: Run, cold: CommandPlace) -> None:
    """Errors quote endpoints, files and arguments."""
    code, shown = on_a_terminal(run, "chat", "far", "hi", "--system", "x", f"--{NASTY}")
    assert code == 2
    assert "\x1b" not in shown
    cold.configure({r'"n\u001b[2J"': {"url": "http://127.0.0.1:9"}})
    for command in ("plan", "list"):
        _, listed = on_a_terminal(run, command)
        assert "\x1b[2J" not in listed
        assert r"\x1b[2J" in listed


def on_a_terminal(run: Run, *args: str) -> tuple[int, str]:
    """The exit code of a command, and what it sent to a terminal that is its stdout and stderr."""
    with terminal() as (name, shown):
        done = run(*args, stdout=name, stderr=name)
    return done.code, b"".join(shown).decode()


def test_an_ascii_stdout_shows_escapes_and_valid_json(run: Run) -> None:
    """Whatever the encoding: no traceback, and JSON that has the same value."""
    args = ("chat", "far", "hi", "--no-stream")
    for encoding in ("ascii", "latin-1"):
        env = {"PYTHONIOENCODING": encoding}
        text = run(*args, env=env)
        assert text.code == 0, text.stderr
        end = "dö\n\n" if encoding == "latin-1" else "d\\xf6\n\n"
        assert text.stdout.decode("latin-1").endswith(end)
        found = run(*args, "--json", env=env)
        assert json.loads(found.stdout.decode("latin-1"))["content"] == NASTY


def test_too_little_address_space_is_named(cold: CommandPlace) -> None:
    """Both where the command line cannot be imported and where a command cannot."""
    for limit_kib, command in ((20_000, "version"), (50_000, "doctor")):
        done = shell(cold, f'ulimit -v {limit_kib}; "$@"', command)
        assert done.returncode == 4, done.stderr
        assert "address space (ulimit -v) are not enough" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_system_that_has_no_memory_left_is_the_limits_doing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever error says it; without a limit it is another trouble."""
    limit = (50_000 << 10, resource.RLIM_INFINITY)
    errors = (MemoryError(), ImportError("failed to map segment"), OSError(errno.ENOMEM, "no"))
    for error in errors:
        assert interrupt_and_memory.lack_of_memory(error) is None
    monkeypatch.setattr(resource, "getrlimit", lambda _number: limit)
    for error in errors:
        assert "48 MiB of address space" in str(interrupt_and_memory.lack_of_memory(error))
    assert interrupt_and_memory.lack_of_memory(OSError(errno.ENOENT, "no")) is None


def test_ctrl_c_ends_the_process_at_once_outside_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises only in a command; where the shell has it ignored it stays ignored."""
    before = signal.getsignal(signal.SIGINT)
    try:
        monkeypatch.setattr(interrupt_and_memory, "_RAISES", True)
        interrupt_and_memory.end_at_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        with interrupt_and_memory.ctrl_c_raises():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        monkeypatch.setattr(interrupt_and_memory, "_RAISES", False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupt_and_memory.end_at_ctrl_c()
        with interrupt_and_memory.ctrl_c_raises():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_run_by_another_program_leaves_its_ctrl_c_alone() -> None:
    """A program that calls the command line as a function, on any thread, is interrupted as before."""
    before = signal.getsignal(signal.SIGINT)
    codes = [main(["version"], standalone_mode=False)]
    thread = threading.Thread(target=lambda: codes.append(main(["version"], standalone_mode=False)))
    thread.start()
    thread.join()
    assert codes == [None, None]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_command_line_is_imported_leaves_no_traceback(cold: CommandPlace) -> None:
    """The interrupt comes with the import of click."""
    (cold.root / "click.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    path = f"{cold.root}{os.pathsep}{cold.env['PYTHONPATH']}"
    done = shell(cold, 'exec "$@"', "ps", PYTHONPATH=path)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""


@pytest.mark.real
def test_an_answer_whose_reader_ends_gives_its_lease_back(shared: CommandPlace) -> None:
    """`chat | head -c 3` has three bytes, no message, and leaves the model idle."""
    done = shell(shared, '"$@" | head -c 3', "chat", "writer", "Hello", *ENDLESS)
    assert (done.returncode, len(done.stdout), done.stderr) == (141, 3, "")
    assert wait_until(lambda: shared.engine("writer")["state"] == "idle")
