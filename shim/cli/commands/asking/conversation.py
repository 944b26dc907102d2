"""A conversation in memory: what was said, how it is asked on, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from backends.foreign.foreign_json import BadJson, parse_json
from backends.foreign.json_shapes import table, text
from backends.machine.files.whole_files import write_whole
from budget.errors import InvalidRequest

SETTINGS: Final[dict[str, Callable[[str], Any]]] = {
    "temperature": float,
    "max_tokens": int,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "stop": str,
    "deadline_s": float,
}
"""The options of a call that `/set` sets, and how each is read."""
_LIMIT_BYTES: Final = 64 << 20
_ROLES: Final = ("user", "assistant")


@dataclass
class Conversation:
    """The turns so far: questions and answers in turn, after the system message."""

    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def asked(self, question: str) -> list[dict[str, str]]:
        """The messages of the next request. The question counts as a turn once it is answered."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns, {"role": "user", "content": question}]

    def answered(self, question: str, answer: str) -> None:
        """Keep a question and its answer."""
        self.turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]

    def set(self, name: str, value: str | None) -> None:
        """Set an option for the answers to come; None leaves it to the engine again.

        Raises:
            InvalidRequest: there is no such option, or the value is of another type.
        """
        if name not in SETTINGS:
            close = get_close_matches(name, SETTINGS, 1)
            raise InvalidRequest(
                f"There is no setting {name!r}.",
                hint=f"Did you mean {close[0]}?" if close else f"There are {', '.join(SETTINGS)}.",
            )
        if value is None:
            self.options.pop(name, None)
            return
        try:
            self.options[name] = SETTINGS[name](value)
        except ValueError:
            what = "a whole number" if SETTINGS[name] is int else "a number"
            raise InvalidRequest(f"{name} is {what}; found {value!r}.") from None

    def save(self, file: Path, model: str) -> None:
        """Write the conversation to a file of its own.

        Raises:
            InvalidRequest: the file cannot be written.
        """
        fields = {
            "model": model,
            "system": self.system,
            "options": self.options,
            "messages": self.turns,
        }
        try:
            write_whole(file, json.dumps(fields, ensure_ascii=False, indent=1).encode())
        except OSError as error:
            raise InvalidRequest(f"{file} cannot be written: {error.strerror}.") from None

    def load(self, file: Path) -> str:
        """Take over a conversation that `save` wrote; returns its model.

        Raises:
            InvalidRequest: the file cannot be read, or holds no conversation. Nothing changed.
        """
        try:
            with file.open("rb") as stream:
                fields = table(parse_json(stream.read(_LIMIT_BYTES)))
            system, model = text(fields["system"]), text(fields["model"])
            options = {
                name: value for name, value in table(fields["options"]).items() if name in SETTINGS
            }
            turns = [_turn(number, row) for number, row in enumerate(fields["messages"])]
        except OSError as error:
            raise InvalidRequest(f"{file} cannot be read: {error.strerror}.") from None
        except (BadJson, KeyError, TypeError, ValueError):
            raise InvalidRequest(
                f"{file} holds no conversation.", hint="/save writes files that /load reads."
            ) from None
        self.system, self.options, self.turns = system, options, turns
        return model


def _turn(number: int, row: Mapping[str, Any]) -> dict[str, str]:
    role, content = text(row["role"]), text(row["content"])
    if role != _ROLES[number % 2]:
        raise ValueError(role)
    return {"role": role, "content": content}
