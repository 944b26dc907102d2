"""What the installed llama-server says of further arguments: it is asked once, without a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from backends.llama.binaries import build_id, find_binary, library_env
from backends.machine.children import Answered, ask_child
from backends.machine.environment import child_environment
from budget.errors import ConfigError, MeasurementFailed

_LIMIT_S: Final = 10.0
_ENDS: Final = ("--end-of-arguments", "--end-of-arguments-2", "--end-of-arguments-3")
"""Options that no llama-server knows."""
_NAMES: Final = re.compile(r"-[\w.-]+(?:,\s*-[\w.-]+)*", re.ASCII)
"""The spellings of one option, at the beginning of a line of the help."""
_INVALID: Final = re.compile(r"invalid argument: (?P<word>.*)")
_WHY: Final = re.compile(r'error while handling argument "(?P<option>.*?)": (?P<why>.*)')


def check_options(extra: tuple[str, ...], server: Path | None = None) -> None:
    """Refuse further arguments that the model's llama-server (the installed one) would end at.

    Its own parser reads them: names, numbers of values, and values. Without a llama-server that answers,
    nothing is refused.

    Raises:
        ConfigError: with the argument, what llama-server says of it, and the nearest one that it knows.
    """
    if not extra:
        return
    try:
        binary = server or find_binary("llama-server")
        said = _refusal(binary, build_id(binary), extra)
    except (ConfigError, MeasurementFailed):
        return
    if said is None:
        return
    if unknown := _INVALID.search(said):
        word = unknown["word"]
        if word in _ENDS:
            raise ConfigError(
                f"engine_args: the last option, {extra[-1]}, has no value.",
                hint="Give its value as a text behind it.",
                argument=extra[-1],
            )
        raise ConfigError(
            f"engine_args: llama-server knows no argument {word}.",
            hint=_hint(word, known_options(binary, build_id(binary))),
            argument=word,
        )
    if value := _WHY.search(said):
        raise ConfigError(
            f"engine_args: llama-server refuses {value['option']}: {value['why']}.",
            hint="See `llama-server --help` for the values that it takes.",
            argument=value["option"],
        )


@lru_cache(maxsize=8)
def known_options(binary: Path, build: str) -> frozenset[str]:
    """The spellings of every option in a build's help.

    Raises:
        MeasurementFailed: it cannot be started.
    """
    del build
    lines = _ask(binary, "--help").out.splitlines()
    found = (_NAMES.match(line) for line in lines if not line.startswith("-----"))
    return frozenset(name for match in found if match for name in re.split(r",\s*", match[0]))


@lru_cache(maxsize=256)
def _refusal(binary: Path, build: str, extra: tuple[str, ...]) -> str | None:
    """What a build says of arguments that it refuses; None where it accepts them."""
    del build
    # Arguments are read in order, and the program ends at the first one that it does not know. So it never
    # begins to serve, even where an option takes the first end as the value that it lacks.
    answer = _ask(binary, *extra, *_ENDS)
    said = answer.out + answer.log
    found = _INVALID.search(said)
    if answer.code <= 0 or (found and found["word"] == _ENDS[0]):
        return None
    return said


def _ask(binary: Path, *arguments: str) -> Answered:
    return ask_child([str(binary), *arguments], child_environment(library_env(binary)), _LIMIT_S)


def _hint(word: str, known: Iterable[str]) -> str:
    name, equals, value = word.partition("=")
    if equals and name in known:
        return f'Give option and value as two texts: "{name}", "{value}".'
    if not word.startswith("-"):
        return "Each value follows the option that takes it, as a text of its own."
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else "See `llama-server --help`."
