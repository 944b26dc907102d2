"""A finding of `keepwarm doctor`: what was looked at, how it is, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from budget.errors import KeepwarmError
from shim.config import Config

Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor.

    Attributes:
        check: what was looked at, in a word or two.
        level: `ok`; `warn` where keepwarm works with less; `bad` where something will fail.
        text: how it is.
        todo: what to do about it; empty for what is well.
        facts: figures for programs, bytes as numbers.
    """

    check: str
    level: Level
    text: str
    todo: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Config], Iterator[Finding]]


def error_found(check: str, error: KeepwarmError, level: Level = "bad") -> Finding:
    """The finding that an error makes."""
    return Finding(check, level, error.message, error.hint or "", dict(error.facts))


def found_by(check: Check, config: Config) -> list[Finding]:
    """The findings of one check. A check that fails is a finding, too."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    found: list[Finding] = []
    try:
        found.extend(check(config))
    except KeepwarmError as error:
        found.append(error_found(name, error))
    except OSError as error:
        found.append(Finding(name, "warn", f"could not be looked at: {error}."))
    return found
