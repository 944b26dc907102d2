"""A stranger's text, made safe for a terminal or for one line of a table or a log."""

from __future__ import annotations

from typing import Final

_SHOWN: Final = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}
_ORDERS: Final = (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that break a line, or change the order in which it is shown."""
_ONE_LINE: Final = {**_SHOWN, 9: "\\t", 10: "\\n", 13: "\\r", **{n: f"\\u{n:04x}" for n in _ORDERS}}


def escaped(text: str) -> str:
    r"""A text whose control characters, except newline and tab, are written as `\x1b` for example."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    r"""A text as one line, in its own order: all its control characters are escapes, `\n` and `\t` too."""
    return text.translate(_ONE_LINE)
