"""What is stopped: a command by Ctrl-Z, which gives its lease back, and a keeper, which is named."""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.cli.console.stopping import Stopped, Stops, asked_again
from shim.wire import silence
from tests.cli.support import LIMIT_S, CommandPlace, new_place
from tests.processes import wait_until

LONG = ("--max-tokens", "8000")
"""Seconds of an answer on any machine. No test waits for its end."""


@pytest.fixture(scope="module")
def shared(cache: Path, models: dict[str, dict[str, Any]]) -> Iterator[CommandPlace]:
    """A place with room for a long answer."""
    with new_place(cache) as place:
        place.configure({"writer": {**models["writer"], "context": 8192}})
        yield place


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def started(place: CommandPlace, *args: str) -> subprocess.Popen[bytes]:
    """A command in a process group of its own, as a shell with job control starts it."""
    return place.start(*args, process_group=0)


def stop(place: CommandPlace, process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-Z; the process stops and holds no lease."""
    process.send_signal(signal.SIGTSTP)
    assert wait_until(lambda: is_stopped(process.pid))
    assert wait_until(lambda: place.engine("writer")["leases"] == [])


def serve_another(place: CommandPlace) -> None:
    """Another client is served while the command is stopped."""
    served = place.run("chat", "writer", "Hello", "--max-tokens", "2", "--deadline", "60")
    assert served.exit_code == 0, served.stderr


def printed(process: subprocess.Popen[bytes]) -> int:
    """The number of bytes that a process printed and this test did not read."""
    assert process.stdout is not None
    count = array.array("i", [0])
    fcntl.ioctl(process.stdout, termios.FIONREAD, count)
    return count[0]


@pytest.mark.real
@pytest.mark.parametrize("options", [(), ("--seed", "7")])
def test_a_stopped_answer_gives_its_lease_back_and_goes_on(
    shared: CommandPlace, options: tuple[str, ...]
) -> None:
    """In the middle where it can; one with random numbers begins anew, and says so."""
    process = started(shared, "chat", "writer", "Hello", *LONG, *options)
    assert wait_until(lambda: printed(process) > 0)
    stop(shared, process)
    serve_another(shared)
    before = printed(process)
    process.send_signal(signal.SIGCONT)
    assert wait_until(lambda: printed(process) > before)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, errors
    assert (b"asked for again" in errors) == bool(options)
    assert wait_until(lambda: shared.engine("writer")["state"] == "idle")


@pytest.mark.real
@pytest.mark.parametrize("flag", ["--no-stream", "--json"])
def test_a_stopped_command_that_printed_nothing_yet_asks_again(
    shared: CommandPlace, flag: str
) -> None:
    """Whole answers and JSON are seamless."""
    shared.json("load", "writer")
    engine = shared.engine("writer")["pid"]
    os.kill(engine, signal.SIGSTOP)  # no answer ends before its command is stopped
    process = started(shared, "chat", "writer", "Hello", "--max-tokens", "20", flag)
    assert wait_until(lambda: bool(shared.engine("writer")["leases"]))
    stop(shared, process)
    os.kill(engine, signal.SIGCONT)
    serve_another(shared)
    process.send_signal(signal.SIGCONT)
    out, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert errors == b""
    if flag == "--json":
        assert json.loads(out)["usage"]["completion_tokens"] == 20


@pytest.mark.real
def test_a_stopped_keeper_is_named_and_not_waited_for(
    shared: CommandPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ps` and `chat` end with 4 and say which process it is; continued, it answers."""
    pid = shared.json("ps")["keeper"]["pid"]
    assert silence.LOOK_S == silence.CONNECT_S == 5.0
    for name in ("silence.LOOK_S", "silence.SILENCE_S", "silence.CONNECT_S", "launch.CONNECT_S"):
        monkeypatch.setattr(f"shim.wire.{name}", 0.2)
    os.kill(pid, signal.SIGSTOP)
    try:
        commands = [("ps", "--json"), ("chat", "writer", "Hello"), ("keeper", "status")]
        done = [shared.run(*command) for command in commands]
    finally:
        os.kill(pid, signal.SIGCONT)
    for result in done:
        assert result.exit_code == 4, result.stderr
        assert f"process {pid}" in result.stderr
        assert "does not respond" in result.stderr
        assert f"kill -CONT {pid}" in result.stderr
    error = json.loads(done[0].stdout)["error"]
    assert error["error"] == "KeeperUnavailable"
    assert error["facts"] == {"pid": pid, "runtime": str(shared.runtime), "waited_s": 0.2}
    assert shared.json("ps")["running"]


def test_what_is_printed_is_finished_before_the_stop() -> None:
    """A piece is printed and counted, or neither."""
    stops = Stops()
    printed: list[str] = []

    def a_piece() -> None:
        with stops.held_off():
            signal.raise_signal(signal.SIGTSTP)
            printed.append("piece")

    with pytest.raises(Stopped), stops.raised():
        a_piece()
    assert printed == ["piece"]
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


def test_what_was_broken_off_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it is stopped."""
    monkeypatch.setattr(Stops, "stop_here", lambda _: seen.append("stopped"))
    seen: list[str] = []

    def ask() -> str:
        seen.append("asked")
        if len(seen) < 6:
            signal.raise_signal(signal.SIGTSTP)
        return "answer"

    assert asked_again(ask, lambda: seen.append("cleared")) == "answer"
    assert seen == ["asked", "cleared", "stopped"] * 2 + ["asked"]


def test_a_shell_without_job_control_is_left_alone() -> None:
    """It has the signal ignored for its commands, and so it stays."""
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        with Stops().raised():
            signal.raise_signal(signal.SIGTSTP)
        assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
