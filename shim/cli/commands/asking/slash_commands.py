"""The commands that are typed into a conversation: /help, /system, /clear, /save, /load and others."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Protocol

import click

from budget.errors import InvalidRequest
from shim.cli.commands.asking.conversation import SETTINGS, Conversation
from shim.cli.console.chosen_model import ChosenModel
from shim.cli.console.said_lines import say


class Leave(Exception):
    """The person leaves the conversation."""


class Talking(Protocol):
    """What commands act on."""

    conversation: Conversation
    chosen: ChosenModel

    def change_model(self, given: str) -> None:
        """Go on with another model."""
        ...


def _help(_: Talking, __: str) -> None:
    width = max(len(usage) for usage, *_what in _COMMANDS.values())
    for usage, what, _run in _COMMANDS.values():
        say(f"  {usage:<{width}}  {what}", err=True)


def _system(talk: Talking, text: str) -> None:
    if text:
        talk.conversation.system = "" if text == "-" else text
    say(f"system: {talk.conversation.system or '(none)'}", err=True)


def _clear(talk: Talking, _: str) -> None:
    talk.conversation.turns.clear()
    click.echo("What was said is forgotten.", err=True)


def _save(talk: Talking, name: str) -> None:
    file = _file(name, "/save")
    talk.conversation.save(file, talk.chosen.model)
    say(f"{len(talk.conversation.turns)} messages are in {file}.", err=True)


def _load(talk: Talking, name: str) -> None:
    file = _file(name, "/load")
    model = talk.conversation.load(file)
    said = f"{len(talk.conversation.turns)} messages of {file}"
    other = f" (with {model})" if model != talk.chosen.model else ""
    say(f"{said}{other}; the conversation goes on there.", err=True)


def _set(talk: Talking, text: str) -> None:
    # Users of Ollama write `/set parameter temperature 0` and `/set system TEXT`.
    name, _, value = text.removeprefix("parameter ").strip().partition(" ")
    if name == "system":
        _system(talk, value.strip())
        return
    if name:
        talk.conversation.set(name, value.strip() or None)
    shown = ", ".join(f"{key} {value}" for key, value in talk.conversation.options.items())
    left = f"; there are {', '.join(SETTINGS)}" if not name else ""
    say(f"set: {shown or 'nothing'}{left}", err=True)


def _model(talk: Talking, name: str) -> None:
    if name:
        talk.change_model(name)
    others = sorted(talk.chosen.config.models.keys() - {talk.chosen.model})
    also = f" (others: {', '.join(others)})" if others and not name else ""
    say(f"model: {talk.chosen.model}{also}", err=True)


def _exit(_: Talking, __: str) -> None:
    raise Leave


def _file(name: str, command: str) -> Path:
    if not name:
        raise InvalidRequest(f"{command} needs the name of a file.")
    return Path(name).expanduser()


_COMMANDS: Final[dict[str, tuple[str, str, Callable[[Talking, str], None]]]] = {
    "/help": ("/help", "this list", _help),
    "/system": ("/system [TEXT]", "the system message; - removes it", _system),
    "/clear": ("/clear", "forget what was said", _clear),
    "/save": ("/save FILE", "write the conversation to a file", _save),
    "/load": ("/load FILE", "go on with a conversation that was saved", _load),
    "/set": ("/set [NAME [VALUE]]", "an option of the answers to come, such as temperature", _set),
    "/model": ("/model [NAME]", "go on with another model", _model),
    "/exit": ("/exit", "leave, as Ctrl-D does", _exit),
}
_ALIASES: Final = {"/?": "/help", "/bye": "/exit", "/quit": "/exit", "/q": "/exit"}
NAMES: Final = tuple(_COMMANDS)


def obey(talk: Talking, text: str) -> None:
    """Carry out a line that begins with a slash.

    Raises:
        Leave: the person leaves.
        InvalidRequest: there is no such command, or it cannot be done; nothing changed.
    """
    typed, _, rest = text.strip().partition(" ")
    name = _ALIASES.get(typed, typed)
    if name not in _COMMANDS:
        close = get_close_matches(name, [*NAMES, *_ALIASES], 1)
        raise InvalidRequest(
            f"There is no command {typed!r}.",
            hint=f"Did you mean {close[0]}?" if close else "/help lists the commands.",
        )
    _COMMANDS[name][2](talk, rest.strip())
