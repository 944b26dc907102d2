"""`keepwarm run`: what a conversation remembers, its commands, and how a pipe is answered."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from budget.errors import InvalidRequest
from shim.cli.commands.asking import interactive, typed_lines
from shim.cli.commands.asking.conversation import Conversation
from shim.cli.commands.asking.typed_lines import read_text
from tests.cli.support import KEEPWARM, LIMIT_S, CommandPlace
from tests.places import opened


class _Echoes(BaseHTTPRequestHandler):
    """An endpoint that answers with its number; `asked` has every request."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        """Stream an answer of one piece."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        text = f"answer {len(self.asked)}"
        delta = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
        sent = f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


class FarPlace(CommandPlace):
    """A place whose model `far` is at an endpoint, and `gone` at one that is not there."""

    asked: list[dict[str, Any]]

    def said(self) -> list[list[str]]:
        """The texts of the messages of each request."""
        return [[message["content"] for message in body["messages"]] for body in self.asked]


@pytest.fixture
def far(cache: Path) -> Iterator[FarPlace]:
    """A place with an endpoint that counts its answers."""
    asked: list[dict[str, Any]] = []
    handler = type("_Counting", (_Echoes,), {"asked": asked})
    with (
        HTTPServer(("127.0.0.1", 0), handler) as server,
        opened(lambda root: FarPlace(root, cache)) as own,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        own.configure({"far": {"url": url}, "gone": {"url": "http://127.0.0.1:9"}})
        own.asked = asked
        try:
            yield own
        finally:
            server.shutdown()


Typing = Callable[..., Result]


@pytest.fixture
def typing(far: FarPlace, monkeypatch: pytest.MonkeyPatch) -> Typing:
    """`keepwarm run far` at a terminal at which lines are typed, and then Ctrl-D."""

    def run(*lines: str | type[BaseException]) -> Result:
        left = iter(lines)

        def read_line(_prompt: str) -> str:
            line = next(left, EOFError)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr(interactive, "is_typed", lambda: True)
        monkeypatch.setattr(interactive, "read_text", lambda: read_text(read_line))
        return far.run("run", "far")

    return run


def test_a_conversation_remembers_what_was_said(far: FarPlace, typing: Typing) -> None:
    """The answers too; Ctrl-D leaves with 0, and blank lines ask nothing."""
    done = typing("one", "  ", "two")
    assert (done.exit_code, done.stdout) == (0, "answer 1\nanswer 2\n")
    assert far.said() == [["one"], ["one", "answer 1", "two"]]


def test_clear_system_and_set_are_for_the_questions_that_follow(
    far: FarPlace, typing: Typing
) -> None:
    """As users of Ollama write them, too; a mistake changes nothing and says what was meant."""
    done = typing(
        "one",
        "/clear",
        "/system Be brief.",
        "/set temperature 0.5",
        "/set parameter max_tokens 7",
        "/set max_tokens many",
        "/set temprature 1",
        "two",
        "/set max_tokens",
        "/set system -",
        "three",
    )
    assert far.said() == [["one"], ["Be brief.", "two"], ["two", "answer 2", "three"]]
    assert (far.asked[1]["temperature"], far.asked[1]["max_tokens"]) == (0.5, 7)
    assert "max_tokens" not in far.asked[2]
    assert "max_tokens is a whole number; found 'many'." in done.stderr
    assert "Did you mean temperature?" in done.stderr


def test_a_saved_conversation_goes_on_where_it_was(far: FarPlace, typing: Typing) -> None:
    """The file is its owner's alone; what is no conversation changes nothing."""
    file, other = far.root / "talk.json", far.root / "other.json"
    typing("/system Be brief.", "one", f"/save {file}")
    assert file.stat().st_mode & 0o777 == 0o600
    other.write_text('{"model": "far", "system": "", "options": {}, "messages": [{"role": "x"}]}')
    done = typing(f"/load {file}", f"/load {other}", "/load", "two")
    assert far.said()[-1] == ["Be brief.", "one", "answer 1", "two"]
    assert "holds no conversation" in done.stderr
    assert "needs the name of a file" in done.stderr


def test_an_error_and_a_command_that_is_none_end_no_conversation(
    far: FarPlace, typing: Typing
) -> None:
    """What failed is not remembered; /model goes on elsewhere, and /exit leaves."""
    done = typing(
        "/hepl", "/model absent", "/model gone", "lost", "/model far", "two", "/bye", "never"
    )
    assert done.exit_code == 0
    assert far.said() == [["two"]]
    for said in ("Did you mean /help?", "No model is called 'absent'", "keepwarm: error: "):
        assert said in done.stderr


def test_ctrl_c_at_the_prompt_stays_and_a_text_of_several_lines_is_one_question(
    far: FarPlace, typing: Typing
) -> None:
    """Between three quotes, as in Ollama."""
    done = typing(KeyboardInterrupt, '"""first', 'second"""', '"""whole"""')
    assert done.exit_code == 0
    assert "Ctrl-D or /exit leaves." in done.stderr
    assert [said[-1] for said in far.said()] == ["first\nsecond", "whole"]


def test_a_pipe_and_words_are_one_question(far: FarPlace) -> None:
    """The text of the pipe first; an error is an exit code, and an empty pipe a mistake."""
    assert far.run("run", "far", "tell", "me", stdin="a text\n").stdout == "answer 1\n"
    assert far.run("run", "far", stdin="/help\nline 2\n").exit_code == 0
    assert far.said() == [["a text\ntell me"], ["/help\nline 2"]]
    assert far.run("run", "far", stdin=" \n").exit_code == 2
    assert far.run("run", "gone", "hi").exit_code == 4
    assert far.run("run", "absent", "hi").exit_code == 2


def test_every_command_of_a_conversation_is_in_its_help(typing: Typing) -> None:
    """With what it does, and /? asks for it as well."""
    text = typing("/?").stderr
    for name in ("/help", "/system", "/clear", "/save", "/load", "/set", "/model", "/exit"):
        assert f"  {name}" in text


def test_a_damaged_conversation_is_refused_whole(tmp_path: Path) -> None:
    """Nothing of it is taken over."""
    talk = Conversation("before", {"seed": 1}, [])
    for text in ("", "[]", '{"model": "m", "system": "", "options": {}, "messages": 3}'):
        file = tmp_path / "talk.json"
        file.write_text(text)
        with pytest.raises(InvalidRequest):
            talk.load(file)
    assert talk == Conversation("before", {"seed": 1}, [])
    with pytest.raises(InvalidRequest, match="cannot be written"):
        talk.save(tmp_path / "no" / "folder.json", "m")


@pytest.mark.real
def test_at_a_terminal_lines_are_edited_and_ctrl_c_stops_an_answer(shared: CommandPlace) -> None:
    """A typing mistake is taken back, the answer stops, the lease is back, and Ctrl-D leaves."""
    ours, theirs = pty.openpty()
    # The terminal is the process's own, so that its Ctrl-C is a signal.
    command = ["setsid", "--ctty", *KEEPWARM, "run", "writer"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=shared.env, cwd=shared.root
    )
    os.close(theirs)
    shown = ""

    def until(text: str) -> str:
        """What was shown up to a text, which has to come."""
        nonlocal shown
        while text not in shown:
            assert select.select([ours], [], [], LIMIT_S)[0], shown
            shown += os.read(ours, 4096).decode(errors="replace")
        before, _, shown = shown.partition(text)
        return before

    until(typed_lines.PROMPT)
    os.write(ours, b"/set max_tokens 33\x7f\x7f4\n")
    until("set: max_tokens 4")
    os.write(ours, b"Hello\n")
    until("4 tokens")
    until(typed_lines.PROMPT)
    os.write(ours, b"/set max_tokens 1000000000\nHello\n")
    until("Hello\r\n")
    until(" ")
    os.write(ours, b"\x03")
    assert "tokens/s" not in until(typed_lines.PROMPT)
    os.write(ours, b"\x04")
    assert process.wait(LIMIT_S) == 0
    os.close(ours)
    assert shared.engine("writer")["leases"] == []
