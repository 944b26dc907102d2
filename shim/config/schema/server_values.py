"""Values of the keys of servers: the command, what it does, when it is ready, how it ends."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, cast

from pydantic import PlainValidator, WithJsonSchema

from backends.kinds import SERVED, Verb
from shim.config.schema.values import TEXTS, TEXTS_JSON

ABILITIES: Final = tuple(sorted(f'"{verb}"' for verb in SERVED - {"stream", "http"}))
_MOST_WORDS: Final = 4096
_PATH: Final = re.compile(r"/[!-~]{0,1023}")

StopSignal = Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"]


def parse_command(value: object) -> tuple[str, ...]:
    """A program and its arguments: texts, the first of which is not empty."""
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ValueError("not a list of texts")
    if not value or not value[0].strip():
        raise ValueError("no program")
    if len(value) > _MOST_WORDS or any("\0" in word for word in value):
        raise ValueError("no words that a program can be given")
    return tuple(value)


def parse_request_path(value: object) -> str:
    """A path of a URL, with or without a query."""
    if isinstance(value, str) and _PATH.fullmatch(value):
        return value
    raise ValueError("not a path")


def parse_abilities(value: object) -> tuple[Verb, ...]:
    """Verbs that a server may do."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise ValueError("not a list")
    for word in words:
        if f'"{word}"' not in ABILITIES:
            raise ValueError(f"{word!r}, which no server does")
    return cast("tuple[Verb, ...]", tuple(dict.fromkeys(words)))


_ABILITY_JSON = {"type": "string", "enum": [name.strip('"') for name in ABILITIES]}

Command = Annotated[tuple[str, ...], PlainValidator(parse_command), TEXTS, TEXTS_JSON]
Abilities = Annotated[
    tuple[Verb, ...],
    PlainValidator(parse_abilities),
    TEXTS,
    WithJsonSchema({"type": "array", "items": _ABILITY_JSON}),
]
RequestPath = Annotated[
    str, PlainValidator(parse_request_path), WithJsonSchema({"type": "string", "pattern": "^/"})
]
