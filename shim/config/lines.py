"""Where a key stands in a TOML text."""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*\[{1,2}\s*(?P<name>[^\[\]]+?)\s*\]{1,2}\s*(?:#.*)?")
_KEY = re.compile(r"""\s*(?P<key>(?:"[^"]*"|'[^']*'|[A-Za-z0-9_.\- ])+?)\s*=""")
_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(?:\.|$)""")


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple("".join(groups) for groups in _PART.findall(dotted))


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line (from 1) of every table and key, by path; a key inside an inline value is not there.

    Good enough to point at a mistake: it follows table headers and skips multi-line texts.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if inside:
            inside = "" if inside in line else inside
            continue
        if header := _HEADER.fullmatch(line):
            table = _parts(header["name"])
            found.setdefault(table, number)
        elif match := _KEY.match(line):
            found.setdefault(table + _parts(match["key"]), number)
            inside = next((q for q in ('"""', "'''") if line.count(q) == 1), "")
    return found


def line_of(lines: dict[tuple[str, ...], int], path: tuple[str, ...]) -> int | None:
    """The line of a path, or of the nearest table around it that has one."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None
