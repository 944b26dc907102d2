"""Every message that the page of troubles quotes is one that the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
ENTRY = re.compile(
    r"^### `(?P<message>[^`\n]+)`\n\n(?P<means>.+?)\n\n\*\*Do:\*\* (?P<do>.+?)\n(?=\n|\Z)",
    re.MULTILINE | re.DOTALL,
)
HOLE = "…"


def entries() -> list[re.Match[str]]:
    """The entries of the page: a message, what it means, what to do."""
    return list(ENTRY.finditer(PAGE.read_text("utf-8")))


@cache
def texts() -> tuple[str, ...]:
    """Every text in the code, with a hole for each value in it."""
    files = (
        file for tree in ("shim", "backends", "budget") for file in (ROOT / tree).rglob("*.py")
    )
    return tuple(text for file in files for text in texts_of(ast.parse(file.read_text("utf-8"))))


def texts_of(tree: ast.AST) -> Iterator[str]:
    """The texts of a module, each whole: adjacent ones are one, and a value is a hole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def said(message: str) -> bool:
    """Whether some text of the code has all that is quoted, in its order."""
    parts = [re.escape(part) for part in message.split(HOLE) if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def test_the_page_has_thirty_messages_each_with_its_meaning_and_what_to_do() -> None:
    """Every heading of the third level is such an entry."""
    headings = re.findall(r"^### ", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(entries()) == len(headings) == 30


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry["message"][:40])
def test_every_quoted_message_is_in_the_code(entry: re.Match[str]) -> None:
    """A message that was reworded is reworded on the page, too."""
    assert said(entry["message"])


def test_a_message_that_the_code_does_not_have_is_found() -> None:
    """The test above could fail."""
    assert not said("No model … is here today.")
    assert not said("s of waiting … The deadline of the request for")
