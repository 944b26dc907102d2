"""Where a key stands in a TOML text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from shim.config.problems import Problem, dotted

_HEADER = re.compile(r"\s*\[{1,2}\s*(?P<name>[^\[\]]+?)\s*\]{1,2}\s*(?:#.*)?")
_KEY = re.compile(r"""\s*(?P<key>(?:"[^"]*"|'[^']*'|[A-Za-z0-9_.\- ])+?)\s*=""")
_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(?:\.|$)""")


def _parts(written: str) -> tuple[str, ...]:
    return tuple("".join(groups) for groups in _PART.findall(written))


def key_lines(text: str) -> dict[str, int]:
    """The line (from 1) of every table and key, by its dotted name; one in an inline value is not there.

    Good enough to point at a mistake: it follows table headers and skips multi-line texts.
    """
    found: dict[str, int] = {}
    table: tuple[str, ...] = ()
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if inside:
            inside = "" if inside in line else inside
            continue
        if header := _HEADER.fullmatch(line):
            table = _parts(header["name"])
            found.setdefault(dotted(table), number)
        elif match := _KEY.match(line):
            found.setdefault(dotted(table + _parts(match["key"])), number)
            inside = next((q for q in ('"""', "'''") if line.count(q) == 1), "")
    return found


def line_of(lines: Mapping[str, int], key: str) -> int | None:
    """The line of a dotted key, or of the nearest table around it that has one."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key)


def with_lines(problems: Iterable[Problem], lines: Mapping[str, int]) -> list[Problem]:
    """The problems, each with the line of its key."""
    return [replace(problem, line=line_of(lines, problem.key)) for problem in problems]
